"""What ranks a tile of users gives, wherever the rows lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.inference.histories import Tiles


class Ranked(NamedTuple):
    """One jitted call's answer.

    ranks: int32 `[G, T]`, `MISSED` where the target may not be recommended; best: int32
    `[G, T, k]`, -1 where there is nothing left to recommend, or None.
    """

    ranks: jax.Array
    best: jax.Array | None


Ranker = Callable[..., Ranked]
"""`ranker(params, rows, tiles, bias=None)`; bias: f32 `[V_padded]` beside the rows, cut and ordered
as they are, added to the scores of all users."""


def target_seen(tile: Tiles) -> jax.Array:
    """Whether each target is in its user's history, bool `[T]`; `target_rank` ranks it all the
    same."""
    users, entries = tile.targets.shape[0], tile.seen_items.shape[0]
    owner = jnp.searchsorted(tile.seen_offsets[1:], jnp.arange(entries), side="right")
    same = tile.seen_items == tile.targets[jnp.minimum(owner, users - 1)]
    return jnp.zeros(users, bool).at[owner].max(same, mode="drop")
