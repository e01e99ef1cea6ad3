"""Draws from a softmax over a catalogue come as often as its probabilities say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec_jax.kernels import sample
from rec_jax.kernels.sampling import gumbel
from rec_jax.mesh import MeshConfig, make_mesh

V, PADDED, D, MANY = 11, 16, 4, 40_000


def problem() -> tuple[jax.Array, jax.Array, np.ndarray]:
    """One query, rows with padding, and the softmax's probabilities."""
    keys = jax.random.split(jax.random.key(1), 2)
    query = jax.random.normal(keys[0], (D,))
    rows = jax.random.normal(keys[1], (PADDED, D)).at[V:].set(90.0)
    return query, rows, np.asarray(jax.nn.softmax(1.3 * rows[:V] @ query), np.float64)


def test_single_draws_and_pairs_have_their_probabilities() -> None:
    query, rows, chance = problem()
    found = np.asarray(sample(jnp.tile(query, (MANY, 1)), rows, 2, jnp.uint32(7), logit_scale=1.3,
                              num_items=V))
    assert (found[:, 0] != found[:, 1]).all() and found.min() >= 0 and found.max() < V
    np.testing.assert_allclose(np.bincount(found[:, 0], minlength=V) / MANY, chance, atol=0.01)
    pairs = np.zeros((V, V))
    np.add.at(pairs, (found[:, 0], found[:, 1]), 1 / MANY)
    wanted = chance[:, None] * chance / (1 - chance[:, None])
    np.testing.assert_allclose(pairs, wanted - np.diag(np.diag(wanted)), atol=0.01)


def test_other_seeds_draw_others_and_more_than_there_are_is_none() -> None:
    query, rows, _ = problem()
    one, two = (np.asarray(sample(jnp.tile(query, (50, 1)), rows, 1, jnp.uint32(seed),
                                  num_items=V)) for seed in (1, 2))
    assert (one != two).sum() > 5
    every = np.asarray(sample(query[None], rows, 13, jnp.uint32(0), num_items=V))[0]
    assert sorted(every[:V]) == list(range(V)) and (every[V:] == -1).all()


def test_tiles_and_shards_draw_what_one_piece_does(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = jax.random.split(jax.random.key(2), 2)
    queries, rows = jax.random.normal(keys[0], (9, D)), jax.random.normal(keys[1], (1600, D))
    whole = sample(queries, rows, 3, jnp.uint32(3), num_items=1590)
    monkeypatch.setattr("rec_jax.kernels.sampling._ROWS", 128)
    np.testing.assert_array_equal(sample(queries, rows, 3, jnp.uint32(3), num_items=1590), whole)
    mesh = make_mesh(MeshConfig(1, 8))

    def body(queries: Any, rows: Any) -> Any:
        return sample(queries, rows, 3, jnp.uint32(3), num_items=1590, axis_name="items")

    cut = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("items")), out_specs=P()))
    np.testing.assert_array_equal(cut(queries, rows), whole)


def test_noise_is_a_gumbel_distributions() -> None:
    found = np.sort(np.asarray(gumbel(jnp.uint32(5), jnp.arange(300)[:, None],
                                      jnp.arange(300)[None])).ravel())
    exact = np.exp(-np.exp(-found))
    assert np.abs(exact - (np.arange(found.size) + 0.5) / found.size).max() < 0.01
    assert np.isfinite(found).all() and found[-1] > 9
