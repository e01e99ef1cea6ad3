"""Known-item search: how well texts find the items that they are of, with some words left out.

The query of an item is its text without 1 to 3 words, drawn by a seed; at least one word stays.
Ties count against the item. MRR@10 is the mean of 1 / rank, 0 where the rank is above 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Of points of BM25 in cosines."""
Queries = tuple[npt.NDArray[np.int64], list[str]]


def known_item_queries(texts: Sequence[str], seed: int, most_dropped: int = 3) -> Queries:
    """Items int64 `[n]` and a query for each: of all texts with at least two words.

    Of a text with w words 1 to min(`most_dropped`, w - 1) are dropped, as many as any other number
    by chance; the others stay in their order.
    """
    random = np.random.default_rng(seed)
    items, queries = [], []
    for item, text in enumerate(texts):
        words = text.split()
        if len(words) < 2:
            continue
        count = int(random.integers(1, min(most_dropped, len(words) - 1) + 1))
        kept = np.sort(random.permutation(len(words))[count:])
        query = " ".join(words[place] for place in kept)
        if any(map(str.isalnum, query)):
            items.append(item)
            queries.append(query)
    return np.array(items, np.int64), queries


def ranks_of(scores: Floats, targets: npt.NDArray[np.int64], *,
             ties: float = 1.0) -> npt.NDArray[np.float64]:
    """Rank `[n]` of each target among the scores `[n, V]` of its query; 1 is best.

    ties: the share of the other items with the same score that stand above it; 1: all of them.
    """
    wanted = np.take_along_axis(scores, targets[:, None], axis=1)
    same = np.sum(scores == wanted, axis=1) - 1
    return np.asarray(1 + np.sum(scores > wanted, axis=1) + ties * same, np.float64)


def reciprocal_ranks(ranks: npt.NDArray[np.float64], k: int = 10) -> npt.NDArray[np.float64]:
    """1 / rank of those up to k, and 0 for the others: f64 `[n]`, whose mean is MRR@k."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def choose_lexical(cosines: Floats, words: Floats, targets: npt.NDArray[np.int64],
                   grid: Sequence[float] = GRID) -> float:
    """What a point of BM25 is worth in cosines: the first of `grid` whose MRR@10 is the best.

    cosines, words: f32 `[n, V]` of queries that no figure is reported on; targets: int `[n]`.
    """
    found = [float(reciprocal_ranks(ranks_of(mixed(cosines, words, each), targets)).mean())
             for each in grid]
    return float(grid[int(np.argmax(found))])


def mixed(cosines: Floats, words: Floats, lexical: float) -> Floats:
    """Scores f32 `[n, V]` as `rec_jax.text.search` has them."""
    return cosines + np.float32(lexical) * words
