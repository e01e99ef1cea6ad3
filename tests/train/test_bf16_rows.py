"""A dense table in bf16 is rounded where it is written, and nowhere else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_step, modes_of, new_state, new_tables

from rec_jax import config
from rec_jax.checkpoint import Checkpoints
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.model.optimizer import OptimizerConfig, dense_optimizer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.progress import Silent
from rec_jax.run import RunConfig
from rec_jax.tables import INPUTS, TableConfig
from rec_jax.train.build import build
from rec_jax.train.resume import resume
from rec_jax.train.state import TrainState, has_rows, init_state, served, to_items
from rec_jax.train.step import Step, place_batch

ITEMS, DIM, LENGTH, ROWS = 60, 8, 6, 4
MESH = make_mesh(MeshConfig())
ENCODER, PARAMS = build_encoder(
    transformer.Config(layers=1, heads=1, hidden=1, dropout=0.0, backend="xla"), dim=DIM,
    length=LENGTH, causal=True, precision="f32", seed=0)


def batch_of(number: int, accumulate: int = 1) -> dict[str, jax.Array]:
    """Walks around a ring of the items, from other places each time."""
    start = np.random.default_rng(number).integers(0, ITEMS, (ROWS, 1))
    items = (start + np.arange(LENGTH + 1)) % ITEMS
    batch = {"items": items[:, :-1], "targets": items[:, 1:],
             "segments": np.ones((ROWS, LENGTH)),
             "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))}
    return place_batch({name: np.ascontiguousarray(
        value.reshape(accumulate, -1, LENGTH), np.int32) for name, value in batch.items()}, MESH)


@functools.cache
def setup(dtype: str, *, ema: float | None = None, tied: bool = True,
          optimizer: str = "adam") -> tuple[Step, Any]:
    table = TableConfig(dim=DIM, dtype=dtype, tied=tied, update="dense", init_scale=0.1)  # type: ignore[arg-type]
    rule = (dense_optimizer(OptimizerConfig(rate=1e-3, warmup=0), 10) if optimizer == "adam"
            else optax.sgd(1.0))
    step = make_step(ENCODER, next_item.Config(backend="xla"), rule, table, mesh=MESH, ema=ema)
    return step, lambda: new_state(PARAMS, rule, table, "dense", ITEMS, MESH,
                                   average=ema is not None)


def f64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def weights_of(state: TrainState) -> dict[str, Any]:
    return {"rows": state.items.rows, **state.encoder}


@pytest.mark.parametrize(("steps", "ema"), [
    (300, 0.998), pytest.param(1500, 0.999, marks=pytest.mark.slow)])
def test_the_average_is_that_of_the_weights_that_the_run_had(steps: int, ema: float) -> None:
    step, start = setup("bf16", ema=ema)
    batches = jax.tree.map(lambda *each: jnp.stack(each), *map(batch_of, range(40)))

    @jax.jit
    def run(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(state: TrainState, number: jax.Array) -> tuple[TrainState, Any]:
            state, _ = step(state, jax.tree.map(lambda each: each[number % 40], batches))
            return state, weights_of(state)

        return jax.lax.scan(one, state, jnp.arange(steps))

    first = f64(weights_of(start()))
    state, history = run(start())
    assert state.average is not None and state.items.rows.dtype == jnp.bfloat16
    for name, leaf in {"rows": state.average.tables["items"], **state.average.encoder}.items():
        expected = first[name]
        for now in np.asarray(history[name], np.float64):
            expected = ema * expected + (1 - ema) * now
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, expected, atol=2e-7, rtol=0, err_msg=name)
        assert np.abs(expected - first[name]).max() > 0.003  # it went somewhere
        assert np.abs(expected - history[name][-1]).max() > 0.003


def kept_gradient() -> optax.GradientTransformation:
    """Moves nothing; its state is the gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads))


@pytest.mark.parametrize("objective", [
    next_item.Config(backend="xla", label_smoothing=0.1, z_loss=0.01),
    sampled_softmax.Config(count=20, backend="xla")])
