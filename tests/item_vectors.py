"""Item vectors beside a dataset, and the tiny dataset with some."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rec_jax import api
from rec_jax.data.dataset import Dataset


def give_vectors(folder: Path, vectors: np.ndarray) -> None:
    """Vectors called `text` for the first items of a dataset, in its place or anew."""
    np.save(folder.parent / "v.npy", vectors.astype(np.float32))
    ids = Dataset.open(folder).item_ids()
    (folder.parent / "ids.txt").write_text("\n".join(ids[:len(vectors)]) + "\n")
    api.embed(folder, name="text", vectors=folder.parent / "v.npy", ids=folder.parent / "ids.txt",
              overwrite=True)


@pytest.fixture
def some_vectors(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny dataset with vectors of all its items but the last three."""
    folder = shutil.copytree(tiny_dataset, tmp_path / "d")
    count = Dataset.open(folder).num_items - 3
    give_vectors(folder, np.random.default_rng(0).standard_normal((count, 6)))
    return folder
