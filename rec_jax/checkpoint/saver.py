"""Saving, one checkpoint at a time: orbax writes in the background and commits by a rename."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from rec_jax.checkpoint.manifest import DurableFolder
from rec_jax.checkpoint.save_handler import SaveRequest, StateHandler, StateSave

_MOST_ERRORS = 8
"""More than one save can raise, one at a time."""


def _is_not_repeated(record: logging.LogRecord) -> bool:
    """False for orbax's page of traceback about an error that `wait` raises in one line."""
    return "background save thread" not in str(record.msg)


class Saver:
    """Starts saves and waits for them; orbax is set up by the first save."""

    def __init__(self) -> None:
        self._orbax: ocp.AsyncCheckpointer | None = None
        self._step: int | None = None

    def start(self, path: Path, request: SaveRequest) -> None:
        """Start to save into `path`; raises what orbax or the system raises."""
        self._step = request.info.step
        self._checkpointer().save(path, args=StateSave(request))

    def wait(self) -> None:
        """Return when the save is complete on the disk; raises what orbax or the system raises."""
        if self._orbax is not None:
            self._orbax.wait_until_finished()

    def finish(self) -> int | None:
        """The step of the save that was started last, once; None where there was none."""
        step, self._step = self._step, None
        return step

    def settle(self) -> None:
        """After a failure: return when nothing of that save runs any more, whatever else it raises.

        Orbax writes small files in a thread of their own, and the first error hides theirs, which
        the next save would raise.
        """
        for _ in range(_MOST_ERRORS):
            try:
                self.wait()
                return
            except Exception:  # what failed has been said
                continue

    def close(self) -> None:
        """Release what orbax has."""
        if self._orbax is not None:
            self._orbax.close()
            logging.getLogger("absl").removeFilter(_is_not_repeated)

    def _checkpointer(self) -> Any:
        if self._orbax is None:
            logging.getLogger("absl").addFilter(_is_not_repeated)
            self._orbax = ocp.AsyncCheckpointer(
                StateHandler(), temporary_path_class=DurableFolder,
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False))
        return self._orbax
