"""The entropy of a softmax over many tiles, and its gradients, against dense f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import softmax_entropy, softmax_loss
from rec_jax.kernels.entropy import EntropySide, entropy_grad, offsets

V, PADDED, N, D = 20_000, 20_050, 5, 6


def problem(dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, rows with padding of NaN-free rubbish, bias and weights."""
    keys = jax.random.split(jax.random.key(3), 4)
    rows = jax.random.normal(keys[1], (PADDED, D)).at[V:].set(50.0)
    return (jax.random.normal(keys[0], (N, D)).astype(dtype), rows.astype(dtype),
            jax.random.normal(keys[2], (PADDED,)), jax.random.normal(keys[3], (N,)))


def dense(queries: Any, rows: Any, bias: Any, scale: float, softcap: float | None) -> Any:
    scores = scale * queries @ rows[:V].T + bias[:V]
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    logs = jax.nn.log_softmax(scores)
    return -jnp.sum(jnp.exp(logs) * logs, -1)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_value_and_gradients_are_the_dense_ones(dtype: Any, softcap: float | None) -> None:
    queries, rows, bias, weight = problem(dtype)
    targets = jnp.full((N,), -1)

    def total(queries: Any, rows: Any, bias: Any) -> Any:
        lse = softmax_loss(queries, rows, targets, bias=bias, logit_scale=1.5, softcap=softcap,
                           num_items=V, backend="reference")[1]
        return jnp.sum(weight * softmax_entropy(queries, rows, lse, bias=bias, logit_scale=1.5,
                                                softcap=softcap, num_items=V))

    found, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(queries, rows, bias)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (queries, rows, bias)]
        wanted, right = jax.value_and_grad(lambda *x: jnp.sum(
            np.asarray(weight, np.float64) * dense(*x, 1.5, softcap)), argnums=(0, 1, 2))(*exact)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    rough = 3e-5 if dtype == jnp.float32 else 1e-2
    for one, other in zip(grads, right, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=rough, atol=rough)


def test_many_queries_are_taken_in_blocks() -> None:
    """The gradient of a tile's rows at fixed log-normalisers, for more queries than a block."""
    many = 1500
    keys = jax.random.split(jax.random.key(0), 4)
    queries, rows = jax.random.normal(keys[0], (many, D)), jax.random.normal(keys[1], (64, D))
    lse, weight = jax.random.uniform(keys[2], (many,)) + 5, jax.random.normal(keys[3], (many,))
    offset = offsets(rows, None, 60)
    found = entropy_grad(rows, offset, EntropySide(queries, lse, weight), 0.5, None)

    def total(rows: Any) -> Any:
        logs = 0.5 * queries @ rows[:60].T - lse[:, None]
        return -jnp.sum(weight[:, None] * jnp.exp(logs) * logs)

    np.testing.assert_allclose(found, jax.grad(total)(rows), rtol=1e-4, atol=1e-5)


def test_an_entropy_of_wrong_shapes_says_what_it_expected() -> None:
    with pytest.raises(ValueError, match="expected one width"):
        softmax_entropy(jnp.zeros((2, 3)), jnp.zeros((4, 5)), jnp.zeros(2))
