from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec_jax.mesh import BOTH, ITEMS, MeshConfig, make_mesh
from rec_jax.tables import gather
from rec_jax.tables.unique import NO_ID, _by_scan, _by_scatter, expand, unique_ids

V, DIM, POSITIONS = 768, 3, 96  # positions over all devices
MESHES = [(1, 1), (2, 1), (1, 2), (1, 4), (1, 8), (8, 1), (2, 4)]
ROWS = np.random.default_rng(5).normal(size=(V, DIM)).astype(np.float32)

BATCHES = {
    "zipf": np.minimum(np.random.default_rng(1).zipf(1.3, POSITIONS) - 1, V - 1),
    "all equal": np.full(POSITIONS, 5),
    "all distinct": np.random.default_rng(2).permutation(V)[:POSITIONS],
    "all of one shard": np.arange(POSITIONS),
}


@functools.cache
def roundtrip(data: int, items: int, capacity: int):
    """(rows, ids, grads) -> (vectors, dense sum of grads by row, rounds), on a mesh."""
    shards = gather.Shards(data, items)

    def body(rows, ids, grads):
        unique = unique_ids(ids, V)
        route = None
        if items > 1:
            route = gather.make_route(unique, V // items, shards, capacity)
        fetched = gather.fetch_rows(rows, unique, route, shards)
        vectors, transpose = jax.vjp(lambda found: expand(found, unique), fetched)
        (sums,) = transpose(grads)
        offset = shards.offset(rows)

        def apply(total, ids, arrived):
            return total.at[jnp.where(ids == NO_ID, V, ids - offset)].add(arrived, mode="drop")

        total = gather.deliver_grads(jnp.zeros_like(rows), sums, unique, route, shards, apply)
        return vectors, total, jnp.int32(1) if route is None else route.rounds

    if shards.alone:
        return jax.jit(body)
    return jax.jit(jax.shard_map(body, mesh=make_mesh(MeshConfig(data, items)),
                                 in_specs=(P(ITEMS), P(BOTH), P(BOTH)),
                                 out_specs=(P(BOTH), P(ITEMS), P()), check_vma=False))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("data", "items"), MESHES)
def test_rows_come_back_and_gradients_add_up(data: int, items: int, batch: str):
    ids = BATCHES[batch].astype(np.int32)
    grads = np.random.default_rng(3).normal(size=(POSITIONS, DIM)).astype(np.float32)
    vectors, total, _ = roundtrip(data, items, 8)(ROWS, ids, grads)
    np.testing.assert_array_equal(vectors, ROWS[ids])
    expected = np.zeros((V, DIM))
    np.add.at(expected, ids, grads.astype(np.float64))
    np.testing.assert_allclose(total, expected, atol=1e-5)


