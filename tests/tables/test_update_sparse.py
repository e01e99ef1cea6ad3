from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec_jax import compat
from rec_jax.mesh import BOTH, ITEMS, MeshConfig, make_mesh
from rec_jax.tables import Hyper, RowOptimizerConfig, gather, row_optimizer
from rec_jax.tables.unique import add_duplicates, unique_ids
from rec_jax.tables.update_sparse import update_rows, update_sparse

V, DIM, POSITIONS, STEPS = 48, 4, 64, 20
MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 8), (8, 1), (2, 4)]
OPTIMIZERS = {kind: row_optimizer(RowOptimizerConfig(kind=kind, weight_decay=0.01, clip=2.0))
              for kind in ("sgd", "adagrad", "adam", "row_adam")}
HYPER = Hyper(jnp.float32(0.05))
FIRST = np.random.default_rng(1).normal(size=(V, DIM)).astype(np.float32)


def batches(steps: int = STEPS):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield (np.minimum(rng.zipf(1.2, POSITIONS) - 1, V - 1).astype(np.int32),
               rng.normal(size=(POSITIONS, DIM)).astype(np.float32))


@functools.cache
def stepper(data: int, items: int, capacity: int = 8):
    """One step of a table of each optimizer, from the same positions."""
    shards = gather.Shards(data, items)

    def body(tables, ids, grads):
        unique = unique_ids(ids, V)
        route = None
        if items > 1:
            route = gather.make_route(unique, V // items, shards, capacity)
        sums = add_duplicates(grads, unique)
        return {kind: update_sparse(*table, sums, unique, route, shards, OPTIMIZERS[kind].update,
                                    HYPER) for kind, table in tables.items()}

    if not shards.alone:
        body = jax.shard_map(body, mesh=make_mesh(MeshConfig(data, items)),
                             in_specs=(P(ITEMS), P(BOTH), P(BOTH)), out_specs=P(ITEMS),
                             check_vma=False)
    return jax.jit(body)


def start():
    return {kind: (jnp.asarray(FIRST), optimizer.init((V, DIM)))
            for kind, optimizer in OPTIMIZERS.items()}


@functools.cache
def expected():
    """The dense step of every row, kept where the batch has the row."""
    @jax.jit
    def dense(tables, total):
        return {kind: OPTIMIZERS[kind].update(rows, total, state, HYPER)
                for kind, (rows, state) in tables.items()}

    tables = jax.tree.map(np.asarray, start())
    for ids, grads in batches():
        total = np.zeros((V, DIM), np.float32)
        np.add.at(total, ids, grads)
        touched = np.isin(np.arange(V), ids)
        assert 0 < touched.sum() < V
        tables = jax.tree.map(
            lambda new, old, keep=touched: np.where(
                keep.reshape(-1, *(1,) * (old.ndim - 1)), new, old), dense(tables, total), tables)
    return tables


@pytest.mark.parametrize(("data", "items"), [
    pytest.param(*mesh, marks=() if mesh in ((1, 1), (2, 4)) else pytest.mark.slow)
    for mesh in MESHES])
def test_touched_rows_take_the_dense_step_and_others_keep_their_bits(data, items):
    tables = start()
    for ids, grads in batches():
        before = jax.tree.map(np.asarray, tables)
        tables = stepper(data, items)(tables, ids, grads)
        still = ~np.isin(np.arange(V), ids)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(tables), strict=True):
            np.testing.assert_array_equal(np.asarray(new)[still], old[still])
    for got, wanted in zip(jax.tree.leaves(tables), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6, rtol=1e-5)


def test_messages_that_overflow_change_nothing_but_the_rounds():
    def train(capacity: int):
        tables = start()
        for ids, grads in batches(3):
            tables = stepper(2, 4, capacity)(tables, ids, grads)
        return tables

    for wide, narrow in zip(*(jax.tree.leaves(train(capacity)) for capacity in (8, 2)),
                            strict=True):
        np.testing.assert_array_equal(wide, narrow)


def one_step(rows, state, ids, grads, seed=None):
    optimizer = row_optimizer(RowOptimizerConfig(kind="adagrad"))
    return update_rows(rows, state, ids, grads, optimizer.update, Hyper(jnp.float32(0.01)),
                       seed=seed)


