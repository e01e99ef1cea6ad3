"""Drawn neighbours: all of few, different ones of many, each as likely, the same for everybody."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.model.neighbours import Adjacent, draw, weights

DEGREES = [0, 1, 5, 8, 9, 100, 3]
FIRST = np.concatenate([[0], np.cumsum(DEGREES)]).astype(np.int32)
OTHERS = np.random.default_rng(0).permutation(FIRST[-1]).astype(np.int32)
ADJACENT = Adjacent(jnp.asarray(FIRST), jnp.asarray(OTHERS))
drawn = jax.jit(jax.vmap(lambda nodes, seed: draw(ADJACENT, nodes, 8, seed), in_axes=(None, 0)))


def test_draws_are_of_the_neighbours_and_have_their_mean() -> None:
    values = np.random.default_rng(1).standard_normal(FIRST[-1])
    ids, share = (np.asarray(each) for each in drawn(
        jnp.arange(len(DEGREES)), jnp.arange(4000, dtype=jnp.uint32)))
    np.testing.assert_allclose(share[0].sum(axis=1), [0, *[1] * (len(DEGREES) - 1)], atol=1e-6)
    for node, degree in enumerate(DEGREES):
        own = OTHERS[FIRST[node]:FIRST[node + 1]]
        there = share[0, node] > 0
        assert there.sum() == min(degree, 8)
        found = ids[:, node, there]
        assert np.isin(found, own).all()
        assert all(len(set(row)) == len(row) for row in found[:50].tolist())
        if degree <= 8:
            np.testing.assert_array_equal(np.sort(found[7]), np.sort(own))
        else:  # each is drawn, by a share that makes the weighted sum right
            sums = (values[ids[:, node]] * share[:, node]).sum(axis=1)
            assert abs(sums.mean() - values[own].mean()) < 4 * sums.std() / 4000**0.5
            assert set(own) == set(found.ravel())


def test_a_draw_is_a_function_of_seed_and_node_alone() -> None:
    nodes = jnp.array([5, 4, 5, 6])
    ids = np.asarray(drawn(nodes, jnp.arange(3, dtype=jnp.uint32)).ids)
    alone = np.asarray(drawn(nodes[::-1], jnp.array([2, 9, 9], jnp.uint32)).ids)
    np.testing.assert_array_equal(ids[2], alone[0, ::-1])
    np.testing.assert_array_equal(ids[:, 0], ids[:, 2])
    assert not np.array_equal(ids[0, 0], ids[1, 0])
    # An id that is no node is somebody's: what it is fetched for is not there.
    assert np.isfinite(np.asarray(drawn(jnp.array([-1, 99, 7, 5]), jnp.arange(
        3, dtype=jnp.uint32)).weights)).all()


def test_weights_do_not_overflow_where_a_node_has_a_billion_neighbours() -> None:
    most = Adjacent(jnp.array([0, 2**31 - 2**27], jnp.int32), jnp.zeros(1, jnp.int32))
    share = np.asarray(jax.jit(lambda nodes: weights(most, nodes, 4096))(jnp.zeros(1, jnp.int32)))
    np.testing.assert_allclose(share, 1 / 4096, rtol=1e-6)
