"""EASE against the inverse of a dense Gram matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from solver_cases import random_counts, training

from rec_jax.errors import InputError
from rec_jax.solvers import ease, neighbours, popularity, room


def dense_ease(taken: np.ndarray, ridge: float) -> np.ndarray:
    inverse = np.linalg.inv(taken.T @ taken + ridge * np.eye(taken.shape[1]))
    weights = np.eye(len(inverse)) - inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize(("precision", "error"), [("f64", 1e-12), ("f32", 2e-5)])
@pytest.mark.parametrize("ridge", [0.5, 20.0])
@pytest.mark.parametrize("cells", [1 << 22, 40])
def test_ease_is_its_definition(precision: Any, error: float, ridge: float, cells: int,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CELLS", cells)
    counts, asking = random_counts(2), random_counts(3)
    found = ease.Config(ridge, precision).fit(training(counts)).scores(asking)
    taken = (counts.toarray() > 0).astype(np.float64)
    expected = (asking.toarray() > 0) @ dense_ease(taken, ridge)
    np.testing.assert_allclose(found, expected, atol=error)
    assert not found[:, 3].any() and found.dtype == {"f64": np.float64}.get(precision, np.float32)


def test_one_item() -> None:
    one = sparse.csr_array(np.ones((3, 1)))
    assert ease.Config().fit(training(one)).scores(one).tolist() == [[0], [0], [0]]


def test_a_ridge_that_is_too_small_is_named() -> None:
    alike = sparse.csr_array(np.ones((4, 3)))
    with pytest.raises(InputError, match=r"ease\.ridge = 1e-12 is too small .* in f32; .*'f64'"):
        ease.Config(1e-12, "f32").fit(training(alike))
    with pytest.raises(InputError, match=r"ease\.ridge is 0"):
        ease.Config(0)


def test_no_room_is_said_with_both_figures_before_anything_is_taken(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_host_memory", lambda: 10**9)
    monkeypatch.setattr(ease, "_gram", lambda *_: pytest.fail("memory was taken"))
    wide = sparse.csr_array((2, 100_000))
    for precision, size in (("f64", 8), ("f32", 4)):
        with pytest.raises(InputError) as caught:
            ease.Config(precision=precision).fit(training(wide))  # type: ignore[arg-type]
        line = str(caught.value)
        needed = int(line.split("needs ")[1].split(" bytes")[0].replace(",", ""))
        assert needed >= size * 10**10 and needed < size * 10**10 + 2**30
        assert line.startswith(f"ease of 100,000 items in {precision} needs")
        assert "1,000,000,000 (0.9 GiB) are free" in line


def test_popularity_counts() -> None:
    counts = random_counts(4)
    found = popularity.Config().fit(training(counts)).scores(counts[:2])
    assert (found == counts.toarray().sum(axis=0)).all() and found.shape[0] == 2
