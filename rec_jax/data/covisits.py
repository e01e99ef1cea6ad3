"""The graph of items that stand near each other in histories: which, and how often.

A pair counts once for every two places of one history that are at most `window` apart, so window 1
counts items that follow each other. Pairs of an item with itself are none. The K neighbours of an
item are those with the largest counts; of equal counts the lower id comes first, and their weights
are their shares of the counts that stay:

    w_ij = count_ij / sum over the K neighbours of i

Only the training part is read, so nothing of validation or test is in it. It follows from the
dataset alone, and no checkpoint has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import chunks, counting
from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import Edges
from rec_jax.ranges import at_least, check

MOST_NEIGHBOURS = 2**10
_PAIRS = 1 << 24  # that are held before they are added up
_USERS = 1 << 16  # taken at a time


@dataclass(frozen=True)
class ItemGraphConfig:
    """The section [item_graph] of a run: items have what their neighbours' rows say, too.

    neighbours: K, the most that an item has.
    window: how many places apart two items of a history may be.
    direction: whether an item's neighbours came after it, before it, or both.
    mixing: what is added is `share` times the weighted mean of the neighbours, or a learned matrix
      times that mean, which begins as `share` times the identity.
    share: see `mixing`.
    drop: the share of steps in which an item has no row of its own.
    """

    neighbours: int = 20
    window: int = 3
    direction: Literal["both", "after", "before"] = "both"
    mixing: Literal["share", "matrix"] = "share"
    share: float = 1.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        check(self, "item_graph.", neighbours=at_least(1, MOST_NEIGHBOURS), window=at_least(1),
              share=at_least(0, 1e3), drop=at_least(0, 1))


class Pairs(NamedTuple):
    """owners, others: int64 `[E]`, each pair once, by owner and then other; counts: int64 `[E]`."""

    owners: npt.NDArray[np.int64]
    others: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


class Nearest(NamedTuple):
    """The neighbours of V items. ids: int32 `[V, K]`; weights: f32 `[V, K]`, 0 where a place is
    empty, whose id is 0."""

    ids: Any
    weights: Any


def covisits(dataset: Dataset, config: ItemGraphConfig) -> Nearest:
    """The neighbours of a dataset's items by its training part."""
    return nearest(count_pairs(dataset, config), dataset.num_items, config.neighbours)


def count_pairs(dataset: Dataset, config: ItemGraphConfig) -> Pairs:
    """How often each pair of items stands in the histories of the training part, in the config's
    window and direction."""
    size, held, waiting = dataset.num_items, _nothing(), []
    for first, last in chunks(dataset.num_users, _USERS):
        starts = np.asarray(dataset.offsets)[first:last].astype(np.int64)
        lengths = np.asarray(dataset.train_end)[first:last] - starts
        for apart in range(1, min(config.window, int(lengths.max(initial=0)) - 1) + 1):
            number = np.maximum(lengths - apart, 0)
            places = np.repeat(starts, number) + counting(number)
            before, after = (np.asarray(dataset.items)[places + step].astype(np.int64)
                             for step in (0, apart))
            waiting.append((before * size + after)[before != after])
            if sum(map(len, waiting)) > _PAIRS:
                held, waiting = _added(held, waiting), []
    keys, counts = _added(held, waiting)
    before, after = keys // size, keys % size
    if config.direction != "after":
        back = after * size + before
        keys, counts = ((back, counts) if config.direction == "before" else
                        (np.concatenate([keys, back]), np.concatenate([counts, counts])))
        keys, counts = _summed(keys, counts)
    return Pairs(keys // size, keys % size, counts)


def pairs_of_new(dataset: Dataset, edges: Edges) -> Pairs:
    """How often each new item stands beside each known one, in the training histories of its users;
    where in these it was is not known. edges: new items by their number."""
    starts = np.asarray(dataset.offsets)[edges.users].astype(np.int64)
    number = np.asarray(dataset.train_end)[edges.users] - starts
    places = np.repeat(starts, number) + counting(number)
    size = dataset.num_items
    keys = np.repeat(edges.items.astype(np.int64), number) * size + dataset.items[places]
    keys, counts = _added(_nothing(), [keys])
    return Pairs(keys // size, keys % size, counts)


def nearest(pairs: Pairs, num_items: int, most: int) -> Nearest:
    """The `most` others of each of so many owners that have the largest counts."""
    order = np.lexsort((pairs.others, -pairs.counts, pairs.owners))
    owners, others, counts = (column[order] for column in pairs)
    rank = counting(np.bincount(owners, minlength=num_items))
    kept = rank < most
    owners, rank = owners[kept], rank[kept]
    ids, weights = np.zeros((num_items, most), np.int32), np.zeros((num_items, most))
    ids[owners, rank], weights[owners, rank] = others[kept], counts[kept]
    total = weights.sum(axis=1, keepdims=True)
    return Nearest(ids, (weights / np.where(total > 0, total, 1)).astype(np.float32))


Counted = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _nothing() -> Counted:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _added(held: Counted, waiting: list[npt.NDArray[np.int64]]) -> Counted:
    """Keys and counts with those of `waiting` keys, each 1."""
    new = np.concatenate([np.zeros(0, np.int64), *waiting])
    return _summed(np.concatenate([held[0], new]),
                   np.concatenate([held[1], np.ones(len(new), np.int64)]))


def _summed(keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Counted:
    """Each key once, rising, with the sum of its counts."""
    distinct, place = np.unique(keys, return_inverse=True)
    # As f64, which holds counts up to 2^53.
    return distinct, np.bincount(place, counts, len(distinct)).astype(np.int64)
