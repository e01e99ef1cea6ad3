"""A step of masked items: its loss is that of hidden places, on every mesh, in every mode."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_step, new_state

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, transformer
from rec_jax.objectives.base import Keys
from rec_jax.objectives.masked_item import Config
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.state import TrainState
from rec_jax.train.step import place_batch

ITEMS, DIM, LENGTH, ROWS, SEED = 60, 8, 7, 8, 3
OBJECTIVE = Config(share=0.4, last=0.2, z_loss=1e-3, backend="xla")
Batch = dict[str, np.ndarray]


def batches(count: int) -> list[Batch]:
    """Rows of two users each, walks along the items, and a place of padding."""
    random = np.random.default_rng(0)
    segments = np.array([1] * 4 + [2] * 2 + [0], np.int32)
    made = []
    for _ in range(count):
        starts = random.integers(0, ITEMS, (ROWS, 1)) + np.where(segments == 2, 17, 0)
        items = np.where(segments > 0, (starts + np.arange(LENGTH)) % ITEMS, 0)
        batch = {"items": items, "targets": np.where(segments > 0, items, -1),
                 "segments": np.broadcast_to(segments, items.shape),
                 "positions": np.broadcast_to([0, 1, 2, 3, 0, 1, 0], items.shape)}
        made.append({name: np.ascontiguousarray(value[None], np.int32)
                     for name, value in batch.items()})
    return made


@functools.cache
def setup(mode: str, data: int = 1, items: int = 1, rate: float = 1e-2) -> tuple[Any, ...]:
    mesh = make_mesh(MeshConfig(data, items))
    table = TableConfig(dim=DIM, init_scale=0.3, optimizer=RowOptimizerConfig(kind="adam"))
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=2, dropout=0.0), dim=DIM, length=LENGTH,
        causal=OBJECTIVE.causal, precision="f32", seed=0)
    optimizer = optax.adam(rate) if rate else optax.sgd(0.0)
    step = make_step(encoder, OBJECTIVE, optimizer, table, mode, mesh=mesh,
                     rate=optax.constant_schedule(rate))
    return (mesh, step, lambda: new_state(params, optimizer, table, mode, ITEMS, mesh,
                                          run_seed=SEED), encoder)


def train(mode: str, *mesh_shape: int, steps: int = 12) -> tuple[np.ndarray, TrainState]:
    mesh, step, start, _ = setup(mode, *mesh_shape)
    state, losses = start(), []
    for batch in batches(steps):
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))  # one step at a time on the fake devices
    return np.asarray(losses), state


@functools.cache
def alone() -> tuple[np.ndarray, np.ndarray]:
    losses, state = train("dense")
    return losses, np.asarray(state.items.rows)


@pytest.mark.parametrize(("mode", "data", "items"), [
    ("streamed", 2, 4), pytest.param("streamed", 1, 1, marks=pytest.mark.slow),
    pytest.param("dense", 2, 2, marks=pytest.mark.slow)])
def test_modes_and_meshes_agree(mode: str, data: int, items: int) -> None:
    losses, state = train(mode, data, items)
    expected, rows = alone()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(state.items.rows, rows, atol=1e-3)


def test_the_loss_is_the_mean_over_hidden_places() -> None:
    mesh, step, start, encoder = setup("dense", rate=0.0)
    (batch,) = batches(1)
    state = start()
    params, rows = jax.tree.map(np.asarray, (state.encoder, state.items.rows))
    # The key of the first micro-batch of step 0, as the step makes it.
    key = jax.random.wrap_key_data(state.key)
    for part in (0, 0, 1):
        key = jax.random.fold_in(key, part)
    task = OBJECTIVE.plan(jax.tree.map(jnp.asarray, batch), Keys(key[None], key), ITEMS)
    assert task.hidden is not None
    hidden = np.asarray(task.hidden[0])
    assert 0 < hidden.sum() < (batch["segments"] > 0).sum()

    _, metrics = step(state, place_batch(batch, mesh))
    vectors = rows[batch["items"][0]]
    vectors[hidden] = params["mask"]
    queries = encoder(params, jnp.asarray(vectors), Inputs(
        jnp.asarray(batch["segments"][0]), jnp.asarray(batch["positions"][0])))
    scores = np.asarray(queries, np.float64)[hidden] @ rows[:ITEMS].astype(np.float64).T
    lse = np.log(np.exp(scores).sum(axis=1))
    wanted = batch["items"][0][hidden]
    losses = lse - scores[np.arange(len(wanted)), wanted] + OBJECTIVE.z_loss * lse**2
    assert metrics.positions == hidden.sum() and metrics.bad_ids == 0
    assert float(metrics.loss) == pytest.approx(losses.mean(), rel=1e-5)


def test_the_vector_of_hidden_places_learns_and_is_part_of_the_state() -> None:
    _, _, start, _ = setup("dense")
    before = np.array(start().encoder["mask"])
    _, state = train("dense")
    assert before.shape == (DIM,) and np.abs(before - state.encoder["mask"]).min() > 1e-3
