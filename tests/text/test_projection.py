"""Principal components are those of a singular value decomposition, every time the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load

from rec_jax.errors import InputError
from rec_jax.text.projection import Blocks, fit


def blocks(vectors: np.ndarray, has: np.ndarray, size: int = 7) -> Blocks:
    def again() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(vectors), size):
            yield vectors[at:at + size], has[at:at + size]

    return again


def some(count: int = 50, dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dim)) @ random.standard_normal((dim, dim)) + 3
    has = random.random(count) > 0.3
    # What an item without a vector has in its place counts nowhere.
    return np.where(has[:, None], vectors, 1e6).astype(np.float32), has


@pytest.mark.parametrize("components", [1, 3, 6, None])
@pytest.mark.parametrize("whiten", [False, True])
def test_they_are_those_of_an_svd(components: int | None, whiten: bool) -> None:
    vectors, has = some()
    found = fit(blocks(vectors, has), 6, components, whiten)
    kept = components or 6
    x = vectors[has].astype(np.float64)
    centred = x - x.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    wanted = centred @ axes[:kept].T
    if whiten:
        wanted = wanted / (sizes[:kept] / np.sqrt(has.sum() - 1))
    projected = found(vectors[has])
    assert projected.shape == (has.sum(), kept) and projected.dtype == np.float32
    signs = np.sign((projected * wanted).sum(axis=0))
    np.testing.assert_allclose(projected * signs, wanted, rtol=1e-5, atol=1e-5)
    assert found.explained == pytest.approx((sizes[:kept]**2).sum() / (sizes**2).sum())
    largest = np.abs(found.matrix).argmax(axis=0)
    assert (found.matrix[largest, np.arange(kept)] > 0).all()
    if whiten:
        np.testing.assert_allclose(np.cov(projected.T).reshape(kept, kept), np.eye(kept),
                                   atol=1e-5)


def test_the_same_vectors_give_the_same_bytes() -> None:
    vectors, has = some()
    one, other = (fit(blocks(vectors, has), 6, 4, True).to_bytes() for _ in range(2))
    assert one == other
    kept = load(one)
    np.testing.assert_allclose((vectors.astype(np.float64) - kept["mean"]) @ kept["matrix"],
                               fit(blocks(vectors, has), 6, 4, True)(vectors), rtol=1e-4)


def test_directions_that_do_not_vary_are_left_out_or_refused() -> None:
    vectors, has = some(dim=3)
    vectors = np.concatenate([vectors, vectors[:, :1] + vectors[:, 1:2]], axis=1)
    vectors = (vectors * 1.0).astype(np.float64)
    vectors[:, 3] = vectors[:, 0] + vectors[:, 1]
    assert fit(blocks(vectors, has), 4, None, True).matrix.shape == (4, 3)
    with pytest.raises(InputError, match="pca is 4, but only 3 components vary"):
        fit(blocks(vectors, has), 4, 4, True)
    plain = fit(blocks(vectors, has), 4, 4, False)
    np.testing.assert_allclose(plain(vectors[has])[:, 3], 0, atol=1e-5)


@pytest.mark.parametrize(("count", "components", "said"), [
    (50, 0, "pca is 0; expected 1 to 6"), (50, 7, "pca is 7; expected 1 to 6"),
    (1, 2, "1 items have a vector; principal components need two")])
def test_what_cannot_be_is_one_line(count: int, components: int, said: str) -> None:
    vectors = some(50)[0]
    with pytest.raises(InputError, match=said):
        fit(blocks(vectors, np.arange(50) < count), 6, components, False)


def test_equal_vectors_have_no_components() -> None:
    with pytest.raises(InputError, match="all items have the same vector"):
        fit(blocks(np.ones((5, 3), np.float32), np.ones(5, bool)), 3, 2, False)
