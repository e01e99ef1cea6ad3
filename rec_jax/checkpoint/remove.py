"""Taking checkpoints away, and finding what killed processes left, beside others at work.

Whoever changes which checkpoints there are holds the folder's lock (`changing`) for as long as
that takes: renames alone. A checkpoint that somebody reads is pinned (`rec_jax.locks.Pin`) and
stays. A folder is renamed before its files go, so that a kill leaves no half of a checkpoint under
its name. Of what a killed process left, only names that this package gives are touched.
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
from rec_jax.checkpoint.layout import SEAL, find_steps, shadowed, step_name

WAIT_SECONDS = 60.0
"""How long to wait for another process that changes which checkpoints there are."""

_SAVE = re.compile(r"step_\d+\.orbax-checkpoint-tmp(-\d+)?")
_FULL = re.compile(r"step_\d+\.full(\.\w+)?\.tmp")
_REMOVED = re.compile(r"step_\d+(\.[\w-]+)*\.removed")
_DAMAGED = re.compile(r"step_\d+(\.full)?\.damaged(-\d+)?")


@dataclass(frozen=True)
class Leftover:
    """A folder beside the checkpoints that is none.

    kind: set aside as damaged; a save or a compaction that is under way or was killed; or what is
      being removed.
    """

    path: Path
    kind: Literal["damaged", "save", "compaction", "removed"]

    @property
    def size(self) -> int:
        """Bytes of its files, as far as they are still there."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total


def changing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of whoever changes which checkpoints there are; raises InputError."""
    return locks.locked(folder, WAIT_SECONDS)


def leftovers(folder: Path) -> list[Leftover]:
    """What else than checkpoints this package has made here, by name."""
    kinds: list[tuple[re.Pattern[str], Literal["damaged", "save", "compaction", "removed"]]] = [
        (_DAMAGED, "damaged"), (_SAVE, "save"), (_FULL, "compaction"), (_REMOVED, "removed")]
    return [Leftover(path, kind) for path in sorted(folder.iterdir()) for pattern, kind in kinds
            if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def killed(folder: Path) -> list[Leftover]:
    """Leftovers of killed processes, where no training saves; a compaction locks its folder."""
    return [one for one in leftovers(folder) if one.kind == "save"
            or (one.kind == "compaction" and not locks.is_locked(one.path))]


def take_away(paths: Iterable[Path]) -> None:
    """Rename folders, so that they are gone at once; `sweep` deletes them."""
    for path in paths:
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.removed"))
        files.flush(path.parent)


def sweep(folder: Path) -> None:
    """Delete what was taken away; several processes may do so at once."""
    for one in leftovers(folder):
        if one.kind == "removed":
            shutil.rmtree(one.path, ignore_errors=True)


def remove_step(*names: Path | None) -> bool:
    """Take a checkpoint away under each of its names; False where somebody reads it."""
    for path in names:
        if path is not None:
            with locks.unpinned(path / SEAL) as free:
                if not free:
                    return False
                take_away([path])
    return True


def settle(folder: Path) -> dict[int, Path]:
    """Take deltas away that were made full; those that are read stay, and are returned.

    A reader may have begun with the delta, or with a later one that builds on it.
    """
    found, stay = shadowed(folder), {}
    steps = find_steps(folder) if found else {}
    for step, path in found.items():
        later = [other for paths in (steps, found) for number, other in paths.items()
                 if number > step]
        if any(_pinned(one) for one in (path, *later)):
            stay[step] = path
        else:
            take_away([path])
    return stay


def set_aside(path: Path, step: int) -> None:
    """Give a damaged checkpoint a name of its own, so that its step can be saved again."""
    name, number = f"{step_name(step)}.damaged", 1
    while path.with_name(name).exists():
        number += 1
        name = f"{step_name(step)}.damaged-{number}"
    path.rename(path.with_name(name))
    files.flush(path.parent)


def _pinned(path: Path) -> bool:
    with locks.unpinned(path / SEAL) as free:
        return not free