def test_the_gradient_is_that_of_f32_rows_of_the_same_values(objective: Any) -> None:
    table = TableConfig(dim=DIM, dtype="bf16", tied=False, init_scale=0.3)
    rule = kept_gradient()
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        step = make_step(ENCODER, objective, rule, table, mesh=MESH)
        tables = {name: each.replace(rows=each.rows.astype(dtype))
                  for name, each in new_tables(table, "dense", ITEMS, MESH).items()}
        state = init_state(jax.tree.map(jnp.copy, PARAMS), tables, rule, seed=0,
                           modes=modes_of(table, "dense"), mesh=MESH)
        state, _ = step(state, batch_of(0, accumulate=4))
        found.append(state.optimizer["tables"])
    half, whole = found
    for name in ("items", "inputs"):
        assert half[name].dtype == jnp.float32
        assert np.abs(whole[name]).max() > 1e-3
        np.testing.assert_allclose(half[name], whole[name], atol=1e-8, rtol=1e-5)
        lost = np.asarray(half[name]) - np.asarray(half[name].astype(jnp.bfloat16), np.float32)
        assert np.any(lost)  # bf16 could not hold it


def test_adam_keeps_f32_moments_of_bf16_rows() -> None:
    step, start = setup("bf16", tied=False)
    later, _ = step(start(), batch_of(0))
    for state in (start(), later):
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
        assert len(moments) == 2 * len(PARAMS) + 4
        assert {leaf.dtype.name for leaf in moments} == {"float32"}
        assert all(table.rows.dtype == jnp.bfloat16 for table in state.tables.values())
        assert set(state.tables) == {"items", "inputs"}


def test_a_step_too_small_for_bf16_moves_rows_by_chance_and_keeps_their_mean() -> None:
    """Nearest rounding would leave every row where it is; the chance must not repeat itself."""
    step, start = setup("bf16", tied=False)
    state = start()
    for _ in range(2):
        before = f64([state.items.rows, state.tables[INPUTS].rows])
        state, _ = step(state, batch_of(0))
        after = f64([state.items.rows, state.tables[INPUTS].rows])
        shares = [np.mean(new[:ITEMS] != old[:ITEMS])
                  for old, new in zip(before, after, strict=True)]
        assert all(0.05 < share < 1.0 for share in shares), shares


def test_what_is_served_is_the_average_in_f32() -> None:
    step, start = setup("bf16", ema=0.9, tied=False)
    state, _ = step(start(), batch_of(0))
    params, rows = served(state)
    assert rows.dtype == params[INPUTS].dtype == jnp.float32
    assert np.any(np.asarray(rows) != np.asarray(rows.astype(jnp.bfloat16), np.float32))


def test_a_checkpoint_of_older_runs_with_bf16_moments_still_opens(
        tiny_mapping: Any, tmp_path: Path) -> None:
    settings = config.build(RunConfig, tiny_mapping(
        "table.dtype=bf16", "table.update=dense", "train.ema=0.9", "table.tied=false"))
    built = build(settings)
    random = np.random.default_rng(0)
    filled = jax.tree.map(lambda leaf: jax.device_put(
        random.uniform(0, 9, leaf.shape).astype(leaf.dtype), leaf.sharding), built.state)
    old = to_items(filled)
    del old["rest"]
    old["training"]["optimizer"], old["average"] = (jax.tree.map_with_path(
        lambda path, leaf: leaf.astype(jnp.bfloat16)
        if has_rows(path, leaf, built.state.tables) else leaf, tree)
        for tree in (old["training"]["optimizer"], old["average"]))
    extra = {"position": {}, "config": config.to_mapping(settings),
             "dataset": built.dataset.split_hash, "data": built.stream.state(9),
             "tables": sorted(filled.tables)}
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(9, old, extra)
        checkpoints.wait()
        state, done, _ = resume(checkpoints, built, settings, Silent())
    assert done == 9 and jax.tree.structure(state) == jax.tree.structure(built.state)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(built.state), strict=True):
        assert found.dtype == wanted.dtype and found.sharding == wanted.sharding
    rows = np.asarray(old["average"]["tables"]["items"], np.float32)
    np.testing.assert_array_equal(state.average.tables["items"], rows)  # type: ignore[union-attr]
    assert rows.any() and not np.any(state.rest.tables["items"])  # type: ignore[union-attr]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.rest))
