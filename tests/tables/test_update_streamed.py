from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import Hyper, RowOptimizerConfig, Table, row_optimizer
from rec_jax.tables.on_mesh import apply_streamed, fetch, full_softmax, spread
from rec_jax.tables.update_streamed import Scored

V, ROWS, DIM, N, STEPS = 90, 96, 4, 16, 20
MESHES = [(1, 1), (1, 2), (2, 2), (2, 4), (1, 8), (8, 1)]
OPTIMIZERS = {kind: row_optimizer(RowOptimizerConfig(kind=kind, clip=0.5))
              for kind in ("sgd", "adagrad", "adam", "row_adam")}
HYPER = Hyper(jnp.float32(0.05))
FIRST = np.where(np.arange(ROWS)[:, None] < V,
                 np.random.default_rng(1).normal(size=(ROWS, DIM)), 0).astype(np.float32)


def batches(steps: int = STEPS):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield (rng.integers(0, V, N).astype(np.int32), rng.integers(0, V, N).astype(np.int32),
               rng.random(N).astype(np.float32))


def total_loss(loss, lse, weights):
    """Weighted loss with a z-loss: both cotangents are at work."""
    return jnp.sum(weights * (loss + 0.01 * lse**2)) / N


def queries_of(vectors):
    return jnp.tanh(vectors @ jnp.asarray(FIRST[:DIM]))


@functools.cache
def stepper(data: int, items: int):
    """One streamed step of a table of each optimizer, tied: inputs are rows of the same table."""
    mesh = make_mesh(MeshConfig(data, items))

    def one(table, kind, inputs, targets, weights):
        wanted = {"inputs": inputs[None]}
        fetched = fetch(mesh, table, wanted, {"inputs": jnp.ones((1, N), bool)})

        def loss_of(rows, zeros):
            queries = queries_of(spread(mesh, rows, fetched.unique, wanted)["inputs"][0])
            loss, lse = full_softmax(mesh, queries, jax.lax.stop_gradient(table.rows), targets,
                                     num_items=V, backend="xla")
            loss, lse = loss + zeros[0], lse + zeros[1]
            return total_loss(loss, lse, weights), (queries, loss, lse)

        zeros = (jnp.zeros(N), jnp.zeros(N))
        (grads, cotangents), left = jax.grad(loss_of, (0, 1), has_aux=True)(fetched.rows, zeros)
        queries, loss, lse = left
        scored = Scored(queries, targets, loss, lse, *cotangents)
        return apply_streamed(mesh, table, scored, (fetched.unique.ids, grads),
                              OPTIMIZERS[kind].update, HYPER, backend="xla")

    def step(tables, inputs, targets, weights):
        return {kind: one(table, kind, inputs, targets, weights)
                for kind, table in tables.items()}

    return jax.jit(step)


def start():
    return {kind: Table(jnp.asarray(FIRST), optimizer.init((ROWS, DIM)), V)
            for kind, optimizer in OPTIMIZERS.items()}


@functools.cache
def expected():
    """The dense gradient of materialised scores into the same optimizers."""
    def loss_of(rows, inputs, targets, weights):
        scores = queries_of(rows[inputs]) @ rows[:V].T
        lse = jax.nn.logsumexp(scores, axis=1)
        return total_loss(lse - scores[jnp.arange(N), targets], lse, weights)

    @jax.jit
    def step(tables, *batch):
        return {kind: Table(*OPTIMIZERS[kind].update(
            table.rows, jax.grad(loss_of)(table.rows, *batch), table.state, HYPER), V)
            for kind, table in tables.items()}

    tables = start()
    for batch in batches():
        tables = step(tables, *batch)
    return tables


@pytest.mark.parametrize(("data", "items"), [
    pytest.param(*mesh, marks=() if mesh == (2, 4) else pytest.mark.slow) for mesh in MESHES])
def test_streamed_tables_take_the_dense_step(data, items):
    tables = start()
    for batch in batches():
        tables = stepper(data, items)(tables, *batch)
    assert np.abs(np.asarray(tables["adam"].rows) - FIRST).max() > 0.1
    for got, wanted in zip(jax.tree.leaves(tables), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-4)
    assert not np.asarray(tables["adam"].rows)[V:].any()
