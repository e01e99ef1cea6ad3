"""Attention written out, and its own backward pass, against its definition in f64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.model.encoders.attention import attention_mask, masked_attention


def definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.where(mask, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 1, 3), (3, 17, 2, 8)])
def test_attention_and_its_gradients_are_those_of_the_definition(
        shape: tuple[int, int, int, int], causal: bool) -> None:
    draw = np.random.default_rng(shape[1])
    q, k, v, g = draw.normal(size=(4, *shape))
    segments = np.sort(draw.integers(0, 3, shape[:2]), axis=1)
    mask = attention_mask(jnp.asarray(segments), jnp.asarray(segments), jnp.arange(shape[1]),
                          causal=causal)
    out, back = jax.vjp(lambda *x: masked_attention(*x, mask),
                        *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, definition(q, k, v, np.asarray(mask)), rtol=1e-5, atol=1e-5)
    step = 1e-6
    for place, found in enumerate(back(jnp.asarray(g, jnp.float32))):
        way = draw.normal(size=shape)
        moved = [[x + sign * step * way if n == place else x for n, x in enumerate((q, k, v))]
                 for sign in (1, -1)]
        up, down = (np.sum(definition(*x, np.asarray(mask)) * g) for x in moved)
        np.testing.assert_allclose(np.sum(np.asarray(found, np.float64) * way),
                                   (up - down) / (2 * step), rtol=1e-4, atol=1e-4)


def test_a_query_that_may_attend_nothing_gives_finite_numbers() -> None:
    q = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    mask = jnp.zeros((1, 1, 3, 3), bool)
    out, back = jax.vjp(lambda q: masked_attention(q, q, q, mask), q)
    assert jnp.all(jnp.isfinite(out))
    assert jnp.all(jnp.isfinite(back(jnp.ones_like(q))[0]))
