"""The checkpoints of a run: saved in the background, retained by rule, complete or absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from rec_jax.checkpoint import removal
from rec_jax.checkpoint.compact import write_full
from rec_jax.checkpoint.errors import Damaged, Missing, describe_cause
from rec_jax.checkpoint.folder import CheckpointFolder, T, Warn, warn_loudly
from rec_jax.checkpoint.index import CheckpointInfo
from rec_jax.checkpoint.layout import ITEM_NAME, compacted_deltas, find_steps, step_name
from rec_jax.checkpoint.removal import folder_lock
from rec_jax.checkpoint.retention import delta_chain, retained_steps
from rec_jax.checkpoint.save_handler import SaveRequest
from rec_jax.checkpoint.saver import Saver
from rec_jax.checkpoint.staging import COPY_BYTES, stage
from rec_jax.errors import InputError, TrainingError


class Checkpoints(CheckpointFolder):
    """The checkpoints of one folder, for the process that saves them, or removes some.

    A context manager: leaving it waits for the writes that are under way. Others may read, prune
    and compact at the same time, in any process; one at a time may save.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, keep_every: int | None = None,
                 read_only: bool = False, alone: bool = True, copy_bytes: int = COPY_BYTES,
                 moving: float = 1.0, growth_bytes: float = math.inf,
                 warn: Warn = warn_loudly) -> None:
        """Open a folder; the process that saves removes what an interrupted save left.

        keep: latest checkpoints that stay; the best one and what a delta builds on stay too.
        keep_every: checkpoints whose step it divides stay as well.
        read_only: nothing in the folder changes, not even what a running save has begun.
        alone: no other process saves here; otherwise its save stays, and nothing is removed.
        copy_bytes: a state of at most so many bytes in host memory is copied there; for a larger
          one a forked process keeps a snapshot, on Linux. Both are written in the background. On
          accelerators the copy is made in their own memory. Where there is no room, the state is
          written in blocks while the training waits.
        moving: share of the state that may change while it is written: a snapshot may come to
          need so much memory, which must be free.
        growth_bytes: the most that this may be; where it is more, the training waits.
        warn: is called with a line for each damaged checkpoint that is skipped.
        """
        super().__init__(folder, warn)
        self._keep, self._every = keep, keep_every
        self._read_only, self._alone = read_only, alone
        self._stage = partial(stage, copy_bytes=copy_bytes, moving=moving,
                              growth_bytes=growth_bytes)
        self._saver = Saver()
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            if alone:
                self._clear_after("an interrupted save")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.wait()
        except TrainingError:
            if error is None:  # otherwise the first error is the one to report
                raise
        finally:
            self._saver.close()

    def save(self, step: int, items: Mapping[str, Any], extra: Mapping[str, Any],
             metric: float | None = None, *, base: int | None = None) -> None:
        """Start saving; the arrays may be changed or given away when this returns.

        items: pytrees of arrays by name; extra: JSON-able.
        metric: larger is better; the first checkpoint with the largest one is kept.
        base: of a delta, the step whose rows its `UpdatedRows` leaves change.

        Raises:
          TrainingError: this save or the one before it could not be written.
        """
        for name in items:
            if not ITEM_NAME.fullmatch(name):
                raise InputError(f"item name {name!r}; expected lower-case letters")
        self.wait()
        if step in self.steps():
            return
        request = SaveRequest(items, CheckpointInfo(step, metric, base, dict(extra)), self._stage)
        self._attempt(lambda: self._saver.start(self.folder / step_name(step), request))

    def wait(self) -> None:
        """Return when every started save is complete on the disk, and old ones are removed.

        Raises:
          TrainingError: a save could not be written; what it left is removed.
        """
        self._attempt(self._saver.wait)
        if self._saver.finish() is not None:
            try:
                self.prune(self._keep, self._every)
            except InputError as error:  # such as a stopped process that has the lock
                self._warn(f"old checkpoints stay for now: {error}")

    def newest(self, load: Callable[[int], T]) -> tuple[int, T] | None:
        """(step, `load(step)`) of the newest checkpoint that is not damaged; None if there is none.

        A damaged one is named in a warning and skipped; a process that may save moves it aside to
        the name `step_N.damaged`, so that its step can be saved again.

        Raises:
          Damaged: every checkpoint is.
        """
        steps, problem = self.steps(), None
        while steps:
            step = steps.pop()
            try:
                return step, load(step)
            except Missing:
                continue  # removed meanwhile
            except Damaged as error:
                problem = error
            if step in compacted_deltas(self.folder) and self._may_change():
                steps.append(step)  # the delta that was made full
            then = f"going on from step {steps[-1]}" if steps else "there is none before it"
            self._warn(f"DAMAGED CHECKPOINT {self._name(step)} IS PASSED OVER ({problem}); {then}")
            if steps and self._may_change():
                with folder_lock(self.folder):
                    removal.move_aside(self._path(step), step)
        if problem is not None:
            raise problem
        return None

    def compact(self, step: int) -> None:
        """Make a delta full: it no longer needs its base. Memory: a few blocks.

        The delta stays until the full checkpoint is complete. A full one is left as it is.

        Raises:
          TrainingError: it could not be written; the delta stays.
        """
        reader = self.open(step)
        if reader.info.base is None:
            return
        try:
            write_full(self.folder, reader)
            removal.delete_removed(self.folder)
        except OSError as error:
            raise TrainingError(f"checkpoint {self._name(step)} could not be made full: "
                                f"{error.strerror or error}; it stands as a delta") from error

    def prune(self, keep: int, every: int | None = None) -> list[int]:
        """Remove all but the `keep` latest checkpoints, the best, and every `every`-th; which.

        What a retained one builds on stays, and so does what any process reads now.
        """
        if not self._may_change():
            return []
        with folder_lock(self.folder):
            deltas = removal.remove_compacted(self.folder)
            paths = find_steps(self.folder)
            # Damaged ones are not ours to remove: somebody may want to look at them.
            infos = self._infos(paths, lambda _: None)
            retained = retained_steps(infos.values(), latest=keep, every=every)
            for step, path in deltas.items():
                info = self._path_info(path, step)
                known = infos if info is None else {**infos, step: info}
                retained |= set(delta_chain(known, step))
            removed: list[int] = []
            for step in sorted(infos, reverse=True):  # a delta goes before its base
                if step in retained:
                    continue
                if removal.remove_step(deltas.get(step), paths[step]):
                    removed.append(step)
                else:
                    retained |= set(delta_chain(infos, step))
        removal.delete_removed(self.folder)
        return sorted(removed)

    def clear(self, *, damaged: bool = False) -> list[str]:
        """Remove what killed processes left, or with `damaged` the damaged ones; their names.

        Only for a process that alone may save here. It takes a moment: `prune` deletes the files.
        """
        if not self._may_change():
            return []
        with folder_lock(self.folder):
            found = ([one for one in self.leftovers() if one.kind == "damaged"] if damaged
                     else removal.abandoned(self.folder))
            removal.mark_removed(one.path for one in found)
            removal.remove_compacted(self.folder)
        return [one.path.name for one in found]

    def _may_change(self) -> bool:
        """Of several processes that save together, the first one may change the folder.

        Others do not ask which process they are: that opens devices, which the training has.
        """
        return not self._read_only and (not self._alone or jax.process_index() == 0)

    def _attempt(self, work: Callable[[], None]) -> None:
        """Run a part of a save; where it fails, remove what it left and raise TrainingError."""
        try:
            work()
        except Exception as error:
            step = self._saver.finish()
            self._saver.settle()
            self._clear_after("the save")
            last = self.latest()
            stands = "there is none before it" if last is None else f"that of step {last} stands"
            raise TrainingError(f"checkpoint {self._name(step or 0)} could not be written: "
                                f"{describe_cause(error)}; {stands}") from error

    def _clear_after(self, what: str) -> None:
        try:
            self.clear()
            if self._may_change():
                removal.delete_removed(self.folder)
        except InputError as error:  # such as a stopped process that has the lock
            self._warn(f"what {what} left stays for now: {error}")
