"""Numbers that belong to interactions, such as a rating, a reward or a propensity.

`rating` is the dataset's own; any other NAME is `values/NAME.npy` in its folder, f32 `[N]`, in the
order of `items.npy`. Batches carry those of the targets (`rec_jax.data.batches`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError

FOLDER, RATING, PROPENSITY = "values", "rating", "propensity"

Float32s = npt.NDArray[np.float32]


def check_values(names: Sequence[str], dataset: Dataset) -> None:
    """Raises InputError where the dataset has no such numbers, or not one an interaction."""
    for name in names:
        if name == RATING:
            if dataset.ratings is None:
                raise InputError(f"{dataset.folder} has no ratings, or more than 255 different "
                                 "ones; prepare it with columns.rating")
            continue
        _open(name, dataset)


def read_values(name: str, dataset: Dataset, places: npt.NDArray[np.int64]) -> Float32s:
    """The numbers f32 `[n]` of the interactions at `places`; an unknown rating is 0.

    Raises:
      InputError: one of them is no finite number, or a propensity no probability above 0.
    """
    if name == RATING:
        assert dataset.ratings is not None
        return np.array([0.0, *dataset.rating_values], np.float32)[dataset.ratings[places]]
    found = np.asarray(_open(name, dataset)[places])
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise InputError(f"{dataset.folder}/{FOLDER}/{name}.npy holds {found[bad[0]]} at "
                         f"interaction {places[bad[0]]}; expected finite numbers")
    if name == PROPENSITY and (bad := np.flatnonzero((found <= 0) | (found > 1))).size:
        raise InputError(f"{dataset.folder}/{FOLDER}/{name}.npy holds {found[bad[0]]} at "
                         f"interaction {places[bad[0]]}; expected probabilities above 0")
    return found


def _open(name: str, dataset: Dataset) -> Float32s:
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
    return values  # type: ignore[no-any-return]
