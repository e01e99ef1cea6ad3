"""Codes of a dataset's items: their vectors cut into pieces, and of each piece its nearest centre.

    item_codes/NAME-MxK.npy    uint8 [V, M], K centres: 0 for an item without a vector, else 1 + the
                               number of the centre
    item_codes/NAME-MxK.json   of which vectors they are made, and the hash of the file

Product quantisation (Jegou et al., 2011) of M pieces by k-means with a fixed seed; VQ-Rec (Hou et
al., 2023) learns a row for each code in the place of a map of the vectors. `.json` is written last,
so that codes are complete or absent; codes of other vectors are made anew.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax import files, jsons, locks
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.errors import InputError
from rec_jax.files import file_hash

FOLDER = "item_codes"
FORMAT_VERSION = 1
MOST_CENTRES = 255
"""So that a code is a byte, and exact in bf16."""
_ROUNDS, _SAMPLE, _BLOCK = 20, 65_536, 8192
Codes = npt.NDArray[np.uint8]


def open_item_codes(dataset: Dataset, name: str, pieces: int, centres: int) -> Codes:
    """The codes uint8 `[V, M]` of the vectors `name`, made where they are missing.

    Raises:
      InputError: there are no such vectors, or they are of fewer columns than `pieces`.
    """
    found = open_item_vectors(dataset, name)
    if pieces > found.vectors.shape[1]:
        raise InputError(f"content.codes is {pieces}, and the vectors {name!r} have "
                         f"{found.vectors.shape[1]} columns; expected at most so many")
    place = dataset.folder / FOLDER
    path = place / f"{name}-{pieces}x{centres}.npy"
    wanted = {"format_version": FORMAT_VERSION, "vectors": found.about["files"],
              "item_ids": found.about["item_ids"]}
    with locks.locked(place, wait=60.0):
        if not _is_whole(path, wanted):
            path.with_suffix(".json").unlink(missing_ok=True)
            codes = np.zeros((len(found.has), pieces), np.uint8)
            codes[found.has] = 1 + quantise(np.asarray(found.vectors)[found.has], pieces, centres)
            with files.atomic_writer(path) as file:
                np.save(file, codes)
            files.write_atomic(path.with_suffix(".json"), jsons.dumps(
                {**wanted, "sha256": file_hash(path)}, indent=1) + "\n")
    return np.asarray(np.load(path, allow_pickle=False), np.uint8)


def _is_whole(path: Any, wanted: dict[str, Any]) -> bool:
    try:
        said = json.loads(path.with_suffix(".json").read_text())
        return said == {**wanted, "sha256": file_hash(path)}
    except (OSError, ValueError):
        return False


def quantise(vectors: npt.NDArray[np.float32], pieces: int, centres: int, seed: int = 0) -> Codes:
    """Numbers uint8 `[n, M]` of the nearest centres of vectors `[n, c]`, one for each piece of the
    columns; of two as near the first."""
    found = np.zeros((len(vectors), pieces), np.uint8)
    for number, part in enumerate(np.array_split(vectors.astype(np.float64), pieces, axis=1)):
        random = np.random.default_rng((seed, number))
        sample = part
        if len(part) > _SAMPLE:
            sample = part[random.choice(len(part), _SAMPLE, replace=False)]
        found[:, number] = _nearest(part, _centres(sample, centres, random))[0]
    return found


def _centres(points: npt.NDArray[np.float64], count: int, random: np.random.Generator
             ) -> npt.NDArray[np.float64]:
    """Centres f64 `[K, c]` by Lloyd's rounds from different points; a centre that has none takes
    the point that is farthest from its own."""
    different = np.unique(points, axis=0)
    if len(different) <= count:
        return different
    centres = different[random.choice(len(different), count, replace=False)]
    for _ in range(_ROUNDS):
        own, far = _nearest(points, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, own, points)
        sizes = np.bincount(own, minlength=count)
        moved = sums / np.maximum(sizes, 1)[:, None]
        empty = np.flatnonzero(sizes == 0)
        moved[empty] = points[np.argsort(-far, kind="stable")[:len(empty)]]
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest(points: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]
             ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The number of each point's nearest centre, and the square of its distance."""
    own, far = np.zeros(len(points), np.int64), np.zeros(len(points))
    sizes = (centres**2).sum(axis=1)
    for start in range(0, len(points), _BLOCK):
        block = points[start:start + _BLOCK]
        distance = sizes - 2 * block @ centres.T
        own[start:start + _BLOCK] = distance.argmin(axis=1)
        far[start:start + _BLOCK] = distance.min(axis=1) + (block**2).sum(axis=1)
    return own, far
