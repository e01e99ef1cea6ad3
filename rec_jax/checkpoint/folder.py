"""The checkpoints of one folder as they are found and read, while other processes change them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rec_jax.checkpoint.errors import Damaged, Missing
from rec_jax.checkpoint.index import CheckpointInfo
from rec_jax.checkpoint.layout import find_steps, step_name
from rec_jax.checkpoint.manifest import check_manifest
from rec_jax.checkpoint.reader import CheckpointReader, open_checkpoint, read_step_info
from rec_jax.checkpoint.removal import Leftover, leftovers
from rec_jax.checkpoint.retention import best_step

T = TypeVar("T")
Warn = Callable[[str], None]


def warn_loudly(message: str) -> None:
    """Print a warning on stderr that is not overlooked among other lines."""
    bar = "!" * 78
    print(f"\n{bar}\n!! {message}\n{bar}\n", file=sys.stderr, flush=True)


class CheckpointFolder:
    """The checkpoints of one folder, for readers: nothing in the folder changes."""

    def __init__(self, folder: Path | str, warn: Warn = warn_loudly) -> None:
        """warn: is called with a line for each damaged checkpoint that is skipped."""
        self.folder = Path(folder).absolute()
        self._warn = warn

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return list(find_steps(self.folder))

    def latest(self) -> int | None:
        """The newest complete step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The first step with the largest metric, or the newest where none was measured."""
        return best_step(self.infos().values())

    def infos(self) -> dict[int, CheckpointInfo]:
        """What each checkpoint says about itself; damaged ones are left out, with a warning."""
        return self._infos(find_steps(self.folder), self._warn)

    def info(self, step: int) -> CheckpointInfo:
        """What the checkpoint of `step` says about itself; raises `Damaged` or `Missing`."""
        return self._retry(step, lambda paths: read_step_info(paths[step], step, self.folder.name))

    def size(self, step: int) -> int:
        """Bytes of a checkpoint's own files, after a check of their sizes; raises `Damaged`."""
        return self._retry(step, lambda paths: check_manifest(paths[step]))

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        return self.info(step).extra

    def leftovers(self) -> list[Leftover]:
        """Other folders that lie here: damaged, under way, or left by a killed process."""
        return leftovers(self.folder)

    def open(self, step: int) -> CheckpointReader:
        """Check the files of a checkpoint, and of all that it builds on.

        As long as what is returned lives, no process removes them.

        Raises:
          Damaged: something is not as it was written.
          Missing: there is no such checkpoint, or no longer.
        """
        return self._retry(step, lambda paths: open_checkpoint(paths, step, self.folder.name))

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

    def verify(self, step: int) -> int:
        """Read every byte of a checkpoint and of what it builds on, and check all checksums.

        Returns the bytes of its own files.

        Raises:
          Damaged: naming the first file that is not as it was written.
        """
        reader = self.open(step)
        reader.verify()
        return reader.size

    def _retry(self, step: int, look: Callable[[dict[int, Path]], T]) -> T:
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

    def _infos(self, paths: Mapping[int, Path], warn: Warn) -> dict[int, CheckpointInfo]:
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

    def _path_info(self, path: Path, step: int) -> CheckpointInfo | None:
        """What the checkpoint at `path` says about itself, or None where it is damaged."""
        try:
            return read_step_info(path, step, self.folder.name)
        except Damaged:
            return None

    def _path(self, step: int) -> Path:
        return self._retry(step, lambda paths: paths[step])

    def _name(self, step: int) -> str:
        return f"{self.folder.name}/{step_name(step)}"
