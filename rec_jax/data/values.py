"""Numbers that belong to interactions, such as a rating, a reward or a propensity.

`rating` is the dataset's own; any other NAME is `values/NAME.npy` in its folder, f32 `[N]`, in the
order of `items.npy`. Batches carry those of the targets (`rec_jax.data.batches`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.files import file_hash

FOLDER, RATING, PROPENSITY = "values", "rating", "propensity"

Float32s = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Reader = Callable[[Places], Float32s]
"""Places of n interactions in the dataset's arrays -> their numbers f32 `[n]`; it raises InputError
where one of them is no finite number, or a propensity no probability above 0."""


def open_values(names: Sequence[str], dataset: Dataset) -> dict[str, Reader]:
    """What reads each of the numbers `names`; an unknown rating is 0.

    Raises:
      InputError: the dataset has no such numbers, or not one an interaction.
    """
    return {name: _ratings(dataset) if name == RATING else _of_file(name, dataset)
            for name in names}


def hashes_of(names: Sequence[str], dataset: Dataset) -> dict[str, str]:
    """sha256 of the files that `open_values` reads, by `values/NAME`: unlike ratings they are no
    part of the dataset's own hash."""
    return {f"{FOLDER}/{name}": file_hash(dataset.folder / FOLDER / f"{name}.npy")
            for name in names if name != RATING}


def _ratings(dataset: Dataset) -> Reader:
    codes = dataset.ratings
    if codes is None:
        raise InputError(f"{dataset.folder} has no ratings, or more than 255 different ones; "
                         "prepare it with columns.rating")
    meanings = np.array([0.0, *dataset.rating_values], np.float32)
    return lambda places: meanings[codes[places]]


def _of_file(name: str, dataset: Dataset) -> Reader:
    path = dataset.folder / FOLDER / f"{name}.npy"
    known = sorted(each.stem for each in path.parent.glob("*.npy"))
    if name not in known:
        raise InputError(f"{dataset.folder} has no {FOLDER}/{name}.npy; it has "
                         f"{', '.join(known) or 'none'}")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if values.dtype != np.float32 or values.shape != (dataset.num_interactions,):
        raise InputError(f"{path} holds {values.dtype} {list(values.shape)}; expected float32 "
                         f"[{dataset.num_interactions}]")
    return functools.partial(_read, values, path)


def _read(values: Float32s, path: Path, places: Places) -> Float32s:
    found = np.asarray(values[places])
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise InputError(f"{path} holds {found[bad[0]]} at interaction {places[bad[0]]}; expected "
                         "finite numbers")
    if path.stem == PROPENSITY and (bad := np.flatnonzero((found <= 0) | (found > 1))).size:
        raise InputError(f"{path} holds {found[bad[0]]} at interaction {places[bad[0]]}; expected "
                         "probabilities above 0")
    return found
