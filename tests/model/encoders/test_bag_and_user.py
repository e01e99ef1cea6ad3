"""The encoders of the collaborative family: a bag of items, and a user's own row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, bag, reads_history, svdpp, transformer, user, uses_users

B, L, D = 3, 7, 4
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 3, 3, 3], [1] * 7])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3, 4], list(range(7))])


def inputs(users: Any = None) -> Inputs:
    return Inputs(jnp.asarray(SEGMENTS, jnp.int32), jnp.asarray(POSITIONS, jnp.int32), users=users)


def built(config: Any, causal: bool = True) -> tuple[Any, Any]:
    return build_encoder(config, dim=D, length=L, causal=causal, precision="f32", seed=0)


def test_a_users_query_is_the_users_row() -> None:
    people = jnp.asarray(np.random.default_rng(0).standard_normal((B, L, D)), jnp.float32)
    nothing = jnp.full((B, L, D), jnp.nan)
    encoder, params = built(user.Config())
    assert not params and uses_users(user.Config()) and not reads_history(user.Config())
    np.testing.assert_array_equal(encoder(params, nothing, inputs(people)), people)
    at = jnp.array([[4], [0], [6]])
    np.testing.assert_array_equal(encoder(params, nothing, inputs(people), at=at)[:, 0],
                                  people[jnp.arange(B), at[:, 0]])
    encoder, params = built(user.Config(item_bias=True))
    found = encoder(params, nothing, inputs(people))
    np.testing.assert_array_equal(found[..., :-1], people[..., :-1])
    np.testing.assert_array_equal(found[..., -1], 1.0)
    encoder, params = built(user.Config(dropout=0.5))
    found = np.asarray(encoder(params, nothing, inputs(people), jax.random.key(0)))
    assert set(np.unique(np.round(found / np.asarray(people), 4))) == {0.0, 2.0}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("config", [
    bag.Config(), bag.Config(power=0.0), bag.Config(power=0.5, linear=True),
    bag.Config(item_bias=True)], ids=["mean", "sum", "linear", "item bias"])
def test_a_bag_is_its_definition(config: bag.Config, causal: bool) -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((B, L, D))
    # Large values of a neighbour must not reach a history, not even as a rounding error.
    vectors[0, 3:6] *= 1e6
    encoder, params = built(config, causal)
    matrix = random.standard_normal((D, D)) if config.linear else np.eye(D)
    if config.linear:
        np.testing.assert_array_equal(params["kernel"], np.eye(D))
        params["kernel"] = jnp.asarray(matrix, jnp.float32)
    assert {"kernel"} & set(params) == ({"kernel"} if config.linear else set())
    given = jnp.asarray(vectors, jnp.float32)
    found = np.asarray(jax.jit(encoder.__call__)(params, given, inputs()))
    for row in range(B):
        for place in range(L):
            if not SEGMENTS[row, place]:
                continue
            own = SEGMENTS[row] == SEGMENTS[row, place]
            own &= (np.arange(L) <= place) | (not causal)
            wanted = vectors[row, own].sum(0) / own.sum() ** config.power @ matrix
            if config.item_bias:
                wanted[-1] = 1.0
            size = np.abs(vectors[row, own]).sum() * np.abs(matrix).max()
            np.testing.assert_allclose(found[row, place], wanted, rtol=0, atol=1e-6 * size)
    at = jnp.array([[4], [0], [6]])
    np.testing.assert_allclose(encoder(params, given, inputs(), at=at)[:, 0],
                               found[np.arange(B), np.array([4, 0, 6])], rtol=1e-6)


def test_a_user_with_a_bag_is_the_row_and_the_whole_history() -> None:
    random = np.random.default_rng(3)
    people, vectors = random.standard_normal((2, B, L, D)).astype(np.float32)
    config = svdpp.Config(power=0.5, linear=True, item_bias=True)
    assert uses_users(config) and not reads_history(config)
    encoder, params = built(config)
    assert params.keys() == {"taken/kernel"}
    matrix = random.standard_normal((D, D))
    params = {"taken/kernel": jnp.asarray(matrix, jnp.float32)}
    at = jnp.array([[4], [0], [6]])
    found, asked = jax.jit(lambda people: (encoder(params, vectors, inputs(people)),
                                           encoder(params, vectors, inputs(people), at=at)))(people)
    for row, place in zip(*np.nonzero(SEGMENTS), strict=True):
        own = SEGMENTS[row] == SEGMENTS[row, place]
        wanted = people[row, place] + vectors[row, own].sum(0) / own.sum() ** 0.5 @ matrix
        np.testing.assert_allclose(found[row, place], [*wanted[:-1], 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(asked[:, 0], found[np.arange(B), at[:, 0]], rtol=1e-6)


def test_norms_of_one_are_refused_where_a_query_is_a_sum() -> None:
    with pytest.raises(InputError, match=r"encoder\.unit: a query of 'svdpp' is a sum"):
        svdpp.Config(unit=True)


def test_a_bag_has_the_slopes_of_its_definition() -> None:
    encoder, params = built(bag.Config(linear=True))
    vectors = jnp.asarray(np.random.default_rng(2).standard_normal((B, L, D)), jnp.float32)
    factors = jnp.asarray(np.random.default_rng(3).standard_normal((B, L, D)), jnp.float32)
    live = jnp.asarray(SEGMENTS > 0)[..., None]
    found = jax.grad(lambda x: jnp.sum(jnp.where(live, factors * encoder(params, x, inputs()), 0)))(
        vectors)
    wanted = np.zeros((B, L, D))
    for row in range(B):
        for place in range(L):
            own = (SEGMENTS[row] == SEGMENTS[row, place]) & (np.arange(L) <= place)
            if SEGMENTS[row, place]:
                wanted[row, own] += np.asarray(factors)[row, place] / own.sum()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_most_encoders_read_histories_and_bad_settings_are_one_line() -> None:
    assert reads_history(transformer.Config()) and reads_history(bag.Config())
    with pytest.raises(InputError, match=r"encoder\.power"):
        bag.Config(power=1.5)
    with pytest.raises(InputError, match=r"encoder\.dropout"):
        user.Config(dropout=1.0)
