"""What every mode of the step promises; `test_step_on_mesh.py` has the meshes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import fast_where, slow_but
from steps import make_step, new_state

from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.step import check_ids, place_batch

ITEMS, DIM, LENGTH, ROWS = 100, 8, 6, 8
OBJECTIVES = {"dense": next_item.Config(backend="xla"),
              "streamed": next_item.Config(backend="xla"),
              "sparse": sampled_softmax.Config(count=50)}
EXACT = sampled_softmax.Config(count=ITEMS)  # every item is a negative: the full softmax
TIED_ADAM = RowOptimizerConfig(kind="adam")


def batches(count: int, accumulate: int = 1):
    """Zipf items; each row ends with one position of padding."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        items = np.minimum(rng.zipf(1.3, (ROWS, LENGTH + 1)) - 1, ITEMS - 1)
        segments = np.broadcast_to(np.where(np.arange(LENGTH) < LENGTH - 1, 1, 0), (ROWS, LENGTH))
        batch = {"items": np.where(segments > 0, items[:, :-1], 0),
                 "targets": np.where(segments > 0, items[:, 1:], -1),
                 "segments": segments,
                 "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))}
        yield {name: np.ascontiguousarray(value.reshape(accumulate, -1, LENGTH), dtype=np.int32)
               for name, value in batch.items()}


@functools.cache
def setup(mode, data=1, items=1, objective=None, rows=RowOptimizerConfig(), dtype="f32",  # noqa: B008
          dropout=0.1, num_items=ITEMS, tied=True):
    mesh = make_mesh(MeshConfig(data, items))
    table = TableConfig(dim=DIM, tied=tied, dtype=dtype, optimizer=rows)
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=2, dropout=dropout), dim=DIM, length=LENGTH,
        causal=True, precision="f32", seed=0)
    optimizer = optax.adam(1e-2)
    step = make_step(encoder, objective or OBJECTIVES[mode], optimizer, table, mode, mesh=mesh,
                     rate=optax.constant_schedule(1e-2))
    return mesh, step, lambda: new_state(params, optimizer, table, mode, num_items, mesh)


def train(mode, *mesh_shape, steps, accumulate=1, **settings):
    mesh, step, start = setup(mode, *mesh_shape, **settings)
    state, losses = start(), []
    for batch in batches(steps, accumulate):
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))  # one step at a time on the fake devices
    check_ids(int(metrics.bad_ids))
    return np.asarray(losses), np.asarray(state.items.rows, np.float32)


@pytest.mark.parametrize(("mode", "objective"), [("streamed", None), ("sparse", EXACT)])
def test_every_mode_is_the_dense_one_where_all_rows_take_all_steps(mode, objective):
    expected, expected_rows = train("dense", steps=20, rows=TIED_ADAM)
    losses, rows = train(mode, steps=20, rows=TIED_ADAM, objective=objective)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(rows, expected_rows, atol=1e-5)


@pytest.mark.parametrize(("mode", "objective"), [
    ("streamed", None), pytest.param("sparse", EXACT, marks=pytest.mark.slow)])
def test_micro_batches_add_up_to_the_whole_batch(mode, objective):
    settings = {"steps": 8, "dropout": 0.0, "objective": objective}
    whole, _ = train(mode, 1, 2, **settings)
    parts, _ = train(mode, 1, 2, accumulate=2, **settings)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


@pytest.mark.parametrize("mode", slow_but("streamed", ["sparse", "streamed"]))
def test_bf16_tables_learn_the_same_on_a_mesh(mode):
    expected, _ = train(mode, steps=20, dtype="bf16")
    losses, rows = train(mode, 2, 4, steps=20, dtype="bf16")
    assert expected[-3:].mean() < expected[:3].mean() - 0.05
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert np.array_equal(rows, np.asarray(jnp.asarray(rows, jnp.bfloat16), np.float32))


@pytest.mark.parametrize("where", ["items", "targets"])
@pytest.mark.parametrize("bad", [ITEMS, -7])
@pytest.mark.parametrize(("tied", "mode"), fast_where(
    lambda tied, mode: tied == (mode != "streamed"), [True, False],
    ["dense", "sparse", "streamed"]))
def test_a_bad_id_is_counted_and_refused(tied, mode, where, bad):
    mesh, step, start = setup(mode, tied=tied)
    batch = next(batches(1))
    batch[where][0, 2, 1] = bad
    _, metrics = step(start(), place_batch(batch, mesh))
    assert int(metrics.bad_ids) == 1
    with pytest.raises(InputError, match="1 item ids of a batch are no rows"):
        check_ids(int(metrics.bad_ids))


def test_ids_under_padding_are_not_read():
    mesh, step, start = setup("sparse")
    batch = next(batches(1))
    clean, _ = step(start(), place_batch(batch, mesh))
    batch["items"][batch["segments"] == 0] = 10**6
    dirty, metrics = step(start(), place_batch(batch, mesh))
    assert int(metrics.bad_ids) == 0
    np.testing.assert_array_equal(clean.items.rows, dirty.items.rows)


@pytest.mark.parametrize(("mode", "kind", "tied"), [
    ("sparse", "row_adam", True), ("streamed", "adam", False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("streamed", "row_adam", True), ("streamed", "adam", True),
        ("sparse", "row_adam", False)))])
def test_the_step_updates_large_tables_in_place(mode, kind, tied):
    num_items = 500_000
    mesh, step, start = setup(mode, num_items=num_items, rows=RowOptimizerConfig(kind=kind),
                              tied=tied)
    state = start()
    memory = step.lower(state, place_batch(next(batches(1)), mesh)).compile().memory_analysis()
    tables = sum(leaf.nbytes for leaf in jax.tree.leaves(state.tables))
    assert memory.alias_size_in_bytes >= tables
    assert memory.temp_size_in_bytes < num_items * DIM * 4 / 2
