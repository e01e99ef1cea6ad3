"""Histories of chosen users as fixed-size tiles: what evaluation and export feed an encoder.

A tile is `TILE` users, whatever batch size a caller asks for. Users are cut into tiles by their
order alone and each tile is computed in one static shape, so that no number can depend on how
many tiles are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rec_jax.data.dataset import Dataset

TILE = 32

Array = Any  # numpy on the host, JAX inside a jitted function


class Tiles(NamedTuple):
    """`G` tiles of `T` users with histories of at most `L` items; unused places are empty users.

    items, positions: int32 `[G, T, L]`, the last L items, from place 0.
    segments: int32 `[G, T, L]`, 1 for an item, 0 for padding.
    last: int32 `[G, T]`, place of the newest item.
    targets: int32 `[G, T]`.
    seen_offsets: int32 `[G, T + 1]`, seen_items: int32 `[G, E]`: the whole history of user t
      is `seen_items[seen_offsets[t]:seen_offsets[t + 1]]`.
    """

    items: Array
    segments: Array
    positions: Array
    last: Array
    targets: Array
    seen_offsets: Array
    seen_items: Array


def iterate_tiles(dataset: Dataset, users: np.ndarray, ends: np.ndarray,
                  targets: np.ndarray | None, *, length: int,
                  batch: int) -> Iterator[tuple[Tiles, int]]:
    """Cut `users` into tiles; give about `batch` users at a time, with their number.

    users: `[M]`; ends: int64 `[M]`, absolute end of each history in `dataset.items`;
    targets: int32 `[M]` or None.
    """
    group = max(1, -(-batch // TILE))
    starts = np.asarray(dataset.offsets)[users]
    capacity = seen_capacity(ends - starts)
    for first in range(0, len(users), group * TILE):
        chosen = slice(first, first + group * TILE)
        bounds = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
        histories = [dataset.items[start:end] for start, end in bounds]
        wanted = None if targets is None else targets[chosen]
        yield make_tiles(histories, wanted, group=group, length=length,
                         capacity=capacity), len(histories)


def seen_capacity(lengths: np.ndarray) -> int:
    """Room for the histories of the fullest tile, rounded up so that shapes rarely change."""
    sums = np.add.reduceat(lengths, np.arange(0, lengths.size, TILE)) if lengths.size else [0]
    return int(-(-max(int(np.max(sums)), 1) // 1024) * 1024)


def make_tiles(histories: Sequence[np.ndarray], targets: np.ndarray | None, *, group: int,
               length: int, capacity: int) -> Tiles:
    """At most `group * TILE` whole histories (int `[n]` each) as `group` tiles.

    length: L; capacity: E, at least the sum of the lengths in each tile.
    """
    places = group * TILE
    items = np.zeros((places, length), np.int32)
    segments = np.zeros((places, length), np.int32)
    last = np.zeros(places, np.int32)
    wanted = np.zeros(places, np.int32)
    seen_items = np.full((group, capacity), -1, np.int32)
    counts = np.zeros(places, np.int32)
    counts[:len(histories)] = [len(history) for history in histories]
    seen_offsets = np.zeros((group, TILE + 1), np.int32)
    seen_offsets[:, 1:] = np.cumsum(counts.reshape(group, TILE), axis=1)
    for place, history in enumerate(histories):
        recent = history[max(0, len(history) - length):]
        items[place, :len(recent)] = recent
        segments[place, :len(recent)] = 1
        last[place] = max(len(recent) - 1, 0)
        tile, row = divmod(place, TILE)
        seen_items[tile, seen_offsets[tile, row]:seen_offsets[tile, row + 1]] = history
    if targets is not None:
        wanted[:len(targets)] = targets
    shape = (group, TILE, length)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return Tiles(items.reshape(shape), segments.reshape(shape), positions,
                 last.reshape(group, TILE), wanted.reshape(group, TILE), seen_offsets, seen_items)
