"""Stochastic rounding to bf16 and the fast exponential."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.kernels.rounding import random_bits, round_to_bf16, store_rows
from rec_jax.kernels.xla.exp import exp


def test_rounding_is_right_on_average_and_to_a_neighbour() -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=64).astype(np.float32))
    rows = jnp.arange(4096, dtype=jnp.int32)
    bits = random_bits(jnp.uint32(5), rows, 64)
    rounded = np.asarray(round_to_bf16(jnp.broadcast_to(values, (4096, 64)), bits), np.float64)
    spacing = 2.0 ** (np.floor(np.log2(np.abs(np.asarray(values, np.float64)))) - 7)
    assert np.all(np.abs(rounded - np.asarray(values)) < spacing)
    error = np.abs(rounded.mean(axis=0) - np.asarray(values))
    assert np.all(error < 5 * 0.5 * spacing / 64)


def test_bits_belong_to_a_row_and_not_to_a_tile() -> None:
    seed = jnp.uint32(1)
    whole = random_bits(seed, jnp.arange(100, dtype=jnp.int32), 7)
    part = random_bits(seed, jnp.arange(40, 60, dtype=jnp.int32), 7)
    np.testing.assert_array_equal(whole[40:60], part)
    assert np.unique(np.asarray(whole)).size > 690
    assert np.any(np.asarray(whole) != np.asarray(
        random_bits(jnp.uint32(2), jnp.arange(100, dtype=jnp.int32), 7)))


def test_what_is_not_finite_stays_what_it_is() -> None:
    values = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0])
    rounded = np.asarray(round_to_bf16(values, jnp.full(4, 0xFFFF, jnp.uint32)), np.float32)
    np.testing.assert_array_equal(rounded, [np.inf, -np.inf, np.nan, 0.0])


def test_f32_rows_and_rows_without_a_seed_round_to_nearest() -> None:
    values = jnp.array([[1.0 + 2.0**-10]])
    rows = jnp.zeros(1, jnp.int32)
    assert store_rows(values, jnp.dtype(jnp.float32), rows, jnp.uint32(0))[0, 0] == values[0, 0]
    assert store_rows(values, jnp.dtype(jnp.bfloat16), rows, None)[0, 0] == 1.0


def test_exp_is_exact_enough_for_a_softmax_and_keeps_its_limits() -> None:
    x = np.concatenate([np.linspace(-87, 80, 100001), -np.logspace(-8, 1.9, 1001)])
    x = x.astype(np.float32)
    want = np.exp(x.astype(np.float64))
    found = np.asarray(jax.jit(exp)(x), np.float64)
    assert np.all(np.abs(found / want - 1) < 2e-7 + 8e-8 * np.abs(x))
    limits = np.asarray(exp(jnp.array([-jnp.inf, -200.0, 0.0, 200.0, jnp.inf, jnp.nan])))
    np.testing.assert_array_equal(limits, [0.0, 0.0, 1.0, np.inf, np.inf, np.nan])