def test_stochastic_rounding_of_bf16_rows_is_unbiased_over_seeds():
    ids = jnp.arange(16, dtype=jnp.int32)
    rows = jax.random.normal(jax.random.key(0), (16, 8)).astype(jnp.bfloat16)
    grads = jax.random.normal(jax.random.key(1), (16, 8))
    exact, _ = one_step(rows.astype(jnp.float32), jnp.zeros(16), ids, grads)
    step = jax.jit(lambda seed: one_step(rows, jnp.zeros(16), ids, grads, seed)[0])
    drawn = np.stack([np.asarray(step(jnp.uint32(seed)), np.float32) for seed in range(256)])
    gap = np.abs(np.asarray(exact)) * 2.0**-7  # at least the distance of two bf16 neighbours
    assert np.all(np.abs(drawn - exact) <= gap)
    assert np.all(np.abs(drawn.mean(0) - exact) <= 4 * gap / 2 / 256**0.5 + 1e-7)
    assert drawn.std(0).max() > 0  # it is not rounding to nearest


def test_bf16_rows_get_the_same_bits_on_every_mesh():
    rows = jax.random.normal(jax.random.key(0), (V, DIM)).astype(jnp.bfloat16)
    ids, grads = next(batches(1))
    ids = np.unique(ids)[:8].astype(np.int32)  # distinct: sums do not depend on the mesh
    results = []
    for data, items in [(1, 1), (1, 8), (2, 4)]:
        shards = gather.Shards(data, items)

        def body(rows, ids, grads, shards=shards):
            unique = unique_ids(ids, V)
            route = None
            if shards.pieces > 1:
                route = gather.make_route(unique, V // shards.pieces, shards, 8)
            optimizer = row_optimizer(RowOptimizerConfig(kind="sgd"))
            return update_sparse(rows, (), add_duplicates(grads, unique), unique, route, shards,
                                 optimizer.update, Hyper(jnp.float32(0.1)), seed=jnp.uint32(3))[0]

        if not shards.alone:
            body = jax.shard_map(body, mesh=make_mesh(MeshConfig(data, items)),
                                 in_specs=(P(ITEMS), P(BOTH), P(BOTH)), out_specs=P(ITEMS),
                                 check_vma=False)
        results.append(np.asarray(jax.jit(body)(rows, ids, grads[:8]), np.float32))
    assert not np.array_equal(results[0], np.asarray(rows, np.float32))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_donated_table_is_updated_in_place(dtype):
    if dtype == jnp.bfloat16 and compat.JAX_VERSION < (0, 12):
        pytest.skip("XLA on CPU widens a bf16 scatter to f32 here")
    size, touched = 100_000, 64
    table = (jax.ShapeDtypeStruct((size, 32), dtype), jax.ShapeDtypeStruct((size,), jnp.float32))
    program = jax.jit(one_step, donate_argnums=(0, 1)).lower(
        *table, jax.ShapeDtypeStruct((touched,), jnp.int32),
        jax.ShapeDtypeStruct((touched, 32), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.uint32)).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == size * (32 * np.dtype(dtype).itemsize + 4)
    assert memory.temp_size_in_bytes < 1_000_000


def test_a_donated_sharded_table_is_updated_in_place():
    size, shards, positions = 98_304, gather.Shards(2, 4), 256
    optimizer = row_optimizer(RowOptimizerConfig(kind="adagrad"))

    def body(rows, state, ids, grads):
        unique = unique_ids(ids, size)
        route = gather.make_route(unique, size // 4, shards, 8)
        return update_sparse(rows, state, add_duplicates(grads, unique), unique, route, shards,
                             optimizer.update, Hyper(jnp.float32(0.05)))

    program = jax.jit(jax.shard_map(
        body, mesh=make_mesh(MeshConfig(2, 4)), in_specs=(P(ITEMS), P(ITEMS), P(BOTH), P(BOTH)),
        out_specs=(P(ITEMS), P(ITEMS)), check_vma=False), donate_argnums=(0, 1)).lower(
        jax.ShapeDtypeStruct((size, 32), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.float32),
        jax.ShapeDtypeStruct((positions,), jnp.int32),
        jax.ShapeDtypeStruct((positions, 32), jnp.float32)).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == size // 4 * 33 * 4
    assert memory.temp_size_in_bytes < memory.alias_size_in_bytes // 4
