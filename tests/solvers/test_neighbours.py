"""Item-kNN and user-kNN against loops over dense arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from solver_cases import dense_best, dense_similarity, dense_weights, random_counts, training

from rec_jax.solvers import itemknn, neighbours, userknn

WEIGHTINGS: Any = ("cosine", "tfidf", "bm25")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("k", "shrink"), [(3, 0.0), (3, 4.0), (100, 1.0)])
def test_itemknn_is_its_definition(weighting: Any, k: int, shrink: float) -> None:
    counts = random_counts(k)
    config = itemknn.Config(neighbours=k, weighting=weighting, shrink=shrink)
    found = config.fit(training(counts)).scores(counts)
    weights = dense_weights(counts.toarray().T, weighting, config.k1, config.b)
    similar = dense_similarity(weights, weights, shrink)
    np.fill_diagonal(similar, 0)
    similar = np.array([dense_best(np.round(row, 12), k) for row in similar])
    np.testing.assert_allclose(found, (counts.toarray() > 0) @ similar, atol=1e-9)
    assert found.shape == counts.shape and not found[0].any() and not found[:, 3].any()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("k", "shrink"), [(4, 0.0), (4, 3.0), (100, 0.0)])
@pytest.mark.parametrize("known", [True, False])
def test_userknn_is_its_definition(weighting: Any, k: int, shrink: float, known: bool) -> None:
    counts, asking = random_counts(k), random_counts(k + 50)
    own = np.arange(asking.shape[0]) if known else None
    config = userknn.Config(neighbours=k, weighting=weighting, shrink=shrink)
    found = config.fit(training(counts)).scores(asking, own)
    people = counts.toarray()
    weights = dense_weights(people, weighting, config.k1, config.b)
    asked = dense_weights(asking.toarray(), weighting, config.k1, config.b, like=people)
    similar = dense_similarity(asked, weights, shrink)
    if known:
        np.fill_diagonal(similar, 0)
    similar = np.array([dense_best(np.round(row, 12), k) for row in similar])
    np.testing.assert_allclose(found, similar @ (people > 0), atol=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = random_counts(1)
    whole = [module.Config(neighbours=4).fit(training(counts)).scores(counts)
             for module in (itemknn, userknn)]
    monkeypatch.setattr(neighbours, "CELLS", 40)
    cut = [module.Config(neighbours=4).fit(training(counts)).scores(counts)
           for module in (itemknn, userknn)]
    assert all((a == b).all() for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("module", [itemknn, userknn])
def test_one_item_and_nobody(module: Any) -> None:
    one = sparse.csr_array(np.ones((3, 1)))
    assert module.Config().fit(training(one)).scores(one).shape == (3, 1)
    nothing = sparse.csr_array((4, 5))
    assert not module.Config().fit(training(nothing)).scores(nothing[:2]).any()


def test_of_equal_values_the_first_stay() -> None:
    assert neighbours.best(np.array([1.0, 2, 2, 3, 2]), 3).tolist() == [0, 1, 1, 1, 0]
    assert neighbours.best(np.array([1.0, 1]), 5).all()
