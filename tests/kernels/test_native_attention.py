"""Attention in C++ is softmax attention within segments, cut over devices by rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from marks import slow_but

from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.native.attention import Seen, segment_attention, self_attention

if native_build.problem():
    pytest.skip(f"no native library: {native_build.problem()}", allow_module_level=True)


def definition(q: Any, k: Any, v: Any, seen: Any, causal: bool) -> Any:
    """Everything at once, in f32; a query that sees nothing gets 0."""
    mask = seen.own[:, :, None] == seen.segments[:, None]
    if causal:
        mask &= seen.places[:, :, None] >= jnp.arange(k.shape[1])
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhc->bqhc", jnp.where(mask[:, None], weights, 0.0), v)


def problem(batch: int, length: int, heads: int, dim: int, dtype: Any = jnp.float32,
            seed: int = 0) -> tuple[list[Any], Seen]:
    draw = np.random.default_rng(seed)
    arrays = [jnp.asarray(x, dtype) for x in draw.normal(size=(4, batch, length, heads, dim))]
    segments = jnp.asarray(np.sort(draw.integers(0, 3, (batch, length)), axis=1), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
    return arrays, Seen(segments, segments, places)


def close(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * (1 + np.abs(other).max()))


SHAPES = [(1, 1, 1, 1), (2, 5, 1, 3), (3, 33, 2, 8), (2, 70, 2, 32), (1, 257, 1, 48)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", slow_but(SHAPES[0:4:3], SHAPES))
def test_values_and_gradients_are_those_of_the_definition(
        shape: tuple[int, int, int, int], causal: bool) -> None:
    (q, k, v, g), seen = problem(*shape)
    expected, back = jax.vjp(lambda *x: definition(*x, seen, causal), q, k, v)
    found, found_back = jax.vjp(lambda *x: segment_attention(*x, seen, causal), q, k, v)
    close([found, *found_back(g)], [expected, *back(g)], 2e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_side_by_side_is_the_same(causal: bool) -> None:
    (q, k, v, g), seen = problem(2, 40, 2, 16)
    flat = [x.reshape(2, 40, 32) for x in (q, k, v)]
    expected, back = jax.vjp(lambda *x: segment_attention(*x, seen, causal), q, k, v)
    found, found_back = jax.vjp(
        lambda x: self_attention(x, seen, 2, causal), jnp.concatenate(flat, axis=-1))
    np.testing.assert_array_equal(found, expected.reshape(2, 40, 32))
    np.testing.assert_array_equal(
        found_back(g.reshape(2, 40, 32))[0],
        jnp.concatenate([x.reshape(2, 40, 32) for x in back(g)], axis=-1))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_few_queries_see_what_they_see_among_all(count: int) -> None:
    (q, k, v, g), seen = problem(3, 50, 2, 20)
    at = jnp.asarray(np.random.default_rng(1).integers(0, 50, (3, count)), jnp.int32)

    def asked(x: Any) -> Any:
        return jnp.take_along_axis(x, at[:, :, None, None], axis=1)

    few = Seen(jnp.take_along_axis(seen.own, at, axis=1), seen.segments, at)
    found, back = jax.vjp(lambda *x: segment_attention(*x, few, True), asked(q), k, v)
    expected, expected_back = jax.vjp(lambda *x: definition(*x, few, True), asked(q), k, v)
    close([found, *back(asked(g))], [expected, *expected_back(asked(g))], 2e-6)
    close([found], [asked(segment_attention(q, k, v, seen, True))], 2e-6)


def test_bf16_is_as_exact_as_its_inputs() -> None:
    (q, k, v, g), seen = problem(2, 70, 2, 32, jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected, back = jax.vjp(lambda *x: definition(*x, seen, True), *wide)
    found, found_back = jax.vjp(lambda *x: segment_attention(*x, seen, True), q, k, v)
    assert found.dtype == jnp.bfloat16
    close([found, *found_back(g)], [expected, *back(g.astype(jnp.float32))], 2e-2)


@pytest.mark.parametrize("count", [2, 40])
def test_a_query_that_sees_nothing_gives_zeros(count: int) -> None:
    (q, k, v, _), _ = problem(1, count, 2, 8)
    nobody = jnp.ones((1, count), jnp.int32)
    seen = Seen(nobody, 0 * nobody, 0 * nobody)
    found, back = jax.vjp(lambda *x: segment_attention(*x, seen, True), q, k, v)
    for array in (found, *back(jnp.ones_like(found))):
        np.testing.assert_array_equal(array, 0)


def test_devices_attend_their_own_rows_and_send_nothing() -> None:
    (q, k, v, g), seen = problem(8, 40, 2, 16)
    cut = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))

    def both(qkv: Any, seen: Seen, g: Any) -> Any:
        out, back = jax.vjp(lambda x: self_attention(x, seen, 2, True), qkv)
        return out, back(g)[0]

    arguments = (jnp.concatenate([x.reshape(8, 40, 32) for x in (q, k, v)], axis=-1), seen,
                 g.reshape(8, 40, 32))
    compiled = jax.jit(both, in_shardings=cut, out_shardings=cut).lower(*arguments).compile()
    for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert name not in compiled.as_text()
    for found, expected in zip(compiled(*jax.device_put(arguments, cut)), both(*arguments),
                               strict=True):
        np.testing.assert_array_equal(found, expected)
