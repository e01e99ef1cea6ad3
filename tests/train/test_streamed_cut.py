"""Every device of a streamed step passes over its own rows alone, whatever the shape of the mesh.

XLA counts operations and traffic of the compiled step; the backend `reference` has no loops that
would hide operations from it.
"""

from __future__ import annotations

import functools

import numpy as np
import optax
import pytest
from marks import slow_but
from steps import make_step, new_state

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item
from rec_jax.plan.compile import collective_bytes
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.step import place_batch

DIM, LENGTH, ROWS = 16, 16, 16
MESHES = [(1, 8), (2, 4), (4, 2), (8, 1)]


@functools.cache
def compiled(data: int, items: int, count: int):
    mesh = make_mesh(MeshConfig(data, items))
    table = TableConfig(dim=DIM, optimizer=RowOptimizerConfig(kind="adagrad"))
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=1, dropout=0.0, backend="xla"), dim=DIM,
        length=LENGTH, causal=True, precision="f32", seed=0)
    optimizer = optax.sgd(1e-3)
    step = make_step(encoder, next_item.Config(backend="reference"), optimizer, table,
                     "streamed", mesh=mesh, rate=optax.constant_schedule(1e-2))
    state = new_state(params, optimizer, table, "streamed", count, mesh)
    full = np.ones((1, ROWS, LENGTH), np.int32)
    batch = {"items": full, "targets": full, "segments": full,
             "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), full.shape).copy()}
    program = step.lower(state, place_batch(batch, mesh)).compile()
    sent = sum(size for _, size in collective_bytes(program.as_text()))
    return program.cost_analysis()["flops"], sent, state.items.rows.sharding


@pytest.mark.slow
def test_operations_of_a_device_do_not_depend_on_the_shape_of_the_mesh() -> None:
    counts = [compiled(*mesh, 24_000)[0] for mesh in MESHES]
    assert max(counts) <= 1.1 * min(counts), counts
    products = 8 * ROWS * LENGTH * DIM * 24_576 / 8  # 8 N V d, an eighth of them
    assert 0.9 * products <= min(counts) <= 1.5 * products


@pytest.mark.parametrize("mesh", slow_but([(2, 4)], MESHES))
def test_what_is_sent_does_not_depend_on_the_rows(mesh: tuple[int, int]) -> None:
    small, large = (compiled(*mesh, count)[1] for count in (24_000, 48_000))
    assert 0 < small == large
    assert large < 48_000 * DIM * 4  # less than the table


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_owns_an_eighth_of_the_rows(mesh: tuple[int, int]) -> None:
    sharding = compiled(*mesh, 24_000)[2]
    assert sharding.shard_shape((24_576, DIM)) == (3072, DIM)
