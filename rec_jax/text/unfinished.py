"""Blocks of vectors that a job has finished, kept so that it goes on where it was killed."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax import files, jsons

_JOB = "job.json"


class Unfinished:
    """A folder of finished blocks of one job, each whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, job: Mapping[str, Any]) -> bool:
        """Go on with `job`, all that decides the bits of a block; blocks of another job go first,
        and then this is true."""
        there = self.folder.exists() and self._job() != json.loads(jsons.dumps(job))
        if there:
            self.remove()
        files.write_atomic(self.folder / _JOB, jsons.dumps(job))
        return there

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Vectors f32 `[b, c]` and bool `[b]` of a block; None if it is not finished."""
        try:
            # Of a damaged file numpy would leave its own handle open.
            with self._path(number).open("rb") as file, np.load(file, allow_pickle=False) as found:
                return found["vectors"], found["has"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, number: int, vectors: np.ndarray, has: np.ndarray) -> None:
        """Keep a block."""
        content = io.BytesIO()
        np.savez(content, vectors=vectors, has=has)
        files.write_atomic(self._path(number), content.getvalue())

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npz"

    def _job(self) -> Any:
        try:
            return json.loads((self.folder / _JOB).read_text())
        except (OSError, ValueError, RecursionError):
            return None
