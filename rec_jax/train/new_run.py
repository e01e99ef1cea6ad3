"""The folder of a new run, which stays only where what was asked fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.run import Run


@contextlib.contextmanager
def new_run(run: Run, config: Any) -> Iterator[None]:
    """Make the folder of a new run with its config. Where the block ends in an InputError and no
    checkpoint was saved, the folder is no run again: who resumed it would train something else,
    such as a run that starts from nothing in the place of another one's rows.

    Raises:
      InputError: there is a run in it already.
    """
    run.create(config)
    try:
        yield
    except InputError:
        if not _saved(run):
            run.config_path.unlink(missing_ok=True)
            for folder in (run.checkpoints, run.folder):
                with contextlib.suppress(OSError):  # there is something else in it
                    folder.rmdir()
        raise


def _saved(run: Run) -> bool:
    if not run.checkpoints.is_dir():
        return False
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        return bool(checkpoints.steps())
