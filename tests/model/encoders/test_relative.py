"""Relative biases are plain look-ups, with plain gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.model.encoders.relative import TIME_BUCKETS, look_up, place_bias, time_bucket

LENGTH, HEADS = 7, 2


@pytest.mark.parametrize(("first", "count"), [(0, LENGTH), (0, 3), (3, 3), (6, 3), (4, 1)])
@pytest.mark.parametrize("known", [LENGTH, 2 * LENGTH - 1])
def test_a_place_bias_is_that_of_the_distance(first: int, count: int, known: int) -> None:
    random = np.random.default_rng(first)
    table = random.standard_normal((HEADS, known)).astype(np.float32)
    weights = random.standard_normal((HEADS, count, LENGTH)).astype(np.float32)

    def total(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        bias = place_bias(table, jnp.int32(first), count, LENGTH)
        return jnp.sum(bias * weights), bias

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(table)
    expected, summed = np.zeros(weights.shape), np.zeros(table.shape)
    for query in range(count):
        for key in range(LENGTH):
            at = first + query - key + (known - LENGTH)
            if 0 <= at < known:
                expected[:, query, key] = table[:, at]
                summed[:, at] += weights[:, query, key]
    inside = slice(0, max(0, LENGTH - first))  # queries behind the row mean nothing
    np.testing.assert_array_equal(found[:, inside], expected[:, inside].astype(np.float32))
    if first + count <= LENGTH:
        np.testing.assert_allclose(gradient, summed, atol=1e-5)


def test_times_fall_into_half_octaves() -> None:
    random = np.random.default_rng(0)
    seconds = np.unique(np.concatenate([
        np.arange(300), 2 ** np.arange(1, 24) - 1, 3 * 2 ** np.arange(22) - 1,
        random.integers(0, 2**23, 500)])).astype(np.int32)
    octave = np.floor(np.log2(seconds.astype(np.float64) + 1))
    expected = 2 * octave + ((seconds + 1) / 2**octave >= 1.5)
    np.testing.assert_array_equal(time_bucket(jnp.asarray(seconds)), expected)


def test_every_time_has_a_bucket() -> None:
    ends = time_bucket(jnp.array([0, 1, 2, 2**31 - 1], jnp.int32))
    assert ends.tolist() == [0, 2, 3, 62] and TIME_BUCKETS > 62
    rising = time_bucket(jnp.asarray(np.linspace(0, 2**31 - 1, 10_000).astype(np.int32)))
    assert (jnp.diff(rising) >= 0).all()


def test_a_look_up_sums_its_gradient_by_index() -> None:
    random = np.random.default_rng(1)
    table = random.standard_normal(9).astype(np.float32)
    index = random.integers(0, 8, (3, 5, 4)).astype(np.int32)  # nobody asks for the last one
    weights = random.standard_normal(index.shape).astype(np.float32)
    found, gradient = jax.jit(jax.value_and_grad(
        lambda table: jnp.sum(look_up(table, index) * weights)))(table)
    np.testing.assert_allclose(found, (table[index] * weights).sum(), rtol=1e-5)
    expected = np.bincount(index.ravel(), weights.ravel(), minlength=9)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert gradient[8] == 0


def test_the_gradient_of_a_look_up_holds_no_array_of_indices_by_table() -> None:
    index = jax.ShapeDtypeStruct((4, 256, 256), jnp.int32)
    table = jax.ShapeDtypeStruct((TIME_BUCKETS,), jnp.float32)

    def back(table: jax.Array, index: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jax.vjp(lambda table: look_up(table, index), table)[1](cotangent)[0]

    compiled = jax.jit(back).lower(table, index, jax.ShapeDtypeStruct(index.shape, jnp.float32))
    used = compiled.compile().memory_analysis().temp_size_in_bytes
    assert used < 2 * 4 * np.prod(index.shape)
