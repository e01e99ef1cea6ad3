"""The checkpoints of a run: saved behind the training, complete or absent, restored bit for bit."""

from __future__ import annotations

import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from rec_jax.checkpoint.blocks import flush
from rec_jax.checkpoint.compact import write_full
from rec_jax.checkpoint.hold import hold
from rec_jax.checkpoint.keep import best_step, kept_steps
from rec_jax.checkpoint.layout import (
    ITEM_NAME,
    LEAVES,
    Damaged,
    Info,
    find_steps,
    first_line,
    named_leaves,
    read_info,
    step_name,
)
from rec_jax.checkpoint.read import Source, blocks, open_item, place
from rec_jax.checkpoint.seal import SealedFolder, check_seal
from rec_jax.checkpoint.write import HandlerArgs, StateHandler, StateSave
from rec_jax.errors import InputError, TrainingError

COPY_BYTES = 256 * 2**20
"""Largest state that is copied in host memory so that training goes on while it is written."""

T = TypeVar("T")
Warn = Callable[[str], None]
_FLOATS = ("float32", "bfloat16")


def shout(message: str) -> None:
    """A warning on stderr that does not drown in other lines."""
    bar = "!" * 78
    print(f"\n{bar}\n!! {message}\n{bar}\n", file=sys.stderr, flush=True)


def _raised_anyway(record: logging.LogRecord) -> bool:
    """False for orbax's page of traceback about an error that `wait` raises in one line."""
    return "background save thread" not in str(record.msg)


