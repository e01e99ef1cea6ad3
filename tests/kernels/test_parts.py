"""A softmax whose table passes by in parts is that over the whole table."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import (
    fold_part,
    loss_of_parts,
    no_part,
    softmax_in_parts,
    softmax_item_update,
    softmax_loss,
)
from rec_jax.kernels.dispatch import load, refusal
from rec_jax.kernels.primitives import Problem

V, PADDED, N, DIM, PART = 70, 96, 13, 5, 40  # the second has items and padding, the last none


def problem(seed: int, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    rows = np.where(np.arange(PADDED)[:, None] < V, random.normal(size=(PADDED, DIM)) * 2, np.nan)
    targets = random.integers(0, V, N)
    targets[:4] = 0, PART - 1, PART, V - 1
    targets[4] = V + 3  # no item
    queries = random.normal(size=(N, DIM)) * 3
    return (jnp.asarray(queries, dtype), jnp.asarray(rows, dtype),
            jnp.asarray(targets, jnp.int32), jnp.asarray(random.random((2, N)), jnp.float32))


@functools.cache
def compiled(backend: str, softcap: float | None):
    """Loss, lse and the queries' gradient: whole, in parts, in one part, and part by part."""
    how = {"num_items": V, "logit_scale": 0.7, "softcap": softcap, "backend": backend}

    def graded(loss_of, queries, weights):
        def total(queries):
            loss, lse = loss_of(queries)
            loss = jnp.where(jnp.isinf(loss), 0.0, loss)
            return jnp.sum(weights[0] * loss + weights[1] * lse), (loss, lse)
        (_, answers), grads = jax.value_and_grad(total, has_aux=True)(queries)
        return (*answers, grads)

    @jax.jit
    def all_ways(queries, rows, targets, weights):
        def by_hand(queries_now):
            folded = no_part(queries)
            for first in range(0, PADDED, PART):
                folded = fold_part(folded, queries, rows[first:first + PART], targets,
                                   first=first, **how)
            return loss_of_parts(queries_now, folded, logit_scale=0.7, softcap=softcap)
        ways = [lambda q: softmax_loss(q, jax.lax.stop_gradient(rows), targets, **how),
                lambda q: softmax_in_parts(q, rows, targets, part=PART, **how), by_hand]
        if softcap is None:
            ways.append(lambda q: softmax_in_parts(q, rows, targets, part=10**6, **how))
        return [graded(way, queries, weights) for way in ways]

    return all_ways


def can_run(backend: str) -> None:
    reason = refusal(load(backend), Problem("softmax_loss", "cpu", N, PADDED, DIM, "float32",
                                            "float32"))
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(("backend", "softcap"), [
    ("xla", 4.0), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("native", None), ("native", 4.0), ("reference", None), ("xla", None)))])
def test_parts_give_loss_and_gradient_of_the_whole(backend: str, softcap: float | None) -> None:
    can_run(backend)
    for seed in range(3):
        whole, parts, by_hand, *alone = compiled(backend, softcap)(*problem(seed))
        for expected, found in zip(whole, parts, strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        for one in alone:  # one part is no part
            for expected, found in zip(whole, one, strict=True):
                np.testing.assert_array_equal(found, expected)
        for expected, found in zip(parts, by_hand, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_label_in_no_part_and_a_score_that_is_no_number() -> None:
    queries, rows, targets, weights = problem(1)
    rows = rows.at[30, 0].set(jnp.nan)  # an item of the second part
    queries = queries.at[2].set(0.0).at[2, 0].set(1.0)
    _, parts, *_ = compiled("xla", 4.0)(queries, rows, targets, weights)
    assert np.isnan(parts[0]).all() and np.isnan(parts[1]).all()
    clean = compiled("xla", 4.0)(*problem(1))[1]
    assert np.asarray(clean[0])[4] == 0.0  # inf, which `graded` leaves out


def test_the_second_pass_has_the_bits_of_one_that_stands_alone() -> None:
    """With a table of one tile, over which there is no loop where its number is known, and
    cotangents of both answers, whose factors are sums."""
    queries, rows, targets, weights = problem(4)
    rows, state = jnp.nan_to_num(rows), jnp.zeros((PADDED, DIM))
    how = {"num_items": V, "backend": "xla"}

    def gradient(rows, grads, state, hyper):
        return rows - hyper * grads, 0.9 * state + 0.1 * grads

    def second(first, rows, state, *known):
        return softmax_item_update(rows, state, *known, update=gradient, hyper=jnp.float32(1),
                                   first=first, **how)[:2]

    @jax.jit
    def together(queries, rows, state, targets, weights):
        zeros = jnp.zeros((2, N))

        def total(zeros):
            loss, lse = softmax_loss(queries, rows, targets, **how)
            loss, lse = loss + zeros[0], lse + zeros[1]
            here = targets < V
            return jnp.sum(jnp.where(here, weights[0] * loss + weights[1] * lse**2, 0)), (loss, lse)

        (_, answers), grads = jax.value_and_grad(total, has_aux=True)(zeros)
        known = (queries, targets, *answers, *grads)
        return second(0, rows, state, *known), known

    found, known = together(queries, rows, state, targets, weights)
    alone = jax.jit(second)(jnp.int32(0), rows, state, *known)
    for one, other in zip(found, alone, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert np.abs(found[1]).max() > 0.01
