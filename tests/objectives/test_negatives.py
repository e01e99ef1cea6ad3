from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import catalogue

from rec_jax.errors import InputError
from rec_jax.objectives import Task, bce, negatives, sampled_softmax
from rec_jax.objectives.base import Ids
from rec_jax.objectives.sampled import NEGATIVES, Negatives, against

V, N, DIM = 40, 16, 5
KEY = jax.random.key(0)
TABLE = jax.random.normal(jax.random.key(1), (V, DIM))
QUERIES = jax.random.normal(jax.random.key(2), (N, DIM))
TARGETS = jax.random.randint(jax.random.key(3), (N,), 0, V)


def full_loss(queries, table, scale=1.0):
    scores = scale * queries @ table.T
    return jax.nn.logsumexp(scores, axis=1) - scores[jnp.arange(N), TARGETS]


def task_of(drawn, targets=TARGETS):
    return against(Task(None, targets, jnp.ones(len(targets))), drawn)


@jax.jit
def sampled_loss(queries, table, drawn, scale=1.0, targets=TARGETS):
    task = task_of(drawn, targets)
    return negatives.sampled_softmax(queries, task, catalogue(table, task), scale=scale)


def test_all_items_drawn_uniformly_give_the_full_softmax_and_its_gradients():
    drawn = negatives.uniform(KEY, V, V)

    def gradients(loss):
        return jax.jit(jax.grad(lambda args: jnp.sum(loss(*args) ** 2)))((QUERIES, TABLE))

    np.testing.assert_allclose(sampled_loss(QUERIES, TABLE, drawn, 0.7),
                               full_loss(QUERIES, TABLE, 0.7), rtol=1e-5)
    sampled = gradients(lambda q, w: sampled_loss(q, w, drawn))
    for got, wanted in zip(sampled, gradients(full_loss), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [negatives.uniform, negatives.log_uniform])
def test_the_corrected_sum_is_an_unbiased_estimate_of_the_normaliser(sampler):
    count, draws = 8, 4000
    own = jnp.sum(QUERIES * TABLE[TARGETS], axis=1)

    @jax.jit
    @jax.vmap
    def normaliser(key):
        drawn = sampler(key, V, count)
        return jnp.exp(sampled_loss(QUERIES, TABLE, drawn) + own)

    estimates = np.asarray(normaliser(jax.random.split(KEY, draws)))
    exact = np.exp(np.asarray(full_loss(QUERIES, TABLE) + own))
    error = estimates.std(0) / draws**0.5
    assert np.all(error > 0)
    assert np.all(np.abs(estimates.mean(0) - exact) < 4.5 * error)


def test_uniform_negatives_differ_and_every_item_is_as_likely():
    ids = np.asarray(jax.jit(jax.vmap(lambda key: negatives.uniform(key, V, 10).ids))(
        jax.random.split(KEY, 4000)))
    assert all(len(set(row)) == 10 for row in ids[:200])
    counts = np.bincount(ids.ravel(), minlength=V)
    assert len(counts) == V
    assert np.all(np.abs(counts - 1000) < 5 * 1000**0.5)


@pytest.mark.parametrize("num_items", [1, 2, 3, 7, 8, 31, 32, 1000])
def test_log_uniform_probabilities_are_of_one_whole_and_fall_with_rank(num_items):
    log_q = np.asarray(negatives.log_uniform_log_q(jnp.arange(num_items), num_items))
    assert abs(np.exp(log_q.astype(np.float64)).sum() - 1) < 1e-5
    assert np.all(np.diff(log_q) < 1e-6)


def test_log_uniform_draws_follow_their_probabilities():
    drawn = negatives.log_uniform(KEY, V, 100_000)
    counts = np.bincount(drawn.ids, minlength=V)
    expected = 100_000 * np.exp(np.asarray(negatives.log_uniform_log_q(jnp.arange(V), V)))
    assert np.all(np.abs(counts - expected) < 5 * expected**0.5)
    np.testing.assert_allclose(np.exp(drawn.log_expected), expected[np.asarray(drawn.ids)],
                               rtol=1e-4)