@dataclass(frozen=True)
class Opened:
    """One checkpoint, its files held against its seal; arrays are read when asked for.

    items: sources of its leaves, by item and path.
    size: bytes of its files, without those of a delta's base.
    """

    name: str
    info: Info
    items: dict[str, dict[str, Source]]
    size: int

    def restore(self, like: Mapping[str, Any], *, cast: bool = False,
                widen: bool = False) -> dict[str, Any]:
        """The named pytrees in the structure, types and shardings of `like`; see `Checkpoints`."""
        matched = {name: self._match(name, tree, cast, widen) for name, tree in like.items()}
        found = {}
        for name, tree in like.items():
            leaves = [place(source, leaf) for source, leaf in zip(
                matched[name], jax.tree.leaves(tree), strict=True)]
            found[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return found

    def _match(self, name: str, tree: Any, cast: bool, widen: bool) -> list[Source]:
        """The sources of a pytree's leaves, all checked before anything is read."""
        if name not in self.items:
            raise InputError(f"checkpoint {self.name} has no item {name!r}; it has "
                             f"{', '.join(sorted(self.items))}")
        sources, wanted = self.items[name], named_leaves(tree)
        for kind, paths in (("lacks", wanted.keys() - sources.keys()),
                            ("has", sources.keys() - wanted.keys())):
            if paths:
                raise InputError(f"checkpoint {self.name} does not fit: its item {name!r} {kind} "
                                 f"{len(paths)} leaves such as {min(paths)}"
                                 f"{', which the config has no place for' * (kind == 'has')}")
        for path, leaf in wanted.items():
            source, dtype = sources[path], np.dtype(leaf.dtype)
            if tuple(leaf.shape) != source.shape:
                raise InputError(f"checkpoint {self.name} does not fit: {name}{path} is "
                                 f"{list(source.shape)}, expected {list(leaf.shape)}")
            both_float = dtype.name in _FLOATS and source.dtype.name in _FLOATS
            wider = widen and dtype.itemsize > source.dtype.itemsize
            if dtype != source.dtype and not (both_float and (cast or wider)):
                raise InputError(f"checkpoint {self.name} does not fit: {name}{path} is "
                                 f"{source.dtype}, expected {dtype}")
        return [sources[path] for path in wanted]


class Checkpoints:
    """The checkpoints of one folder.

    A context manager: leaving it waits for the writes that are under way.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, keep_every: int | None = None,
                 read_only: bool = False, copy_bytes: int = COPY_BYTES,
                 moving: float = 1.0, growth_bytes: float = math.inf,
                 warn: Warn = shout) -> None:
        """Open a folder; a writer clears away what an interrupted save left.

        keep: latest checkpoints that stay; the best one and what a delta builds on stay too.
        keep_every: checkpoints whose step it divides stay as well.
        read_only: nothing in the folder changes, not even what a running save has begun.
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
        self._keep, self._every, self._read_only = keep, keep_every, read_only
        self._hold = partial(hold, copy_bytes=copy_bytes, moving=moving,
                             growth_bytes=growth_bytes)
        self._warn = warn
        self._saving: int | None = None
        self._writer: ocp.AsyncCheckpointer | None = None
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()

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
            self.prune(self._keep, self._every)

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
        found = {}
        for step in self.steps():
            try:
                found[step] = self.info(step)
            except Damaged as error:
                self._warn(f"{error}; checkpoint {step_name(step)} is passed over")
        return found

    def info(self, step: int) -> Info:
        """What the checkpoint of `step` says about itself; raises `Damaged`."""
        info = read_info(self._path(step))
        if info.step != step:
            raise Damaged(f"checkpoint {self._name(step)} says that it is of step {info.step}")
        return info

    def size(self, step: int) -> int:
        """Bytes of a checkpoint's own files, after a look at their sizes; raises `Damaged`."""
        return check_seal(self._path(step))

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        return self.info(step).extra

    def open(self, step: int) -> Opened:
        """Check the files of a checkpoint, and of all that it builds on.

        Raises:
          Damaged: something is not as it was written.
        """
        path, info = self._path(step), self.info(step)
        size = check_seal(path, hashes=True)
        base = None if info.base is None else self._base(step, info.base)
        items = {}
        for index in sorted(path.glob(f"*/{LEAVES}")):
            name = index.parent.name
            items[name] = open_item(index.parent, None if base is None else base.items.get(name))
        return Opened(self._name(step), info, items, size)

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
        for step in reversed(steps):
            try:
                return step, load(step)
            except Damaged as error:
                problem = error
                rest = [other for other in steps if other < step]
                then = f"going on from step {rest[-1]}" if rest else "there is none before it"
                self._warn(f"DAMAGED CHECKPOINT {self._name(step)} IS PASSED OVER ({error}); "
                           f"{then}")
                if not self._read_only and rest:
                    self._set_aside(step)
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
        """
        opened = self.open(step)
        if opened.info.base is not None:
            write_full(self.folder, opened.info, opened.items)
            self._remove(self.folder / step_name(step))

    def prune(self, keep: int, every: int | None = None) -> list[int]:
        """Remove all but the `keep` latest checkpoints, the best, and every `every`-th; which."""
        if jax.process_index() != 0 or self._read_only:
            return []
        infos = {}
        for step in self.steps():
            try:
                infos[step] = self.info(step)
            except Damaged:
                continue  # it is not ours to throw away what somebody may want to look at
        stay = kept_steps(infos.values(), latest=keep, every=every)
        gone = [step for step in infos if step not in stay]
        for step in gone:
            self._remove(self._path(step))
        return gone

    def _base(self, step: int, base: int) -> Opened:
        if base not in self.steps():
            raise Damaged(f"checkpoint {self._name(step)} changes step {base}, which is missing")
        return self.open(base)

    def _path(self, step: int) -> Path:
        found = find_steps(self.folder)
        if step not in found:
            has = ", ".join(map(str, found)) or "none"
            raise InputError(f"{self.folder} has no checkpoint of step {step}; it has {has}")
        return found[step]

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
        self._clear()
        last = self.latest()
        stands = "there is none before it" if last is None else f"that of step {last} stands"
        raise TrainingError(f"checkpoint {self.folder.name}/{step_name(step or 0)} could not be "
                            f"written: {first_line(error)}; {stands}") from error

    def _clear(self) -> None:
        """Remove what interrupted saves and removals left."""
        if jax.process_index() == 0:
            for path in self.folder.glob("step_*"):
                if path.name.endswith((".orbax-checkpoint-tmp", ".removed", ".tmp")):
                    shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill in the middle must not leave half a checkpoint under its name.
        away = path.with_name(path.name + ".removed")
        shutil.rmtree(away, ignore_errors=True)
        path.rename(away)
        flush(self.folder)
        shutil.rmtree(away, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            path = self._path(step)
            away = path.with_name(step_name(step) + ".damaged")
            shutil.rmtree(away, ignore_errors=True)
            path.rename(away)
            flush(self.folder)



