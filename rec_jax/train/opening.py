"""Which run a training works on: a new one, one that is resumed, or the newest of a config."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rec_jax import config as configs
from rec_jax import shipped
from rec_jax.errors import InputError
from rec_jax.run import Run, RunConfig
from rec_jax.train.resume import changes

AUTO = "auto"
Source = Path | str


def has_section(section: str, of: type[Any], config: Any) -> bool:
    """Whether a config, or the file of one, is of a class: it alone has the section in its file."""
    if isinstance(config, str | Path):
        return section in configs.read_mapping(shipped.locate(config))
    return isinstance(config, of)


def open_run(config: Any, run: Source | None, overrides: Sequence[str],
             resume: Source | None, *, force: bool = False, trust_code: bool = False,
             of: type[Any] = RunConfig) -> tuple[Run, Any]:
    """The run and the config that it is trained with.

    resume: folder of a run; or "auto": the run in folder `run` if it has begun, or the newest
      one in runs/ with this config, or else a new one, so that a scheduler can repeat one
      command.
    force: take the given config although it changes the run's numbers.
    trust_code: the config, or that of the run, may name modules of third parties.
    of: the class of the config.

    Raises:
      InputError: no such run, another config than the run's, or a folder that is in use.
    """
    given = config
    if isinstance(config, str | Path):
        given = configs.load(of, shipped.locate(config), overrides, trust_code=trust_code)
    elif config is not None and overrides:
        raise InputError("overrides need the path of a config file, not a config object")
    if resume == AUTO:
        if not isinstance(given, of):
            raise InputError("--resume auto needs the config of the run")
        found = Run(Path(run), trust_code) if run is not None else _newest(given)
        if found is not None and found.config_path.exists():
            return found, _agreed(found, given, force)
        resume = None
    if resume is None:
        if not isinstance(given, of):
            raise InputError("train needs a config, or the run to resume")
        target = Run(Path(run) if run is not None else _dated(config), trust_code)
        target.check_free()
        return target, given
    if run is not None:
        raise InputError("a resumed run keeps its folder; leave `run` out")
    target = Run(Path(resume), trust_code)
    target.check_begun()
    own = configs.load(of, target.config_path, trust_code=trust_code)
    if given is None:
        if overrides:
            own = configs.load(of, target.config_path, overrides, trust_code=trust_code)
        return target, _agreed(target, own, force)
    if not isinstance(given, of):
        raise InputError("train needs a config, or the run to resume")
    return target, _agreed(target, given, force)


def _agreed(run: Run, given: Any, force: bool) -> Any:
    changed = changes(run.saved_config(), given)
    if changed and not force:
        raise InputError(f"run {run.folder} was started with another config ({changed}); "
                         "resume it without one, start a new run, or --force it")
    return given


def _newest(config: Any) -> Run | None:
    """The run of this config that was written to last."""
    return max(_runs_of(config), key=lambda run: _touched(run), default=None)


def _runs_of(config: Any) -> Iterator[Run]:
    for path in Path("runs").glob("*/config.toml"):
        run = Run(path.parent)
        try:
            same = changes(run.saved_config(), config) is None
        except InputError:
            continue  # of another version, or damaged: not this run
        if same:
            yield run


def _touched(run: Run) -> float:
    paths = [run.config_path, run.checkpoints]
    return max(path.stat().st_mtime for path in paths if path.exists())


def _dated(config: Any) -> Path:
    name = Path(config).stem if isinstance(config, str | Path) else "run"
    now = datetime.datetime.now()
    return Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"
