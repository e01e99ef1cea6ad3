"""Two tables, one that the encoder reads and one that is scored: every mode is the plain step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow_but
from steps import make_step, new_state

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, transformer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.tables import INPUTS, RowOptimizerConfig, TableConfig
from rec_jax.train.state import served
from rec_jax.train.step import place_batch

ITEMS, DIM, LENGTH, ROWS, RATE = 20, 8, 6, 8, 1e-2
OBJECTIVES = {"dense": next_item.Config(backend="xla"),
              "streamed": next_item.Config(backend="xla"),
              "sparse": sampled_softmax.Config(count=ITEMS)}  # all: the full softmax
MODES = sorted(OBJECTIVES)
OPTAX = {"adam": optax.adam(RATE), "sgd": optax.sgd(RATE)}


def batches(count: int, known: int = ITEMS):
    """Each of the first `known` items is an input, in any order; rows end with one padding."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        inputs = rng.permutation(np.arange(ROWS * (LENGTH - 1)) % known).reshape(ROWS, -1)
        inputs = np.pad(inputs, ((0, 0), (0, 1)))
        segments = np.broadcast_to(np.where(np.arange(LENGTH) < LENGTH - 1, 1, 0), inputs.shape)
        batch = {"items": inputs,
                 "targets": np.where(segments > 0, rng.integers(0, ITEMS, inputs.shape), -1),
                 "segments": segments,
                 "positions": np.broadcast_to(np.arange(LENGTH), inputs.shape)}
        yield {name: np.ascontiguousarray(value[None], dtype=np.int32)
               for name, value in batch.items()}


ENCODER, PARAMS = build_encoder(
    transformer.Config(layers=1, heads=1, hidden=2, dropout=0.0), dim=DIM, length=LENGTH,
    causal=True, precision="f32", seed=0)


@functools.cache
def setup(mode: str, kind: str = "adam", dtype: str = "f32", ema: float | None = None,
          data: int = 1, items: int = 1):
    mesh = make_mesh(MeshConfig(data, items))
    config = TableConfig(dim=DIM, tied=False, dtype=dtype,
                         optimizer=RowOptimizerConfig(kind=kind))
    step = make_step(ENCODER, OBJECTIVES[mode], OPTAX[kind], config, mode, mesh=mesh,
                     rate=optax.constant_schedule(RATE), ema=ema)
    return mesh, step, lambda: new_state(PARAMS, OPTAX[kind], config, mode, ITEMS, mesh,
                                         average=ema is not None)


def train(steps: int, *arguments, known: int = ITEMS, **settings):
    mesh, step, start = setup(*arguments, **settings)
    state, losses = start(), []
    for batch in batches(steps, known):
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))
    return np.array(losses), state


@functools.cache
def plain(steps: int, kind: str, known: int = ITEMS):
    """Losses and weights of optax on all parameters, with scores as an array and no table."""
    state = setup("dense", kind)[2]()
    weights = {"encoder": PARAMS, "rows": state.items.rows, "inputs": state.tables[INPUTS].rows}
    optimizer = OPTAX[kind]

    def loss(weights, batch):
        vectors = weights["inputs"][batch["items"]]
        queries = ENCODER(weights["encoder"], vectors,
                          Inputs(batch["segments"], batch["positions"]))
        scores = jnp.einsum("bld,vd->blv", queries, weights["rows"][:ITEMS],
                            precision=jax.lax.Precision.HIGHEST)
        there = batch["targets"] >= 0
        each = optax.softmax_cross_entropy_with_integer_labels(
            scores, jnp.maximum(batch["targets"], 0))
        return jnp.sum(jnp.where(there, each, 0)) / jnp.sum(there)

    @jax.jit
    def step(weights, moments, batch):
        value, grads = jax.value_and_grad(loss)(weights, batch)
        updates, moments = optimizer.update(grads, moments, weights)
        return optax.apply_updates(weights, updates), moments, value

    moments, losses = optimizer.init(weights), []
    for batch in batches(steps, known):
        weights, moments, value = step(weights, moments, {k: v[0] for k, v in batch.items()})
        losses.append(float(value))
    return np.array(losses), weights


