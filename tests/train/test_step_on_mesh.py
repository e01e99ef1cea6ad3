from __future__ import annotations

import functools

import numpy as np
import optax
import pytest
from marks import fast_where
from steps import make_step, new_state

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.step import check_ids, place_batch

ITEMS, DIM, LENGTH, ROWS = 100, 8, 6, 8
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
OBJECTIVES = {"dense": next_item.Config(z_loss=1e-3, backend="xla"),
              "streamed": next_item.Config(z_loss=1e-3, backend="xla"),
              "sparse": sampled_softmax.Config(count=50)}


def batches(count: int, accumulate: int = 1):
    rng = np.random.default_rng(0)
    for _ in range(count):
        items = np.minimum(rng.zipf(1.3, (ROWS, LENGTH + 1)) - 1, ITEMS - 1).astype(np.int32)
        segments = np.broadcast_to(np.where(np.arange(LENGTH) < LENGTH - 1, 1, 0), (ROWS, LENGTH))
        batch = {"items": np.where(segments > 0, items[:, :-1], 0),
                 "targets": np.where(segments > 0, items[:, 1:], -1),
                 "segments": segments.astype(np.int32),
                 "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))}
        yield {name: np.ascontiguousarray(value.reshape(accumulate, -1, LENGTH).astype(np.int32))
               for name, value in batch.items()}


@functools.cache
def setup(mode: str, data: int, items: int, kind: str = "row_adam", dtype: str = "f32",
          tied: bool = True):
    mesh = make_mesh(MeshConfig(data, items))
    config = TableConfig(dim=DIM, tied=tied, dtype=dtype,
                         optimizer=RowOptimizerConfig(kind=kind))
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=2, dropout=0.1), dim=DIM, length=LENGTH,
        causal=True, precision="f32", seed=0)
    optimizer = optax.adam(1e-2)
    step = make_step(encoder, OBJECTIVES[mode], optimizer, config, mode, mesh=mesh,
                     rate=optax.constant_schedule(1e-2))
    return mesh, step, lambda: new_state(params, optimizer, config, mode, ITEMS, mesh)


def train(mode: str, data: int, items: int, steps: int, accumulate: int = 1, **settings):
    mesh, step, start = setup(mode, data, items, **settings)
    state, losses = start(), []
    for batch in batches(steps, accumulate):
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))  # one step at a time on the fake devices
    check_ids(int(metrics.bad_ids))
    return np.asarray(losses), state


@functools.cache
def alone(mode: str, steps: int):
    losses, state = train(mode, 1, 1, steps)
    return losses, np.asarray(state.items.rows)


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    lambda mode, mesh: (mode, mesh) in {("dense", (2, 4)), ("sparse", (2, 4)),
                                        ("streamed", (1, 8))},
    ["dense", "sparse", "streamed"], MESHES[1:]), ids=str)
def test_fifty_steps_give_the_same_losses_and_rows_on_every_mesh(mode, mesh):
    losses, state = train(mode, *mesh, 50)
    expected, rows = alone(mode, 50)
    assert expected[-5:].mean() < expected[:5].mean() - 0.2  # it learns
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(state.items.rows, rows, atol=1e-4)
    assert not state.items.rows.is_fully_replicated or mesh[1] == 1


@functools.cache
def untied_alone(mode: str):
    losses, state = train(mode, 1, 1, 6, tied=False)
    return losses, np.asarray(state.items.rows), np.asarray(state.tables["inputs"].rows)


@pytest.mark.parametrize("mode", [
    pytest.param("dense", marks=pytest.mark.slow), "sparse",
    pytest.param("streamed", marks=pytest.mark.slow)])
def test_untied_tables_train_the_same_on_a_mesh(mode):
    losses, state = train(mode, 2, 4, 6, tied=False)
    expected, rows, inputs = untied_alone(mode)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(state.items.rows, rows, atol=1e-4)
    np.testing.assert_allclose(state.tables["inputs"].rows, inputs, atol=1e-4)
    for table in state.tables.values():
        assert not table.rows.is_fully_replicated
