"""Dropout's coins: a hash of the key and the place, fair, and the same on any devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec_jax.model.encoders.layers import coins, dropout

SHAPE = (16, 25, 96)


def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


def test_the_identity_without_a_key_or_a_rate() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, key(0)) is x


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9999])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_share_is_dropped_and_the_rest_keeps_the_mean(rate: float, dtype: jnp.dtype) -> None:
    found = np.asarray(dropout(jnp.ones((400, 500), dtype), rate, key(1)), np.float64)
    dropped, kept = np.unique(found)
    assert dropped == 0.0
    assert kept == pytest.approx(1 / (1 - rate), rel=4e-3 if dtype == jnp.bfloat16 else 1e-6)
    error = (found == 0).mean() - rate
    assert abs(error) < 4 * (rate * (1 - rate) / found.size) ** 0.5


def test_what_is_dropped_has_no_gradient() -> None:
    x = jnp.ones((8, 32))
    grad = jax.grad(lambda x: dropout(x, 0.5, key(2)).sum())(x)
    np.testing.assert_array_equal(grad, dropout(x, 0.5, key(2)))


def test_no_two_rows_columns_keys_or_bits_go_together() -> None:
    """Correlations of fair coins: standard normal times 1 / sqrt(count)."""
    draws = np.stack([np.asarray(coins(key(seed), SHAPE)) for seed in range(4)])
    signs = 2.0 * ((draws[..., None] >> np.arange(32, dtype=np.uint32)) & 1) - 1
    top = signs[..., 31]
    pairs = {
        "keys": (top[:-1], top[1:]), "rows": (top[:, :, :-1], top[:, :, 1:]),
        "users": (top[:, :-1], top[:, 1:]), "columns": (top[..., :-1], top[..., 1:]),
        "far columns": (top[..., :-32], top[..., 32:]),
        "bits": (signs[..., :-1], signs[..., 1:]), "mean": (top, np.ones_like(top))}
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < 4 / one.size**0.5, name


def test_no_row_is_drawn_twice() -> None:
    rows = np.asarray(coins(key(3), (4, 4096, 4))).reshape(-1, 4)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_devices_do_not_change_a_coin() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "items"))
    cut = NamedSharding(mesh, PartitionSpec("data", None, "items"))
    x = jnp.ones(SHAPE)
    apart = jax.jit(lambda x: dropout(x, 0.3, key(4)), in_shardings=cut, out_shardings=cut)(x)
    np.testing.assert_array_equal(apart, dropout(x, 0.3, key(4)))
