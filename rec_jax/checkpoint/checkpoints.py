"""The checkpoints of a run: saved behind the training, complete or absent, restored bit for bit."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from rec_jax.checkpoint import remove
from rec_jax.checkpoint.compact import write_full
from rec_jax.checkpoint.hold import hold
from rec_jax.checkpoint.keep import best_step, chain, kept_steps
from rec_jax.checkpoint.layout import (
    ITEM_NAME,
    Damaged,
    Info,
    Missing,
    find_steps,
    first_line,
    shadowed,
    step_name,
)
from rec_jax.checkpoint.opened import Opened, open_step, read_step_info
from rec_jax.checkpoint.read import blocks
from rec_jax.checkpoint.remove import Leftover, changing
from rec_jax.checkpoint.seal import SealedFolder, check_seal
from rec_jax.checkpoint.write import HandlerArgs, StateHandler, StateSave
from rec_jax.errors import InputError, TrainingError

COPY_BYTES = 256 * 2**20
"""Largest state that is copied in host memory so that training goes on while it is written."""

T = TypeVar("T")
Warn = Callable[[str], None]


def shout(message: str) -> None:
    """A warning on stderr that does not drown in other lines."""
    bar = "!" * 78
    print(f"\n{bar}\n!! {message}\n{bar}\n", file=sys.stderr, flush=True)


def _raised_anyway(record: logging.LogRecord) -> bool:
    """False for orbax's page of traceback about an error that `wait` raises in one line."""
    return "background save thread" not in str(record.msg)


