"""The verbs of a run of a stream, which `rec_jax.api` offers under the names of the others."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from rec_jax import config as configs
from rec_jax.data.periods import periods_of
from rec_jax.data.source_files import files_of
from rec_jax.errors import InputError
from rec_jax.files import file_hash
from rec_jax.inference.export import What, check_format
from rec_jax.inference.retrieve import Recommendation
from rec_jax.mesh import parse_mesh
from rec_jax.progress import reporter_of
from rec_jax.run import Run
from rec_jax.tables import ITEMS, USERS
from rec_jax.tier.text_ids import text_ids
from rec_jax.train.opening import AUTO, has_section, open_run
from rec_jax.train.stream_config import StreamRunConfig
from rec_jax.train.stream_export import write_rows
from rec_jax.train.stream_names import hashed
from rec_jax.train.stream_ranks import best_items, tested
from rec_jax.train.stream_run import Standing, open_standing, run_stream

PathLike = Path | str
Verb = TypeVar("Verb", bound=Callable[..., Any])
_SAYS = ("tell", "progress", "trust_code")
"""What a verb may be told of everything: it changes no answer."""


def is_stream(run: Any) -> bool:
    """Whether `run` is the folder of a run of a stream."""
    if not isinstance(run, str | Path) or not Run(Path(run)).config_path.is_file():
        return False
    return "stream" in Run(Path(run)).saved_config()


def learns_stream(config: Any, resume: Any, continue_from: Any = None) -> bool:
    """Whether the config to train with, or the run to go on with, is of a stream."""
    if isinstance(config, StreamRunConfig | str | Path):
        return has_section("stream", StreamRunConfig, config)
    return is_stream(continue_from) or (resume != AUTO and is_stream(resume))


def train_stream(config: Any, files: Sequence[PathLike] | PathLike, *,
                 run: PathLike | None, overrides: Sequence[str], resume: PathLike | None,
                 force: bool, progress: bool, others: Mapping[str, Any]) -> dict[str, Any]:
    """Learn the periods of `files`, or of the config's `data.files`; see `run_stream`.

    files: of this start alone: the run keeps its `data.files`. Where it has none, these are its
    own from now on.
    others: what `train` was told that no stream has, by name.
    """
    for name, value in others.items():
        if value:
            raise InputError(f"{name} is not of a stream, whose run goes on in its own folder; "
                             "expected resume and stream")
    if not learns_stream(config, resume):
        raise InputError("stream names files of interactions for a run of a stream; expected a "
                         "config with [stream], or the folder of such a run to resume")
    target, resolved = open_run(config, run, overrides, resume, force=force, of=StreamRunConfig)
    named = tuple(map(str, [files] if isinstance(files, str | Path) else files))
    if not resolved.data.files:
        resolved = replace(resolved, data=replace(resolved.data,
                                                  files=_own_files(target) or named))
    with reporter_of("train", progress) as reporter:
        return {"run": str(target.folder), **run_stream(target, resolved, reporter, files=named,
                                                        new=resume is None)}


def _own_files(run: Run) -> tuple[str, ...]:
    """The `data.files` that a run has in its config, if it has begun."""
    saved = run.saved_config() if run.config_path.exists() else {}
    return tuple(saved.get("data", {}).get("files", ()))


def also_of_streams(answer: Callable[..., Any]) -> Callable[[Verb], Verb]:
    """A verb that asks `answer` where its run is one of a stream, with what it was told.

    The verb's answer raises InputError where it was told what `answer` does not take.
    """
    def made(verb: Verb) -> Verb:
        known, takes = inspect.signature(answer).parameters, inspect.signature(verb)
        defaults = {name: one.default for name, one in takes.parameters.items()}

        @functools.wraps(verb)
        def either(run: Any, **told: Any) -> Any:
            if not is_stream(run):
                return verb(run, **told)
            takes.bind(run, **told)  # a TypeError, where no verb has such an argument
            for name, value in told.items():
                plain = isinstance(value, str | bool | int | float | None)
                if name not in (*known, *_SAYS) and not (plain and value == defaults[name]):
                    raise InputError(f"{name} is not of a run of a stream, and {run} is one; "
                                     "expected none")
            return answer(run, **{name: value for name, value in told.items() if name in known})

        return cast(Verb, either)

    return made


def load_stream(run: PathLike, mesh: str | None = None) -> tuple[Run, StreamRunConfig, Standing]:
    """A run of a stream as its newest checkpoint has it; mesh: instead of the run's own.

    Raises:
      InputError: it has none, or the devices do not form the mesh.
    """
    folder = Run(Path(run))
    config = configs.load(StreamRunConfig, folder.config_path)
    if mesh is not None:
        config = replace(config, mesh=parse_mesh(mesh))
    found = open_standing(folder, config)
    if not found.position.periods:
        raise InputError(f"run {run} has no checkpoint yet")
    return folder, config, found


def evaluate(run: PathLike, *, data: str | None = None, batch: int | None = None,
             mesh: str | None = None) -> dict[str, Any]:
    """Ranks of the interactions in `data`, which the run has not learnt, among all items that have
    a row, and popularity beside them.

    data: a file, a folder or a glob, as the run's `data.files`; all of it is tested as one period.
    """
    if data is None:
        raise InputError("a run of a stream has no dataset; expected files of interactions that it "
                         "has not learnt as data")
    _, config, found = load_stream(run, mesh)
    settings = config.evaluate if batch is None else replace(config.evaluate, batch=batch)
    files, known = files_of([data]), {one["sha256"] for one in found.position.periods}
    every = [period for file in files for period in periods_of(config.data, file)]
    users, items = (
        np.concatenate([np.zeros(0, np.int64), *(hashed(texts).ids for texts in columns)])
        for columns in ([one.users for one in every], [one.items for one in every]))
    figures, popular, protocol = tested(found.stream, users, items, settings)
    if not figures:
        raise InputError(f"there is nothing to test in {data}: it has {len(items)} interactions, "
                         f"and the run {len(found.stream.ids[ITEMS].live)} live items "
                         f"(evaluate.interactions is {settings.interactions})")
    if any(file_hash(file.path) in known for file in files):
        protocol["weights"] = f"step {found.stream.steps}, which has learnt some of it"
    return {"run": str(run), "step": found.stream.steps, "split": "stream", "metrics": figures,
            "popularity_baseline": popular, "protocol": {**protocol, "split_hash": data}}


def export(run: PathLike, *, out: PathLike, what: What = "items", format: str = "npy",
           mesh: str | None = None) -> Path:
    """Write the rows of the live items or users, with the ids of the source."""
    if what not in (ITEMS, USERS):
        raise InputError(f"a stream has no {what}; expected items or users")
    check_format(format)
    folder, _, found = load_stream(run, mesh)
    rows = found.stream.ids[what].live.live()
    write_rows(out, found.names[what]["name"], found.stream.state.tables[what], rows,
               run=folder.folder.name, step=found.stream.steps, what=what, format=format)
    return Path(out)


def recommend(run: PathLike, *, user: str | None = None, k: int = 10, mesh: str | None = None,
              tell: Callable[[str], None] | None = None) -> list[Recommendation]:
    """The k best live items for a user; one without a row reads the shared row, of which `tell` is
    told. What the user had before may be among them: a stream keeps no histories."""
    if user is None:
        raise InputError("a stream knows users by their rows; expected a user, and no history")
    if k < 1:
        raise InputError(f"k is {k}; expected 1 or more")
    _, _, found = load_stream(run, mesh)
    stream, asks = found.stream, text_ids([user])
    row = stream.ids[USERS].find(asks.ids)
    if row[0] and stream.ids[USERS].live.checks[row[0]] != asks.checks[0]:
        raise InputError(f"user {user!r} has the hash of another one; expected other ids")
    if tell is not None and not row[0]:
        tell(f"user {user!r} has no row: these are for everybody without one")
    scores, rows = best_items(stream, int(asks.ids[0]), k)
    names = dict(zip(stream.ids[ITEMS].live.live().tolist(), found.names[ITEMS]["name"],
                     strict=True))
    return [Recommendation(place, names[row], None, score) for place, (row, score) in enumerate(
        zip(rows.tolist(), scores.tolist(), strict=True), 1)]


@contextmanager
def exported(run: PathLike, **told: Any) -> Iterator[PathLike]:
    """`run`, or where it is one of a stream an export of its items, for as long as the block
    runs: a delta is made of two exports, since items of a stream may be gone.

    told: of a run on a dataset, none of which a run of a stream has.
    """
    if not is_stream(run):
        yield run
        return
    for name, value in told.items():
        if value is not None:
            raise InputError(f"{name} is not of a run of a stream, and {run} is one; expected none")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=run) as folder:
        yield export(run, out=Path(folder) / "items")