def assert_same_weights(state, weights, atol: float, of_keys: float | None = None) -> None:
    """of_keys: the tolerance of the bias of keys, where it is another."""
    np.testing.assert_allclose(state.items.rows, weights["rows"], atol=atol)
    np.testing.assert_allclose(state.tables[INPUTS].rows, weights["inputs"], atol=atol)
    for name, leaf in state.encoder.items():
        leaf, expected = np.asarray(leaf), np.asarray(weights["encoder"][name])
        keys = np.zeros(leaf.shape, bool)
        if of_keys is not None and name.endswith("qkv/bias"):
            keys[DIM:2 * DIM] = True
            np.testing.assert_allclose(leaf[keys], expected[keys], atol=of_keys, err_msg=name)
        np.testing.assert_allclose(leaf[~keys], expected[~keys], atol=atol, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_plain_adam_of_both_tables_where_all_rows_are_read(mode):
    expected, weights = plain(6, "adam")
    losses, state = train(6, mode)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # One vector added to all keys changes no attention: the gradient of that bias is nothing but
    # rounding, of which Adam may make a whole step each time.
    assert_same_weights(state, weights, 2e-5, of_keys=2 * 6 * RATE)
    assert np.abs(weights["inputs"] - np.asarray(setup(mode)[2]().tables[INPUTS].rows)).max() > RATE


@pytest.mark.parametrize("mode", slow_but(("sparse", "streamed"), MODES))
def test_every_mode_is_plain_descent_where_some_rows_are_never_read(mode):
    expected, weights = plain(6, "sgd", 7)
    losses, state = train(6, mode, "sgd", known=7)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same_weights(state, weights, 1e-6)
    first = setup(mode, "sgd")[2]()
    moved = {name: np.any(np.asarray(table.rows) != np.asarray(first.tables[name].rows), axis=1)
             for name, table in state.tables.items()}
    np.testing.assert_array_equal(np.flatnonzero(moved[INPUTS]), np.arange(7))
    assert moved["items"][:20].all()


@pytest.mark.parametrize("mode", ["sparse", "streamed"])
def test_each_table_counts_the_steps_of_its_own_rows(mode):
    _, state = train(3, mode, known=7)
    assert np.asarray(state.tables[INPUTS].state.steps)[:ITEMS].tolist() == [3] * 7 + [0] * 13
    assert np.asarray(state.items.state.steps)[:ITEMS].tolist() == [3] * ITEMS


@pytest.mark.parametrize("mode", slow_but("sparse", MODES))
def test_bf16_tables_follow_f32_ones_on_a_mesh(mode):
    expected, exact = train(6, mode)
    losses, state = train(6, mode, dtype="bf16", data=2, items=4)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    for half, full in ((state.tables[name], exact.tables[name]) for name in ("items", INPUTS)):
        assert half.rows.dtype == jnp.bfloat16
        apart = np.abs(np.asarray(half.rows, np.float32) - np.asarray(full.rows))[:ITEMS]
        assert 0 < apart.mean() < 1e-3
        assert not np.any(np.asarray(half.rows, np.float32)[ITEMS:])


def test_the_average_has_both_tables_and_is_what_is_served():
    mesh, step, start = setup("dense", "sgd", ema=0.75)
    state = start()
    expected = np.asarray(state.tables[INPUTS].rows)
    for batch in batches(3):
        state, _ = step(state, place_batch(batch, mesh))
        expected = 0.75 * expected + 0.25 * np.asarray(state.tables[INPUTS].rows)
    np.testing.assert_allclose(state.average.tables[INPUTS], expected, atol=1e-7)
    params, rows = served(state)
    assert params[INPUTS] is state.average.tables[INPUTS] and rows is state.average.tables["items"]
    assert INPUTS not in state.encoder