def test_samplers_reach_the_whole_of_a_huge_catalogue():
    huge = 2**31 - 98_304
    for sampler in (negatives.uniform, negatives.log_uniform):
        ids = np.asarray(sampler(KEY, huge, 4096).ids)
        assert ids.min() >= 0
        assert huge // 2 < ids.max() < huge
        assert len(set(ids % 2)) == 2


def test_an_accidental_hit_is_no_negative():
    drawn = Negatives(TARGETS, jnp.zeros(N))
    loss = sampled_loss(QUERIES, TABLE, drawn)
    scores = np.asarray(QUERIES @ TABLE[TARGETS].T, np.float64)
    hit = np.asarray(TARGETS)[:, None] == np.asarray(TARGETS)[None]
    others = np.where(hit, 0.0, np.exp(scores)).sum(1)
    np.testing.assert_allclose(loss, np.log1p(others / np.exp(np.diag(scores))), rtol=1e-5)


def test_negatives_that_are_all_hits_give_loss_and_gradient_zero():
    drawn = Negatives(jnp.full(3, 7), jnp.zeros(3))

    def loss(queries):
        return jnp.sum(sampled_loss(queries, TABLE, drawn, targets=jnp.full(N, 7)))

    value, grads = jax.value_and_grad(loss)(QUERIES)
    assert value == 0
    assert not np.any(np.asarray(grads))


def test_in_batch_negatives_leave_out_positions_without_a_label():
    weights = jnp.where(jnp.arange(N) < 10, 1.0, 0.0)
    log_q = jnp.full(N, -np.log(V))
    loss = sampled_loss(QUERIES, TABLE, negatives.in_batch(TARGETS, weights, log_q))
    only = Negatives(TARGETS[:10], jnp.full(10, np.log(10 / V)))
    np.testing.assert_allclose(loss, sampled_loss(QUERIES, TABLE, only), rtol=1e-6)


def test_the_row_of_an_empty_slot_is_not_read():
    """Whether it comes before or after the slot of the same item that is in use."""
    ids = jnp.array([3, 3, 5, 3, 3, 7])
    drawn = Negatives(ids, jnp.array([jnp.inf, 0.5, 0.0, 0.2, jnp.inf, jnp.inf]))
    wanted = sampled_loss(QUERIES, TABLE, Negatives(
        jnp.array([3, 3, 5]), jnp.array([0.5, 0.2, 0.0])))
    task = task_of(drawn)
    used = task.shared[NEGATIVES].present
    np.testing.assert_array_equal(used, [False, True, True, True, False, False])
    # A catalogue may give 0 for an empty slot, as if it were padding behind the last row.
    read = task._replace(shared={NEGATIVES: Ids(jnp.where(used, ids, V), used)})
    padded = jnp.concatenate([TABLE, jnp.zeros((1, DIM))])
    found = negatives.sampled_softmax(QUERIES, task, catalogue(padded, read, V))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_more_different_negatives_than_items_are_refused():
    with pytest.raises(InputError, match="41 different negatives of 40 items"):
        negatives.uniform(KEY, V, V + 1)


@pytest.mark.parametrize("config", [
    sampled_softmax.Config(), bce.Config(count=8192, shared=True)], ids=lambda config: config.kind)
def test_no_array_of_positions_times_negatives_exists(config):
    positions, count, dim = 4096, 8192, 16
    queries, table = (jax.ShapeDtypeStruct((n, dim), jnp.float32) for n in (positions, count))
    ids = jax.ShapeDtypeStruct((count,), jnp.int32)

    def total(queries, table, targets, ids):
        task = task_of(Negatives(ids, jnp.zeros(count)), targets)
        return jnp.sum(config.loss(queries, task, catalogue(table, task)))

    step = jax.jit(jax.grad(total, argnums=(0, 1)))
    targets = jax.ShapeDtypeStruct((positions,), jnp.int32)
    memory = step.lower(queries, table, targets, ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < positions * count  # a quarter of the scores in f32
