"""Items that training never sees, so that what is recommended of new items can be measured.

A share of the items is drawn by a seed. Their interactions leave every part of the split and lie
beside it, by user:

    withheld.npy          int32 [M]    items, sorted by user, then as in the source
    withheld_offsets.npy  int64 [U+1]  those of user u are [offsets[u], offsets[u+1])

Withheld items stay in the vocabulary, behind all others, as items without a training interaction.
A user who met nothing else is dropped: nothing is known by which anything could be recommended.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import NpyWriter
from rec_jax.data.filters import Filtered
from rec_jax.data.prepare_config import Withheld
from rec_jax.errors import InputError

ITEMS, OFFSETS = "withheld", "withheld_offsets"


def draw_items(count: int, config: Withheld) -> npt.NDArray[np.bool_]:
    """Which of `count` items are withheld, bool `[count]`: the rounded share of them."""
    drawn = np.random.default_rng(config.seed).permutation(count)[:round(config.share * count)]
    mask = np.zeros(count, bool)
    mask[drawn] = True
    return mask


def withhold(kept: Filtered, config: Withheld) -> tuple[Filtered, Filtered]:
    """The interactions that are left, and those that are withheld, of the same users.

    Raises:
      InputError: either part is empty.
    """
    codes = np.flatnonzero(kept.items)
    out = np.zeros(len(kept.items), bool)
    out[codes[draw_items(len(codes), config)]] = True
    left = replace(kept, items=kept.items & ~out)
    users = left.counts()[0] > 0
    left, taken = replace(left, users=users), replace(kept, users=users, items=out)
    if not users.any() or not taken.counts()[0].any():
        raise InputError(f"withheld.share = {config.share:g} of {len(codes)} items leaves "
                         f"{'nothing to train on' if not users.any() else 'nothing to withhold'}; "
                         "expected another share")
    return left, taken


def write_withheld(taken: Filtered, users: npt.NDArray[np.int64], index: npt.NDArray[np.int32],
                   config: Withheld, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the two files.

    users: codes of the kept users in the dataset's order; index: int32, number of each item code.

    Returns:
      what `meta.json` says of them, and the sha256 of their values.
    """
    offsets = np.concatenate([[0], np.cumsum(taken.counts()[0][users])]).astype(np.int64)
    hashes = {}
    with NpyWriter(folder / f"{ITEMS}.npy", np.int32, int(offsets[-1])) as file:
        for part in taken.chunks():
            file.write(index[part.items])
        hashes[ITEMS] = file.close()
    with NpyWriter(folder / f"{OFFSETS}.npy", np.int64, len(offsets)) as file:
        file.write(offsets)
        hashes[OFFSETS] = file.close()
    return {"share": config.share, "seed": config.seed, "items": int(taken.items.sum()),
            "interactions": int(offsets[-1])}, hashes
