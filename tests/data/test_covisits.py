"""Items that stand near each other: counts by hand, ties by id, and nothing but training."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rec_jax.data import covisits as module
from rec_jax.data.covisits import (
    ItemGraphConfig,
    Pairs,
    count_pairs,
    covisits,
    nearest,
    pairs_of_new,
)
from rec_jax.data.interaction_graph import Edges
from rec_jax.errors import InputError

ITEMS, HELD = 12, 15


def histories(seed: int) -> Any:
    """30 users; behind the training part of each are items that nobody has there."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, 30)
    later = random.integers(0, 3, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths + later)])
    items = np.concatenate([np.concatenate([random.integers(0, ITEMS, a),
                                            random.integers(ITEMS, HELD, b)])
                            for a, b in zip(lengths, later, strict=True)])
    return SimpleNamespace(offsets=offsets, train_end=offsets[:-1] + lengths, num_users=30,
                           items=items.astype(np.int32), num_items=HELD)


def by_hand(dataset: Any, window: int, direction: str) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for first, last in zip(dataset.offsets, dataset.train_end, strict=False):
        row = dataset.items[first:last].tolist()
        for place, item in enumerate(row):
            for other in row[place + 1:place + 1 + window]:
                if item != other:
                    counts[item, other] += direction != "before"
                    counts[other, item] += direction != "after"
    return +counts


@pytest.mark.parametrize("direction", ["both", "after", "before"])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_counts_neighbours_and_weights_are_those_of_the_definition(
        window: int, direction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = histories(window), ItemGraphConfig(4, window, direction)
    counts = by_hand(dataset, window, direction)
    pairs = count_pairs(dataset, config)
    found = dict(zip(zip(*(column.tolist() for column in pairs[:2]), strict=True),
                     pairs.counts.tolist(), strict=True))
    assert found == counts and max(counts.values()) > 1
    assert not np.any(pairs.owners >= ITEMS) and not np.any(pairs.others >= ITEMS)
    near = covisits(dataset, config)
    assert near.ids.shape == near.weights.shape == (HELD, 4)
    for item in range(HELD):
        best = sorted(((-count, other) for (owner, other), count in counts.items()
                       if owner == item))[:4]
        total = -sum(count for count, _ in best)
        np.testing.assert_array_equal(near.ids[item, :len(best)], [other for _, other in best])
        np.testing.assert_allclose(near.weights[item, :len(best)],
                                   [-count / total for count, _ in best], rtol=1e-6)
        assert not near.weights[item, len(best):].any() and not near.ids[item, len(best):].any()
    # Added up a few at a time they are the same.
    monkeypatch.setattr(module, "_PAIRS", 10)
    monkeypatch.setattr(module, "_USERS", 7)
    for one, other in zip(count_pairs(dataset, config), pairs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_equal_counts_the_lower_id_comes_first() -> None:
    near = nearest(Pairs(np.array([1, 1, 1, 1]), np.array([7, 2, 5, 3]), np.array([2, 2, 9, 2])),
                   3, 3)
    np.testing.assert_array_equal(near.ids, [[0, 0, 0], [5, 2, 3], [0, 0, 0]])
    np.testing.assert_allclose(near.weights[1], [9 / 13, 2 / 13, 2 / 13], rtol=1e-6)


def test_nobody_has_neighbours_where_nobody_took_two_items() -> None:
    dataset: Any = SimpleNamespace(offsets=np.array([0, 1, 2]), train_end=np.array([1, 1]),
                                   num_users=2, items=np.array([0, 1], np.int32), num_items=2)
    near = covisits(dataset, ItemGraphConfig())
    assert not near.weights.any() and near.ids.shape == (2, 20)


def test_a_new_item_stands_beside_all_items_of_its_users() -> None:
    dataset = histories(5)
    users, items = np.array([0, 3, 7, 7, 8], np.int32), np.array([1, 0, 0, 1, 1], np.int32)
    pairs = pairs_of_new(dataset, Edges(users, items))
    counts = Counter((item, other) for user, item in zip(users.tolist(), items.tolist(),
                                                         strict=True)
                     for other in dataset.items[dataset.offsets[user]:dataset.train_end[user]])
    assert dict(zip(zip(pairs.owners, pairs.others, strict=True), pairs.counts,
                    strict=True)) == counts
    assert len(counts) > 5


@pytest.mark.parametrize(("given", "said"), [
    ({"neighbours": 0}, "item_graph.neighbours"), ({"window": 0}, "item_graph.window"),
    ({"share": -1.0}, "item_graph.share"), ({"drop": 1.5}, "item_graph.drop")], ids=str)
def test_settings_out_of_their_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ItemGraphConfig(**given)
