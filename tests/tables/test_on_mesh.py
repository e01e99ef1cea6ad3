from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import Hyper, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.on_mesh import apply_sparse, fetch, spread

SIZES = {"items": 2000, "category": 30, "gap": 7}
DIM, BATCH, STEPS = 4, 32, 6
OPTIMIZER = row_optimizer(RowOptimizerConfig(kind="adagrad"))
HYPER = Hyper(jnp.float32(0.1))
GOAL = np.random.default_rng(9).normal(size=(BATCH, DIM)).astype(np.float32)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {name: rng.integers(0, size, (1, BATCH)).astype(np.int32)
               for name, size in SIZES.items()}


def start(mesh=None):
    return {name: init_table(TableConfig(dim=DIM, init_scale=1.0), size, seed, mesh,
                             optimizer=OPTIMIZER)
            for seed, (name, size) in enumerate(SIZES.items())}


@functools.cache
def stepper(data: int, items: int):
    """Rows of three tables are summed into one vector; each table gets its own gradient."""
    mesh = make_mesh(MeshConfig(data, items))

    def step(tables, ids):
        every = jnp.ones((1, BATCH), bool)
        fetched = {name: fetch(mesh, table, {"ids": ids[name]}, {"ids": every})
                   for name, table in tables.items()}

        def loss_of(rows):
            vectors = [spread(mesh, rows[name], fetched[name].unique, {"ids": ids[name]})["ids"][0]
                       for name in rows]
            return jnp.sum(jnp.square(sum(vectors) - GOAL))

        grads = jax.grad(loss_of)({name: got.rows for name, got in fetched.items()})
        return {name: apply_sparse(mesh, table, fetched[name], grads[name], OPTIMIZER.update,
                                   HYPER) for name, table in tables.items()}

    return mesh, jax.jit(step)


@functools.cache
def expected():
    def loss_of(rows, ids):
        return jnp.sum(jnp.square(sum(rows[name][ids[name][0]] for name in rows) - GOAL))

    rows = {name: table.rows for name, table in start().items()}
    state = {name: table.state for name, table in start().items()}
    for ids in batches():
        for name, grad in jax.grad(loss_of)(rows, ids).items():
            # Row-wise Adagrad leaves a row without gradient as it is.
            rows[name], state[name] = OPTIMIZER.update(rows[name], grad, state[name], HYPER)
    return rows


@pytest.mark.parametrize(("data", "items"), [(1, 1), (1, 4), (2, 4)])
def test_several_tables_feed_one_model_and_learn_together(data, items):
    mesh, step = stepper(data, items)
    tables = start(mesh)
    for ids in batches():
        tables = step(tables, ids)
    for name, wanted in expected().items():
        assert not np.array_equal(wanted, start()[name].rows)
        np.testing.assert_allclose(tables[name].rows, wanted, atol=1e-5)
