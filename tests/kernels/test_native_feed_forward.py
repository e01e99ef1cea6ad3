"""The feed-forward layer in C++ is that of its parts, cut over devices by places."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from marks import fast_where

from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.native.feed_forward import ACTIVATIONS
from rec_jax.model.encoders.layers import activate, affine, feed_forward

if native_build.problem():
    pytest.skip(f"no native library: {native_build.problem()}", allow_module_level=True)


def parts(x: Any, up: Any, up_bias: Any, down: Any, down_bias: Any, activation: str) -> Any:
    return affine(activate(activation, affine(x, up, up_bias)), down, down_bias)


def problem(count: int, dim: int, hidden: int, activation: str,
            dtype: Any = jnp.float32) -> list[Any]:
    draw = np.random.default_rng(0)
    up = hidden * (2 if activation == "swiglu" else 1)
    sizes = ((count, dim), (dim, up), (up,), (hidden, dim), (dim,))
    x, *weights = (jnp.asarray(draw.normal(size=size), jnp.float32) for size in sizes)
    return [x.astype(dtype), *weights]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "sizes"), fast_where(
    lambda dtype, sizes: sizes[0] > 1 and (dtype == jnp.float32) == (sizes[0] == 140),
    [jnp.float32, jnp.bfloat16], [(1, 1, 1), (33, 8, 20), (140, 64, 256)]))
def test_values_and_gradients_are_those_of_the_parts(
        sizes: tuple[int, int, int], activation: str, dtype: Any) -> None:
    arguments = problem(*sizes, activation, dtype)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(sizes[0], sizes[1])), dtype)
    expected, back = jax.vjp(lambda *x: parts(*x, activation), *arguments)
    found, found_back = jax.vjp(lambda *x: feed_forward(*x, activation), *arguments)
    tolerance = 3e-6 if dtype == jnp.float32 else 2e-2
    for one, other in zip((found, *found_back(g)), (expected, *back(g)), strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * (1 + np.abs(other).max()))
    np.testing.assert_array_equal(feed_forward(*arguments, activation), found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_and_small_values_are_activated_as_jax_does(activation: str) -> None:
    x = jnp.asarray([[-1e4, -90.0, -30.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 30.0, 1e4]])
    one = jnp.eye(10)
    if activation == "swiglu":  # with x as the gate, and times 1
        found = feed_forward(x, jnp.concatenate([one, 0 * one], axis=1),
                             jnp.repeat(jnp.asarray([0.0, 1.0]), 10), one, jnp.zeros(10), "swiglu")
        activation = "silu"
    else:
        found = feed_forward(x, one, jnp.zeros(10), one, jnp.zeros(10), activation)
    np.testing.assert_allclose(found, activate(activation, x), rtol=1e-5, atol=1e-6)


def test_devices_compute_their_own_places_and_send_nothing() -> None:
    arguments = problem(80, 16, 32, "gelu")
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    step = jax.jit(lambda *x: feed_forward(*x, "gelu"), in_shardings=(cut, *[whole] * 4),
                   out_shardings=cut).lower(*arguments).compile()
    for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert name not in step.as_text()
    placed = [jax.device_put(arguments[0], cut), *jax.device_put(arguments[1:], whole)]
    np.testing.assert_array_equal(step(*placed), feed_forward(*arguments, "gelu"))
