"""A table whose rows are spread trains to the numbers of one whose rows are the ids."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_step, new_state

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import hard_negatives, next_item, sampled_softmax
from rec_jax.tables import RowMap, RowOptimizerConfig, TableConfig
from rec_jax.tables.row_map import spread
from rec_jax.train.step import place_batch

ITEMS, DIM, LENGTH, ROWS, STEPS = 1500, 8, 6, 16, 5
MESHES = [(1, 1), (1, 8), (2, 4), (8, 1)]
CASES = {
    "sparse": ("sparse", sampled_softmax.Config(count=64), "f32", True),
    "sparse bf16": ("sparse", sampled_softmax.Config(count=64), "bf16", True),
    "sparse untied": ("sparse", sampled_softmax.Config(count=64), "f32", False),
    "sparse mined": ("sparse", hard_negatives.Config(), "f32", True),
    "streamed": ("streamed", next_item.Config(backend="xla"), "f32", True),
    "streamed untied": ("streamed", next_item.Config(backend="xla"), "f32", False),
    "dense": ("dense", next_item.Config(backend="xla"), "f32", True),
    "dense bf16": ("dense", next_item.Config(backend="xla"), "bf16", False),
    "dense sampled": ("dense", sampled_softmax.Config(count=64), "f32", True),
}


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        items = np.minimum(random.zipf(1.2, (1, ROWS, LENGTH + 1)) - 1, ITEMS - 1).astype(np.int32)
        there = np.broadcast_to(np.arange(LENGTH) < LENGTH - 1, (1, ROWS, LENGTH))
        yield {"items": np.where(there, items[..., :-1], 0),
               "targets": np.where(there, items[..., 1:], -1), "segments": there.astype(np.int32),
               "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), there.shape)}


@functools.cache
def train(case: str, data: int, items: int, moved: bool):
    """Losses, and rows by id with the state of their optimizer."""
    mode, objective, dtype, tied = CASES[case]
    mesh, order = make_mesh(MeshConfig(data, items)), spread(ITEMS) if moved else RowMap(ITEMS)
    config = TableConfig(dim=DIM, tied=tied, dtype=dtype,
                         optimizer=RowOptimizerConfig(kind="row_adam"))
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=2, dropout=0.1), dim=DIM, length=LENGTH,
        causal=True, precision="f32", seed=0)
    optimizer = optax.adam(1e-2)
    step = make_step(encoder, objective, optimizer, config, mode, mesh=mesh,
                     rate=optax.constant_schedule(1e-2))
    state = new_state(params, optimizer, config, mode, ITEMS, mesh, row_map=order)
    losses = []
    for batch in batches():
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))
        assert int(metrics.bad_ids) == 0
    places = order.rows(np.arange(state.items.rows.shape[0]))
    tables = [state.items] + ([] if tied else [state.tables["inputs"]])
    assert all(table.row_map == order for table in tables)
    return np.asarray(losses), [np.asarray(leaf)[places] for table in tables
                                for leaf in jax.tree.leaves((table.rows, table.state))]


FAST = [("sparse bf16", 2, 4)]


@pytest.mark.parametrize(("case", "data", "items"), [
    pytest.param(case, *mesh, marks=() if (case, *mesh) in FAST else pytest.mark.slow)
    for case in CASES for mesh in MESHES])
def test_spread_rows_train_to_the_same_numbers(case, data, items):
    losses, leaves = train(case, data, items, True)
    expected, plain = train(case, data, items, False)
    # Sums over the table are in the order of its rows; else nothing depends on it.
    if CASES[case][0] == "sparse":
        np.testing.assert_array_equal(losses, expected)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for found, wanted in zip(leaves, plain, strict=True):
        if CASES[case][0] == "sparse":
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32),
                                   atol=1e-2 if found.dtype == jnp.bfloat16 else 1e-5)


@pytest.mark.parametrize(("case", "data", "items"), [
    pytest.param(case, *mesh, marks=pytest.mark.slow)
    for case in ("sparse", "sparse bf16", "streamed") for mesh in MESHES[1:]])
def test_spread_rows_train_the_same_on_every_mesh(case, data, items):
    losses, leaves = train(case, data, items, True)
    expected, alone = train(case, 1, 1, True)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for found, wanted in zip(leaves, alone, strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32),
                                   atol=1e-2 if found.dtype == jnp.bfloat16 else 1e-4)