class Checkpoints:
    """The checkpoints of one folder.

    A context manager: leaving it waits for the writes that are under way. Others may read, prune
    and compact at the same time, in any process; one at a time may save.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, keep_every: int | None = None,
                 read_only: bool = False, alone: bool = True, copy_bytes: int = COPY_BYTES,
                 moving: float = 1.0, growth_bytes: float = math.inf,
                 warn: Warn = shout) -> None:
        """Open a folder; the one that saves clears away what an interrupted save left.

        keep: latest checkpoints that stay; the best one and what a delta builds on stay too.
        keep_every: checkpoints whose step it divides stay as well.
        read_only: nothing in the folder changes, not even what a running save has begun.
        alone: no other process saves here; otherwise its save stays, and nothing is cleared away.
        copy_bytes: a state of at most so many bytes in host memory is copied there; a larger one
          is frozen by a forked process, on Linux, and written behind the training as well. On
          accelerators the copy is made in their own memory. Where there is no room, the state is
          written in blocks while the training waits.
        moving: share of the state that may change while it is written: it is what a frozen one
          may come to take, so that much has to be free.
        growth_bytes: the most that this may be; where it is more, the training waits.
        warn: hears of damaged checkpoints that are passed over.
        """
        self.folder = Path(folder).absolute()
        self._keep, self._every = keep, keep_every
        self._read_only, self._alone = read_only, alone
        self._hold = partial(hold, copy_bytes=copy_bytes, moving=moving,
                             growth_bytes=growth_bytes)
        self._warn = warn
        self._saving: int | None = None
        self._writer: ocp.AsyncCheckpointer | None = None
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
            if error is None:  # otherwise the first error is the one to hear of
                raise
        finally:
            if self._writer is not None:
                self._writer.close()
                logging.getLogger("absl").removeFilter(_raised_anyway)

    def save(self, step: int, items: Mapping[str, Any], extra: Mapping[str, Any],
             metric: float | None = None, *, base: int | None = None) -> None:
        """Start saving; the arrays may be changed or given away when this returns.

        items: pytrees of arrays by name; extra: JSON-able.
        metric: larger is better; the first checkpoint with the largest one is kept.
        base: of a delta, the step whose rows its `Touched` leaves change.

        Raises:
          TrainingError: this save or the one before it could not be written.
        """
        for name in items:
            if not ITEM_NAME.fullmatch(name):
                raise InputError(f"item name {name!r}; expected lower-case letters")
        self.wait()
        if step in self.steps():
            return
        given = HandlerArgs(items, Info(step, metric, base, dict(extra)), self._hold)
        self._saving = step
        try:
            self._orbax().save(self.folder / step_name(step), args=StateSave(given))
        except Exception as error:
            self._failed(error)

    def wait(self) -> None:
        """Return when every started save is complete on disk, and old ones are gone.

        Raises:
          TrainingError: a save could not be written; what it left is cleared away.
        """
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            self._failed(error)
        if self._saving is not None:
            self._saving = None
            try:
                self.prune(self._keep, self._every)
            except InputError as error:  # such as a stopped process that has the lock
                self._warn(f"old checkpoints stay for now: {error}")

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return list(find_steps(self.folder))

    def latest(self) -> int | None:
        """The newest complete step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The first step with the largest metric, or the newest where none was measured."""
        return best_step(self.infos().values())

    def infos(self) -> dict[int, Info]:
        """What each checkpoint says about itself; damaged ones are left out, with a warning."""
        return self._infos(find_steps(self.folder), self._warn)

    def _infos(self, paths: Mapping[int, Path], warn: Warn) -> dict[int, Info]:
        found = {}
        for step, path in paths.items():
            try:
                info = self._path_info(path, step)
                found[step] = self.info(step) if info is None else info
            except Missing:
                continue  # removed meanwhile
            except Damaged as error:
                warn(f"{error}; checkpoint {step_name(step)} is passed over")
        return found

    def info(self, step: int) -> Info:
        """What the checkpoint of `step` says about itself; raises `Damaged` or `Missing`."""
        return self._look(step, lambda paths: read_step_info(paths[step], step, self.folder.name))

    def size(self, step: int) -> int:
        """Bytes of a checkpoint's own files, after a look at their sizes; raises `Damaged`."""
        return self._look(step, lambda paths: check_seal(paths[step]))

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        return self.info(step).extra

    def open(self, step: int) -> Opened:
        """Check the files of a checkpoint, and of all that it builds on.

        As long as what is returned lives, no process removes them.

        Raises:
          Damaged: something is not as it was written.
          Missing: there is no such checkpoint, or no longer.
        """
        return self._look(step, lambda paths: open_step(paths, step, self.folder.name))

    def restore(self, step: int, like: Mapping[str, Any], *, cast: bool = False,
                widen: bool = False) -> dict[str, Any]:
        """The named pytrees of `step`, in the structure, types and shardings of `like`.

        like: pytrees by name, of arrays or `jax.ShapeDtypeStruct`; names that are not asked
          for are not read. Any mesh and device count will do.
        cast: f32 may become bf16 (rounded to nearest) and bf16 f32; widen: only the latter;
          otherwise types must agree.

        Raises:
          Damaged: the checkpoint is not as it was written.
          InputError: it holds another structure, or other shapes or types.
        """
        return self.open(step).restore(like, cast=cast, widen=widen)

    def newest(self, load: Callable[[int], T]) -> tuple[int, T] | None:
        """(step, `load(step)`) of the newest checkpoint that is not damaged; None if there is none.

        A damaged one is named in a warning and passed over; a writer sets it aside under the
        name `step_N.damaged`, so that its step can be saved again.

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
            if step in shadowed(self.folder) and self._may_change():
                steps.append(step)  # the delta that was made full
            then = f"going on from step {steps[-1]}" if steps else "there is none before it"
            self._warn(f"DAMAGED CHECKPOINT {self._name(step)} IS PASSED OVER ({problem}); {then}")
            if steps and self._may_change():
                with changing(self.folder):
                    remove.set_aside(self._path(step), step)
        if problem is not None:
            raise problem
        return None

    def verify(self, step: int) -> int:
        """Read every byte of a checkpoint and of what it builds on, against all checksums.

        Returns the bytes of its own files.

        Raises:
          Damaged: naming the first file that is not as it was written.
        """
        opened = self.open(step)
        for sources in opened.items.values():
            for source in sources.values():
                if source.shape:
                    for _ in blocks(source):
                        pass
                else:
                    source.read(0, 1)
        return opened.size

    def compact(self, step: int) -> None:
        """Make a delta full: it no longer needs its base. Memory: a few blocks.

        The delta stands until the full checkpoint is complete. Nothing happens to a full one.

        Raises:
          TrainingError: it could not be written; the delta stands.
        """
        opened = self.open(step)
        if opened.info.base is None:
            return
        try:
            write_full(self.folder, opened)
            remove.sweep(self.folder)
        except OSError as error:
            raise TrainingError(f"checkpoint {self._name(step)} could not be made full: "
                                f"{error.strerror or error}; it stands as a delta") from error

    def prune(self, keep: int, every: int | None = None) -> list[int]:
        """Remove all but the `keep` latest checkpoints, the best, and every `every`-th; which.

        What a kept one builds on stays, and so does what any process reads now.
        """
        if not self._may_change():
            return []
        with changing(self.folder):
            shadows = remove.settle(self.folder)
            paths = find_steps(self.folder)
            # Damaged ones are not ours to throw away: somebody may want to look at them.
            infos = self._infos(paths, lambda _: None)
            stay = kept_steps(infos.values(), latest=keep, every=every)
            for step, path in shadows.items():
                info = self._path_info(path, step)
                stay |= set(chain(infos if info is None else {**infos, step: info}, step))
            gone: list[int] = []
            for step in sorted(infos, reverse=True):  # a delta goes before its base
                if step in stay:
                    continue
                if remove.remove_step(shadows.get(step), paths[step]):
                    gone.append(step)
                else:
                    stay |= set(chain(infos, step))
        remove.sweep(self.folder)
        return sorted(gone)

    def clear(self, *, damaged: bool = False) -> list[str]:
        """Take away what killed processes left, or with `damaged` what was set aside; the names.

        For whoever alone may save here. This takes a moment only: `prune` deletes the files.
        """
        if not self._may_change():
            return []
        with changing(self.folder):
            found = ([one for one in self.leftovers() if one.kind == "damaged"] if damaged
                     else remove.killed(self.folder))
            remove.take_away(one.path for one in found)
            remove.settle(self.folder)
        return [one.path.name for one in found]

    def leftovers(self) -> list[Leftover]:
        """What else lies in the folder: set aside, under way, or left by a killed process."""
        return remove.leftovers(self.folder)

    def _may_change(self) -> bool:
        """Of several processes that save together the first one does.

        Others do not ask which process they are: that opens devices, which the training has.
        """
        return not self._read_only and (not self._alone or jax.process_index() == 0)

    def _look(self, step: int, look: Callable[[dict[int, Path]], T]) -> T:
        """`look(paths by step)`, once more where one of these was moved or removed meanwhile."""
        while True:
            paths = find_steps(self.folder)
            if step not in paths:
                has = ", ".join(map(str, paths)) or "none"
                raise Missing(f"{self.folder} has no checkpoint of step {step}; it has {has}")
            try:
                return look(paths)
            except Damaged:
                if all(path.is_dir() for path in paths.values()):
                    raise

    def _path_info(self, path: Path, step: int) -> Info | None:
        try:
            return read_step_info(path, step, self.folder.name)
        except Damaged:
            return None

    def _path(self, step: int) -> Path:
        return self._look(step, lambda paths: paths[step])

    def _name(self, step: int) -> str:
        return f"{self.folder.name}/{step_name(step)}"

    def _orbax(self) -> ocp.AsyncCheckpointer:
        if self._writer is None:
            logging.getLogger("absl").addFilter(_raised_anyway)
            self._writer = ocp.AsyncCheckpointer(
                StateHandler(), temporary_path_class=SealedFolder,
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False))
        return self._writer

    def _failed(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        self._clear_after("the save")
        last = self.latest()
        stands = "there is none before it" if last is None else f"that of step {last} stands"
        raise TrainingError(f"checkpoint {self.folder.name}/{step_name(step or 0)} could not be "
                            f"written: {first_line(error)}; {stands}") from error

    def _clear_after(self, what: str) -> None:
        try:
            self.clear()
            if self._may_change():
                remove.sweep(self.folder)
        except InputError as error:  # such as a stopped process that has the lock
            self._warn(f"what {what} left stays for now: {error}")
