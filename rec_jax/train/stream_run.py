"""A run that learns from files of interactions as they come, period by period.

    test      interactions of the period, before any of it is learnt
    learn     all of them, in the order of their times
    barrier   ids that were not seen for long, or are too many, give their rows back
    line      figures of the period in `metrics.jsonl`
    save      rows, ids, their texts, and which periods are learnt

What a run has learnt is known by the content of the files, so a start goes on with what is new
among them, and one that was stopped within a period learns that again from its beginning: the bits
are those of a run that was left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from rec_jax.checkpoint import Checkpoints
from rec_jax.config import save as save_config
from rec_jax.config import to_mapping
from rec_jax.data.periods import Period, PeriodsConfig, periods_of
from rec_jax.data.source_files import SourceFile, files_of
from rec_jax.errors import InputError, Preempted, TrainingError
from rec_jax.files import file_hash
from rec_jax.kernels.auto import pinned
from rec_jax.mesh import make_mesh
from rec_jax.progress import Reporter, Silent
from rec_jax.run import Run
from rec_jax.tables import ITEMS, USERS
from rec_jax.train import backends
from rec_jax.train.log import MetricsLog
from rec_jax.train.new_run import new_run
from rec_jax.train.preemption import Preemption
from rec_jax.train.stream import NAMES, Stream
from rec_jax.train.stream_config import StreamRunConfig
from rec_jax.train.stream_names import (
    Hashed,
    hashed,
    names_of,
    no_names,
    read_names,
    write_names,
)
from rec_jax.train.stream_ranks import tested

STEPS_AT_ONCE = 64
"""Steps between looks at whether somebody asks to stop."""


@dataclass
class Position:
    """Where a run stands, beside its arrays; saved with every checkpoint. periods: of each that is
    learnt its file, that file's sha256, which part of it, and how many interactions it had;
    seconds: of learning and testing, over all starts; backends: see `rec_jax.train.backends`."""

    periods: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    backends: dict[str, str] | None = None


@dataclass
class Standing:
    """A stream, the texts of its ids by table, and where it stands."""

    stream: Stream
    names: dict[str, pl.DataFrame]
    position: Position


def open_standing(run: Run, config: StreamRunConfig) -> Standing:
    """The newest checkpoint of `run`, or the start where there is none.

    Raises:
      InputError: it is of another config, or damaged.
    """
    stream = Stream(config.stream, make_mesh(config.mesh))
    if not _has_checkpoints(run):
        return Standing(stream, {name: no_names() for name in NAMES}, Position())
    step = stream.resume(run.folder)
    names = {name: read_names(_names_path(run, name, step)) for name in NAMES}
    for name, found in names.items():
        live = stream.ids[name].live
        names[name] = names_of(live.ids[live.live()], found)
    try:
        position = Position(**stream.about)
    except TypeError:
        raise InputError(f"{run.folder} was not saved by a run of a stream; expected its "
                         "checkpoints") from None
    return Standing(stream, names, position)


def run_stream(run: Run, config: StreamRunConfig, reporter: Reporter | None = None, *,
               new: bool = False, files: Sequence[str] = ()) -> dict[str, Any]:
    """Learn every period of the config's files that `run` has not learnt.

    new: there must be no run in the folder; files: what is learnt now, in the place of those; the
    run's config stays as it is.

    Returns a summary: steps, live ids, and the figures of each period that was learnt now.

    Raises:
      InputError: another process trains the run, or config or files are not as they should be.
      TrainingError: the loss stopped being finite, or a checkpoint could not be written.
      Preempted: a signal asked to stop; the periods that were learnt whole are saved.
    """
    reporter = reporter or Silent()
    if jax.process_count() > 1:
        raise InputError("a stream is learnt in one process; expected one")
    sources = files or config.data.files
    if not sources:
        raise InputError("data.files is empty; expected files of interactions, or folders of them")
    with ExitStack() as held:
        begun = run.config_path.exists()
        if begun:
            held.enter_context(run.locked())
        listed = files_of(sources)
        standing = open_standing(run, config)
        periods = _unlearnt(config.data, listed, standing.position.periods, reporter)
        # What cannot be read is found before a new run's folder is made.
        first = list(itertools.islice(periods, 1))
        if not first and not standing.position.periods:
            raise InputError(f"there is no interaction in {', '.join(sources)}; "
                             "expected some")
        if not begun:
            held.enter_context(new_run(run, config))
            held.enter_context(run.locked())
        elif new:
            run.check_free()
        preemption = held.enter_context(Preemption())
        position = standing.position
        position.backends = backends.agree(position.backends, reporter)
        if run.saved_config() != to_mapping(config):
            save_config(config, run.config_path)  # what a resumed run was allowed to change
        log = held.enter_context(MetricsLog(run, first_step=standing.stream.steps))
        loop = _Loop(run, config, standing, log, reporter, preemption)
        with pinned(position.backends):
            try:
                found = [loop.learn(record, period)
                         for record, period in itertools.chain(first, periods)]
            except OSError as error:
                raise TrainingError(f"{error.strerror or error} while writing to {run.folder}; "
                                    "the last complete checkpoint stands") from error
        return _summary(standing, config, found)


@dataclass
class _Loop:
    """What learning a period needs."""

    run: Run
    config: StreamRunConfig
    standing: Standing
    log: MetricsLog
    reporter: Reporter
    preemption: Preemption

    def learn(self, record: dict[str, Any], period: Period) -> dict[str, Any]:
        """Test on a period, learn it, and save. Returns its line of `metrics.jsonl`."""
        mark, stream, settings = time.perf_counter(), self.standing.stream, self.config.evaluate
        texts = {USERS: hashed(period.users), ITEMS: hashed(period.items)}
        figures, popular, protocol = tested(stream, texts[USERS].ids, texts[ITEMS].ids, settings)
        self.reporter.begin(len(period))
        losses, new = self._steps(period, texts)
        gone = stream.barrier()
        counts: dict[str, float] = {"interactions": len(period), "loss": float(losses.mean())}
        for name, ids in stream.ids.items():
            # Deltas compare exports: nobody asks this run for what is gone since one of them.
            ids.publish()
            live = ids.live
            counts |= {f"{name}_new": new[name], f"{name}_gone": len(gone[name].ids),
                       f"{name}_live": len(live)}
            self.standing.names[name] = names_of(
                live.ids[live.live()], self.standing.names[name], texts[name].names)
        position = self.standing.position
        position.periods.append(record)
        position.seconds += time.perf_counter() - mark
        metric = settings.metric
        line = {"seconds": position.seconds, **counts, **figures,
                **({f"popularity_{metric}": popular[metric]} if popular else {})}
        about = {"period": period.name, **({"protocol": protocol} if protocol else {})}
        # The line comes first: where a checkpoint is missing, the next start drops what is past it.
        self.log.write("period", stream.steps, line, about)
        save_standing(self.run, self.standing, self.config)
        self.reporter.say(_said(period.name, line, metric))
        if (stop := self.preemption.asked(stream.steps)) is not None:
            raise Preempted(f"{stop}: stopped after {period.name}, which is saved; resume the run "
                            "to go on")
        return {**about, "step": stream.steps, **line}

    def _steps(self, period: Period, texts: dict[str, Hashed]) -> tuple[np.ndarray, dict[str, int]]:
        """Losses of the steps of a period, whose ids are `texts`, and how many ids got rows."""
        stream, size = self.standing.stream, STEPS_AT_ONCE * self.config.stream.positions
        losses, new = [], dict.fromkeys(NAMES, 0)
        for first in range(0, len(period), size):
            if first and (stop := self.preemption.asked(stream.steps)) is not None:
                raise Preempted(f"{stop}: stopped within {period.name}, which is learnt again from "
                                f"its beginning; {len(self.standing.position.periods)} periods "
                                "are saved; resume the run to go on")
            part = slice(first, first + size)
            learnt = stream.learn(texts[USERS].ids[part], texts[ITEMS].ids[part],
                                  period.times[part],
                                  {name: one.checks[part] for name, one in texts.items()})
            losses.append(learnt.loss)
            new = {name: new[name] + learnt.new[name] for name in NAMES}
            self.reporter.advance(len(period.times[part]), f"loss {learnt.loss[-1]:.4f}")
        return np.concatenate(losses), new


def save_standing(run: Run, standing: Standing, config: StreamRunConfig) -> None:
    """Save everything behind a barrier; the checkpoint is written last, and makes it whole."""
    step = standing.stream.steps
    for name, names in standing.names.items():
        write_names(_names_path(run, name, step), names)
    standing.stream.save(run.folder, dataclasses.asdict(standing.position), config.checkpoint)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        stays = {_names_path(run, name, step) for step in checkpoints.steps() for name in NAMES}
    for path in _names_path(run, USERS, step).parent.iterdir():
        if path not in stays:
            path.unlink(missing_ok=True)


def _unlearnt(config: PeriodsConfig, files: Sequence[SourceFile], learnt: list[dict[str, Any]],
              reporter: Reporter) -> Iterator[tuple[dict[str, Any], Period]]:
    """The periods of `files` that are not among those that are `learnt`, which may grow meanwhile,
    each with what is kept of it."""
    known, real = 0, functools.cache(lambda path: Path(path).resolve())
    for file in files:
        path = str(file.path)
        try:
            digest = file_hash(file.path)
            done = {one["part"]: one["parts"] for one in learnt if one["sha256"] == digest}
            if any(one["sha256"] != digest and real(one["file"]) == real(path) for one in learnt):
                raise InputError(f"{path} has changed since it was learnt, and a stream does not "
                                 "forget; expected what is new in a file of its own")
            if done and len(done) == max(done.values()):
                known += 1
                continue
            periods = list(periods_of(config, file))
        except OSError as error:  # or it would be taken for one of writing
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        if not any(map(len, periods)):
            reporter.say(f"{file.name} has no interactions")
        for period in periods:
            if len(period) and period.part not in done:
                yield {"file": str(real(path)), "sha256": digest, "part": period.part,
                       "parts": len(periods), "interactions": len(period)}, period
    if known:
        reporter.say(f"{known} of {len(files)} files were learnt before")


def _said(name: str, line: dict[str, Any], metric: str) -> str:
    """The figures of a period, for people."""
    before = ""
    if metric in line:
        before = (f"; before learning it {metric} {line[metric]:.4f}, popularity "
                  f"{line[f'popularity_{metric}']:.4f}")
    ids = "; ".join(f"{kind} +{line[f'{kind}_new']:,} -{line[f'{kind}_gone']:,} = "
                    f"{line[f'{kind}_live']:,}" for kind in NAMES)
    return f"{name}: {line['interactions']:,} interactions{before}; loss {line['loss']:.4f}; {ids}"


def _summary(standing: Standing, config: StreamRunConfig, found: list[dict[str, Any]]
             ) -> dict[str, Any]:
    stream, position = standing.stream, standing.position
    return {"steps": stream.steps, "periods": found, "learnt_periods": len(position.periods),
            "learnt_interactions": sum(one["interactions"] for one in position.periods),
            **{f"{name}_live": len(ids.live) for name, ids in stream.ids.items()},
            "metric": config.evaluate.metric,
            "backends": backends.said(position.backends or {}),
            "train_seconds": round(position.seconds, 3)}


def _has_checkpoints(run: Run) -> bool:
    if not run.checkpoints.is_dir():
        return False
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        return bool(checkpoints.steps())


def _names_path(run: Run, name: str, step: int) -> Path:
    return run.folder / "names" / f"{name}-{step}.parquet"
