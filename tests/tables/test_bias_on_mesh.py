"""Loss, gradients, lists and streamed steps with a bias, on meshes, against NumPy in f64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.mesh import BOTH, ITEMS, MeshConfig, batch_sharding, make_mesh, row_sharding
from rec_jax.tables import Hyper, RowOptimizerConfig, Table, row_optimizer
from rec_jax.tables.bias import bias_state, place_bias, update_bias
from rec_jax.tables.on_mesh import (
    apply_streamed,
    apply_streamed_with_bias,
    catalogue_top_k,
    full_softmax,
)
from rec_jax.tables.row_map import spread
from rec_jax.tables.update_streamed import Scored

V, TOTAL, DIM, N = 90, 96, 4, 16
ORDER = spread(V)
SCALE = 1.7
MESHES = [(1, 1, (ITEMS,)), (1, 8, (ITEMS,)), (2, 4, (ITEMS,)), (8, 1, (ITEMS,)),
          (2, 4, BOTH), (8, 1, BOTH)]


class Case(NamedTuple):
    """Arrays by item. out: items that a bias of -inf takes out; one of them is a label."""

    queries: np.ndarray
    items: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    g: np.ndarray
    z: np.ndarray
    out: np.ndarray


@functools.cache
def case(removes: bool = True) -> Case:
    rng = np.random.default_rng(4)
    out = np.array([3, 50, 89]) if removes else np.array([], int)
    bias = rng.normal(size=V).astype(np.float32)
    bias[out] = -np.inf
    targets = rng.integers(4, 50, N).astype(np.int32)
    targets[:3] = 3, 88, 88
    g, z = rng.normal(size=(2, N)).astype(np.float32)
    g[-1] = z[-1] = 0
    return Case(rng.normal(size=(N, DIM)).astype(np.float32),
                rng.normal(size=(V, DIM)).astype(np.float32), bias, targets, g, z, out)


class Dense(NamedTuple):
    loss: np.ndarray
    lse: np.ndarray
    d_queries: np.ndarray
    d_items: np.ndarray
    d_bias: np.ndarray


def dense(given: Case, softcap: float | None) -> Dense:
    """The formulas with all scores written down, f64; gradients of sum(g loss + z lse)."""
    queries, items, bias = (x.astype(np.float64) for x in given[:3])
    scores = SCALE * queries @ items.T + bias
    slope = np.ones_like(scores)
    if softcap is not None:
        scores = np.where(bias == -np.inf, -np.inf, softcap * np.tanh(scores / softcap))
        slope = np.where(bias == -np.inf, 0, 1 - (scores / softcap) ** 2)
    lse = np.log(np.exp(scores).sum(axis=1))
    p = np.exp(scores - lse[:, None])
    own = np.arange(N), given.targets
    label = np.zeros_like(p)
    label[own] = scores[own] > -np.inf  # one that is no item has the gradient of lse
    weights = ((given.g + given.z)[:, None] * p - given.g[:, None] * label) * slope
    return Dense(lse - scores[own], lse, SCALE * weights @ items, SCALE * weights.T @ queries,
                 weights.sum(axis=0))


def placed(data: int, items: int, over: tuple[str, ...], given: Case):
    """(mesh, rows, bias, targets) in the order of the row map; what pads the table is rubbish."""
    mesh = make_mesh(MeshConfig(data, items))
    rows = np.full((TOTAL, DIM), np.nan, np.float32)
    rows[ORDER.rows(np.arange(V))] = given.items
    bias = np.array(place_bias(TOTAL, mesh, values=given.bias, over=over, row_map=ORDER))
    bias[V:] = 7
    by_rows = row_sharding(mesh, over)
    return (mesh, jax.device_put(rows, by_rows), jax.device_put(bias, by_rows),
            ORDER.rows(given.targets))


def by_item(found: jax.Array) -> np.ndarray:
    return np.asarray(found)[ORDER.rows(np.arange(V))]


def quick(*known):
    """All meshes, of which others than `known` are left to the longer proofs."""
    return [pytest.param(mesh, id=str(mesh), marks=() if mesh in known else pytest.mark.slow)
            for mesh in MESHES]


ALONE, ITEMS_8, DATA_8, BOTH_8 = MESHES[0], MESHES[1], MESHES[3], MESHES[4]


@pytest.mark.parametrize(("softcap", "backend", "placement"), [
    pytest.param(softcap, backend, placement, marks=() if placement in fast else pytest.mark.slow)
    for softcap, backend, known, fast in (
        (2.5, "xla", MESHES, [BOTH_8, DATA_8]), (None, "xla", [ALONE, MESHES[2]], [MESHES[2]]),
        (None, "native", [ITEMS_8], [ITEMS_8]), (2.5, "native", [ALONE], [ALONE]))
    for placement in known], ids=str)
def test_the_full_softmax_takes_a_bias_and_gives_its_gradient(placement, softcap, backend):
    given = case()
    mesh, rows, bias, targets = placed(*placement, given)

    @jax.jit
    def both(queries, rows, bias):
        found, pull = jax.vjp(lambda *args: full_softmax(
            mesh, args[0], args[1], targets, num_items=V, over=placement[2], bias=args[2],
            logit_scale=SCALE, softcap=softcap, backend=backend), queries, rows, bias)
        return found, pull((given.g, given.z))

    (loss, lse), (d_queries, d_rows, d_bias) = both(
        jax.device_put(given.queries, batch_sharding(mesh)), rows, bias)
    expected = dense(given, softcap)
    assert np.isinf(loss[0]) and np.isfinite(loss[1:]).all()
    for found, wanted in zip((loss, lse, d_queries, by_item(d_rows), by_item(d_bias)), expected,
                             strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert d_bias.shape == (TOTAL,) and np.abs(by_item(d_bias)).max() > 0.1
    for grads in (by_item(d_bias)[given.out], by_item(d_rows)[given.out], np.asarray(d_bias)[V:],
                  np.asarray(d_rows)[V:]):
        assert not grads.any()


def test_a_bias_of_zeros_changes_nothing():
    given = case()
    for placement in MESHES[:3]:
        mesh, rows, _, targets = placed(*placement, given)
        plain, zeros = (jax.jit(lambda bias, mesh=mesh, rows=rows, targets=targets: full_softmax(
            mesh, given.queries, rows, targets, num_items=V, bias=bias, backend="xla"))(bias)
            for bias in (None, jnp.zeros(TOTAL)))
        np.testing.assert_allclose(plain, zeros, rtol=1e-6)


@pytest.mark.parametrize("placement", quick(ALONE, ITEMS_8, DATA_8, BOTH_8))
def test_the_best_items_of_the_catalogue_are_those_with_the_bias(placement):
    given = case()
    mesh, rows, bias, _ = placed(*placement, given)
    k = 20  # more than a device has
    scores, found = jax.jit(lambda bias: catalogue_top_k(
        mesh, given.queries, rows, k, None, num_items=V, over=placement[2], bias=bias,
        logit_scale=SCALE))(bias)
    expected = SCALE * given.queries @ given.items.T + given.bias
    order = np.argsort(-expected, axis=1)[:, :k]
    np.testing.assert_array_equal(ORDER.ids(np.asarray(found)), order)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=1e-5,
                               atol=1e-6)
    assert not np.isin(given.out, order).any()
    plain = np.argsort(-given.queries @ given.items.T, axis=1)[:, :k]
    assert (plain != order).any()


STEPS, RATE = 8, 0.2
HYPER = Hyper(jnp.float32(RATE))


@functools.cache
def dense_steps(kind: str, softcap: float | None):
    """Rows and bias after steps of SGD and of optimizer `kind`, from the formulas in f64."""
    given, optimizer = case(), row_optimizer(RowOptimizerConfig(kind=kind))
    items, bias = given.items.astype(np.float64), given.bias
    state = bias_state(optimizer, V)
    for _ in range(STEPS):
        found = dense(given._replace(items=items, bias=bias), softcap)
        items = items - RATE * found.d_items
        new, state = update_bias(jnp.asarray(bias), jnp.asarray(found.d_bias, jnp.float32), state,
                                 optimizer.update, HYPER)
        bias = np.asarray(new)
    return items, bias


@pytest.mark.parametrize(("kind", "softcap", "placement"), [
    ("sgd", None, ALONE), ("row_adam", 2.5, ALONE), ("row_adam", 2.5, BOTH_8),
    *(pytest.param("sgd", None, placement, marks=pytest.mark.slow) for placement in MESHES[1:]),
    *(pytest.param("row_adam", 2.5, placement, marks=pytest.mark.slow)
      for placement in MESHES[1:4])], ids=str)
def test_a_trained_bias_takes_the_dense_step_in_streamed_mode(placement, kind, softcap):
    given, optimizer = case(), row_optimizer(RowOptimizerConfig(kind=kind))
    mesh, rows, bias, targets = placed(*placement, given)
    scoring = {"logit_scale": SCALE, "softcap": softcap, "backend": "xla"}
    rows = jnp.where(np.arange(TOTAL)[:, None] < V, rows, 0)
    bias = jnp.where(np.arange(TOTAL) < V, bias, 0)
    table = Table(jax.device_put(rows, row_sharding(mesh, placement[2])), (), V, placement[2],
                  ORDER)
    state = bias_state(optimizer, TOTAL)
    sgd = row_optimizer(RowOptimizerConfig(kind="sgd"))

    @jax.jit
    def step(table, bias, state):
        loss, lse = full_softmax(mesh, given.queries, table.rows, targets, num_items=V,
                                 over=table.over, bias=bias, **scoring)
        scored = Scored(given.queries, targets, loss, lse, given.g, given.z)
        new, grads = apply_streamed_with_bias(mesh, table, scored, None, sgd.update, HYPER,
                                              bias=bias, **scoring)
        fixed = apply_streamed(mesh, table, scored, None, sgd.update, HYPER, bias=bias, **scoring)
        bias, state = update_bias(bias, grads, state, optimizer.update, HYPER)
        return new, bias, state, fixed.rows

    for _ in range(STEPS):
        table, bias, state, same = step(table, bias, state)
        np.testing.assert_array_equal(table.rows, same)
    items, expected = dense_steps(kind, softcap)
    kept = np.isfinite(given.bias)
    assert np.abs(expected[kept] - given.bias[kept]).max() > 0.1
    np.testing.assert_allclose(by_item(table.rows), items, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(by_item(bias), expected, atol=2e-5, rtol=1e-4)
    assert not np.asarray(bias)[V:].any() and not np.asarray(table.rows)[V:].any()