@pytest.mark.parametrize(("capacity", "most"), [(8, 4), (2, 512), (1, 16384)])
def test_ids_that_do_not_fit_one_message_travel_in_more_rounds(capacity: int, most: int):
    ids = np.arange(POSITIONS, dtype=np.int32)  # all of shard 0
    vectors, _, rounds = roundtrip(1, 8, capacity)(ROWS, ids, np.zeros((POSITIONS, DIM), "f4"))
    assert -(-12 // capacity) <= int(rounds) <= most
    np.testing.assert_array_equal(vectors, ROWS[ids])


def test_ids_that_fit_travel_in_one_round():
    ids = np.arange(POSITIONS, dtype=np.int32) * (V // POSITIONS)  # even over shards
    _, _, rounds = roundtrip(1, 8, 12)(ROWS, ids, np.zeros((POSITIONS, DIM), "f4"))
    assert int(rounds) == 1


def test_the_same_gradients_give_the_same_bits_again():
    ids = BATCHES["zipf"].astype(np.int32)
    grads = np.random.default_rng(4).normal(size=(POSITIONS, DIM)).astype(np.float32)
    first, second = (roundtrip(2, 4, 8)(ROWS, ids, grads)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_traffic_does_not_depend_on_the_size_of_the_table():
    def collectives(size: int) -> list[str]:
        def body(rows, ids):
            shards = gather.Shards(1, 4)
            unique = unique_ids(ids, size)
            route = gather.make_route(unique, size // 4, shards, 8)
            return gather.fetch_rows(rows, unique, route, shards)

        program = jax.jit(jax.shard_map(
            body, mesh=make_mesh(MeshConfig(1, 4)), in_specs=(P(ITEMS), P(BOTH)),
            out_specs=P(BOTH), check_vma=False))
        text = program.lower(jax.ShapeDtypeStruct((size, DIM), jnp.float32),
                             jax.ShapeDtypeStruct((64,), jnp.int32)).as_text()
        return [line.split(" : ")[-1] for line in text.splitlines()
                if "all_to_all" in line or "all_gather" in line]

    small, large = collectives(768), collectives(768 * 1024)
    assert small == large
    assert len(small) == 2


def test_a_masked_position_reads_zero_and_touches_nothing():
    ids = jnp.asarray([4, -1, 9, 4])
    unique = unique_ids(ids, 10, mask=jnp.asarray([True, False, True, True]))
    assert not unique.bad.any()
    np.testing.assert_array_equal(unique.ids[:3], [4, 9, NO_ID])
    rows = gather.fetch_rows(jnp.asarray(ROWS), unique, None, gather.Shards())
    vectors = np.asarray(expand(rows, unique))
    np.testing.assert_array_equal(vectors, ROWS[[4, 4, 9, 4]] * [[1], [0], [1], [1]])


@pytest.mark.parametrize("bad", [-1, 10, NO_ID, -(2**31)])
def test_a_bad_id_is_marked_and_never_read_as_a_row(bad: int):
    unique = unique_ids(jnp.asarray([4, bad, 9]), 10)
    np.testing.assert_array_equal(unique.bad, [False, True, False])
    rows = gather.fetch_rows(jnp.asarray(ROWS), unique, None, gather.Shards())
    vectors = np.asarray(expand(rows, unique))
    np.testing.assert_array_equal(vectors[[0, 2]], ROWS[[4, 9]])
    assert np.isnan(vectors[1]).all()


def test_both_ways_of_adding_duplicates_agree():
    ids = jnp.asarray(BATCHES["zipf"].astype(np.int32))
    unique = unique_ids(ids, V, mask=jnp.arange(POSITIONS) % 7 != 0)
    grads = jax.random.normal(jax.random.key(0), (POSITIONS, DIM))
    used = np.asarray(unique.ids) != NO_ID
    np.testing.assert_allclose(np.asarray(_by_scan(grads, unique))[used],
                               np.asarray(_by_scatter(grads, unique))[used], atol=1e-5)


def test_messages_hold_an_even_share_and_at_most_everything():
    shards = gather.Shards(1, 4)
    sizes = {"rows_per_shard": 10**6, "num_items": 4 * 10**6}
    assert gather.message_capacity(1000, shards, 1.0, **sizes) == 250
    assert gather.message_capacity(1000, shards, 2.0, **sizes) == 500
    assert gather.message_capacity(1000, shards, 9.0, **sizes) == 1000
    assert gather.message_capacity(16, shards, 1.0, **sizes) == 8
    assert gather.message_capacity(1000, shards, None, **sizes) == math.ceil(
        250 * 17 / 16 + 5 * (250 * 17 / 16)**0.5)
    assert gather.message_capacity(8, shards, None, **sizes) == 8


def test_a_message_has_no_more_places_than_its_shard_has_rows():
    shards = gather.Shards(1, 4)
    for slack in (None, 1.0):
        assert gather.message_capacity(10**6, shards, slack, rows_per_shard=192, num_items=700
                                       ) == 192
    # Of 100 items all are in the first shard.
    assert gather.message_capacity(80, shards, None, rows_per_shard=192, num_items=100) == 80
