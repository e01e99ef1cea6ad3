"""Removing checkpoints, and finding what killed processes left, while other processes work.

A process that adds or removes checkpoints has the folder's lock (`folder_lock`) as long as that
takes: a few renames. A checkpoint that some process reads is pinned (`rec_jax.locks.Pin`) and is
not removed. A folder is renamed before its files are deleted, so that a kill leaves no half of a
checkpoint under its name. Only folders with names of this package are ever removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rec_jax import files, locks
from rec_jax.checkpoint.layout import MANIFEST, compacted_deltas, find_steps, step_name

WAIT_SECONDS = 60.0
"""How long to wait for another process that adds or removes checkpoints."""

_SAVE = re.compile(r"step_\d+\.orbax-checkpoint-tmp(-\d+)?")
_FULL = re.compile(r"step_\d+\.full(\.\w+)?\.tmp")
_REMOVED = re.compile(r"step_\d+(\.[\w-]+)*\.removed")
_DAMAGED = re.compile(r"step_\d+(\.full)?\.damaged(-\d+)?")

Kind = Literal["damaged", "save", "compaction", "removed"]


@dataclass(frozen=True)
class Leftover:
    """A folder beside the checkpoints that is no checkpoint.

    kind: damaged: it was moved aside; save, compaction: it is under way or was killed; removed:
      it is being deleted.
    """

    path: Path
    kind: Kind

    @property
    def size(self) -> int:
        """Bytes of its files, as far as they are still there."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total


def folder_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of a process that adds or removes checkpoints; raises InputError."""
    return locks.locked(folder, WAIT_SECONDS)


def leftovers(folder: Path) -> list[Leftover]:
    """Folders here that this package made and that are no checkpoints."""
    kinds: list[tuple[re.Pattern[str], Kind]] = [
        (_DAMAGED, "damaged"), (_SAVE, "save"), (_FULL, "compaction"), (_REMOVED, "removed")]
    return [Leftover(path, kind) for path in sorted(folder.iterdir()) for pattern, kind in kinds
            if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def abandoned(folder: Path) -> list[Leftover]:
    """Leftovers of killed processes, if no training saves here; a compaction locks its folder."""
    return [one for one in leftovers(folder) if one.kind == "save"
            or (one.kind == "compaction" and not locks.is_locked(one.path))]


def mark_removed(paths: Iterable[Path]) -> None:
    """Rename folders, so that they are gone at once; `delete_removed` deletes their files."""
    for path in paths:
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.removed"))
        files.flush(path.parent)


def delete_removed(folder: Path) -> None:
    """Delete the folders that `mark_removed` renamed; several processes may do so at once."""
    for one in leftovers(folder):
        if one.kind == "removed":
            shutil.rmtree(one.path, ignore_errors=True)


def remove_step(*names: Path | None) -> bool:
    """Remove a checkpoint under each of its names; False if some process reads it."""
    for path in names:
        if path is not None:
            with locks.unpinned(path / MANIFEST) as free:
                if not free:
                    return False
                mark_removed([path])
    return True


def remove_compacted(folder: Path) -> dict[int, Path]:
    """Remove deltas that were made full; return those that stay because some process reads them.

    A reader may have begun with the delta, or with a later one that builds on it.
    """
    found, pinned = compacted_deltas(folder), {}
    steps = find_steps(folder) if found else {}
    for step, path in found.items():
        later = [other for paths in (steps, found) for number, other in paths.items()
                 if number > step]
        if any(_is_pinned(one) for one in (path, *later)):
            pinned[step] = path
        else:
            mark_removed([path])
    return pinned


def move_aside(path: Path, step: int) -> None:
    """Give a damaged checkpoint a name of its own, so that its step can be saved again."""
    name, number = f"{step_name(step)}.damaged", 1
    while path.with_name(name).exists():
        number += 1
        name = f"{step_name(step)}.damaged-{number}"
    path.rename(path.with_name(name))
    files.flush(path.parent)


def _is_pinned(path: Path) -> bool:
    with locks.unpinned(path / MANIFEST) as free:
        return not free
