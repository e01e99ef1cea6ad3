"""Ranking metrics follow their formulas; coverage counts what was shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_jax.metrics import MISSED, Coverage, metric_names, rank_metrics


def test_metrics_of_known_ranks() -> None:
    found = rank_metrics(np.array([1, 3, 11]), ks=(1, 10))
    assert found["hr@1"] == pytest.approx(1 / 3)
    assert found["hr@10"] == pytest.approx(2 / 3)
    assert found["ndcg@1"] == pytest.approx(1 / 3)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3) / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)


def test_the_cut_off_itself_is_a_hit() -> None:
    assert rank_metrics(np.array([10]), ks=(10,))["hr@10"] == 1.0
    assert rank_metrics(np.array([11]), ks=(10,))["hr@10"] == 0.0


@pytest.mark.parametrize("k", [1, 10, MISSED, 2**40])
def test_a_missed_item_is_a_hit_for_no_cut_off(k: int) -> None:
    found = rank_metrics(np.array([1, MISSED, MISSED, MISSED], np.int32), ks=(k,))
    assert set(found.values()) == {0.25}
    assert set(rank_metrics(np.array([MISSED]), ks=(k,)).values()) == {0.0}


ranks = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(ranks)
def test_metrics_stay_in_order(values: list[int]) -> None:
    found = rank_metrics(np.array(values), ks=(5, 10))
    for k in (5, 10):
        assert 0 <= found[f"mrr@{k}"] <= found[f"ndcg@{k}"] <= found[f"hr@{k}"] <= 1
    assert found["hr@5"] <= found["hr@10"]
    assert found["mrr@10"] <= found["mrr"]


@given(ranks)
def test_metrics_are_means_over_users(values: list[int]) -> None:
    alone = [rank_metrics(np.array([value]), ks=(10,)) for value in values]
    together = rank_metrics(np.array(values), ks=(10,))
    for name, value in together.items():
        assert value == pytest.approx(np.mean([one[name] for one in alone]))


def test_names_are_those_that_are_measured() -> None:
    assert metric_names((5, 20)) == list(rank_metrics(np.array([1]), ks=(5, 20)))


def test_no_users_have_no_metrics() -> None:
    assert all(math.isnan(value) for value in rank_metrics(np.zeros(0, int), ks=(5,)).values())


def test_coverage_counts_distinct_items_and_mean_popularity() -> None:
    coverage = Coverage(np.array([10, 5, 2, 1]))
    coverage.add(np.array([[0, 1], [0, -1]]))
    coverage.add(np.array([[1, 2]]))
    assert coverage.result(2) == {"coverage@2": 3 / 4,
                                  "popularity@2": pytest.approx((10 + 5 + 10 + 5 + 2) / 5)}


def test_coverage_does_not_depend_on_batches() -> None:
    random = np.random.default_rng(0)
    popularity, shown = random.integers(0, 9, 20), random.integers(-1, 20, (12, 3))
    whole, pieces = Coverage(popularity), Coverage(popularity)
    whole.add(shown)
    for row in shown:
        pieces.add(row[None])
    assert whole.result(3) == pieces.result(3)


def test_nothing_shown_covers_nothing() -> None:
    found = Coverage(np.array([1, 2])).result(5)
    assert found["coverage@5"] == 0.0 and math.isnan(found["popularity@5"])
