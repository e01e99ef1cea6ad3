"""Vectors of side features: means of table rows, unknown where nothing may be seen."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.data.features import Feature
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, transformer
from rec_jax.model.encoders.relative import TIME_BUCKETS
from rec_jax.model.features import gap_codes, init_tables, mean_vector

DIM, LENGTH, ROWS = 8, 9, 3
FEATURES = (Feature("item_category", "features/tags", 6, 3),
            Feature("rating", "features/rating", 5), Feature("time_gap", "features/time_gap", 0))
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0], [1, 1, 2, 3, 3, 3, 3, 3, 3],
                     [1, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)


def batch(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Item vectors and the inputs beside them, in rows of several users."""
    random = np.random.default_rng(seed)
    positions, times = np.zeros_like(SEGMENTS), np.zeros_like(SEGMENTS)
    for row, number in np.ndindex(ROWS, 4):
        own = np.flatnonzero((SEGMENTS[row] == number) & (number > 0))
        if not len(own):
            continue
        positions[row, own] = np.arange(len(own))
        gaps = np.floor(10 ** random.uniform(-1, 5, len(own) - 1))  # some are 0
        times[row, own[1:]] = np.cumsum(gaps)
    tags = random.integers(0, 7, (*SEGMENTS.shape, 3)) * (SEGMENTS > 0)[..., None]
    ratings = random.integers(0, 6, (*SEGMENTS.shape, 1)) * (SEGMENTS > 0)[..., None]
    vectors = random.standard_normal((*SEGMENTS.shape, DIM))
    return vectors.astype(np.float32), {
        "segments": SEGMENTS, "positions": positions, "times": times,
        "features/tags": tags.astype(np.int32), "features/rating": ratings.astype(np.int32)}


def inputs_of(made: dict[str, np.ndarray]) -> Inputs:
    return Inputs(*(jnp.asarray(made[name]) for name in ("segments", "positions", "times")),
                  {name: jnp.asarray(made[name]) for name in made if "/" in name})


@functools.cache
def model(causal: bool) -> tuple[Any, dict[str, np.ndarray]]:
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=1, dropout=0.0), dim=DIM, length=LENGTH,
        causal=causal, precision="f32", seed=0, features=FEATURES)
    # Of a size that shows, row 0 as well.
    random = np.random.default_rng(0)
    large = {feature.path: jnp.asarray(random.standard_normal(params[feature.path].shape),
                                       jnp.float32) for feature in FEATURES}
    return jax.jit(lambda *given: encoder(*given)), {**params, **large}


def bucket(seconds: int) -> int:
    """Two an octave of seconds + 1, plainly."""
    value, octave = float(seconds + 1), 0
    while value >= 2:
        value, octave = value / 2, octave + 1
    return 2 * octave + (value >= 1.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("hides", [False, True])
def test_a_gap_is_that_to_the_last_place_seen(seed: int, hides: bool) -> None:
    _, made = batch(seed)
    hidden = (np.random.default_rng(seed).random(SEGMENTS.shape) < 0.4) & (SEGMENTS > 0)
    hidden &= hides
    expected = np.zeros_like(SEGMENTS)
    for row in range(ROWS):
        latest: dict[int, int] = {}
        for place, number in enumerate(SEGMENTS[row].tolist()):
            if number == 0 or hidden[row, place]:
                continue
            when = int(made["times"][row, place])
            if number in latest:
                expected[row, place] = 1 + bucket(when - latest[number])
            latest[number] = when
    found = gap_codes(inputs_of(made), jnp.asarray(hidden) if hides else None)
    np.testing.assert_array_equal(found, expected)
    assert expected.max() > 20


def test_the_longest_gap_has_a_row() -> None:
    times = jnp.array([[0, 2**31 - 1]], jnp.int32)
    found = gap_codes(Inputs(jnp.ones((1, 2), jnp.int32), jnp.array([[0, 1]]), times), None)
    assert 0 < int(found[0, 1]) <= TIME_BUCKETS


def test_several_codes_have_the_mean_of_their_vectors() -> None:
    random = np.random.default_rng(4)
    table = random.standard_normal((6, DIM))
    codes = np.array([[0, 0, 0], [3, 0, 0], [5, 1, 0], [2, 4, 1], [0, 2, 0], [5, 5, 0]])
    expected = [table[[code for code in own if code] or [0]].mean(axis=0) for own in codes]
    found = mean_vector(jnp.asarray(table, jnp.float32), jnp.asarray(codes))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_tables_start_small_and_unknown_starts_at_zero() -> None:
    tables = init_tables((Feature("rating", "features/a", 4000), *FEATURES), DIM, seed=1)
    assert [len(table) for table in tables.values()] == [4001, 7, 6, TIME_BUCKETS + 1]
    assert all(not np.asarray(table[0]).any() for table in tables.values())
    assert np.std(np.asarray(tables["features/a"][1:])) == pytest.approx(0.02, rel=0.02)
    other = init_tables(FEATURES, DIM, seed=2)
    assert not np.allclose(other["features/tags"], tables["features/tags"])


@pytest.mark.parametrize("causal", [True, False])
def test_the_input_is_the_sum_of_its_vectors(causal: bool) -> None:
    """The same encoder without features, given the sum, answers the same."""
    encoder, params = model(causal)
    vectors, made = batch(2)
    total = vectors.astype(np.float64)
    codes = {**made, "features/time_gap": np.asarray(gap_codes(inputs_of(made), None))[..., None]}
    for feature in FEATURES:
        table = np.asarray(params[feature.path], np.float64)
        for at in np.ndindex(SEGMENTS.shape):
            own = [code for code in codes[feature.path][at] if code] or [0]
            total[at] += table[own].mean(axis=0)
    plain, _ = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=1, dropout=0.0), dim=DIM, length=LENGTH,
        causal=causal, precision="f32", seed=0)
    expected = plain(params, jnp.asarray(total, jnp.float32), inputs_of(made))
    found = encoder(params, jnp.asarray(vectors), inputs_of(made))
    np.testing.assert_allclose(np.asarray(found)[SEGMENTS > 0],
                               np.asarray(expected)[SEGMENTS > 0], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_is_alone(causal: bool) -> None:
    encoder, params = model(causal)
    vectors, made = batch(3)
    whole = np.asarray(encoder(params, jnp.asarray(vectors), inputs_of(made)))
    for row, number in ((0, 2), (0, 3), (1, 1), (1, 3)):
        own = np.flatnonzero(SEGMENTS[row] == number)
        alone = {name: np.zeros_like(values) for name, values in made.items()}
        lonely = np.zeros_like(vectors)
        lonely[0, :len(own)] = vectors[row, own]
        for name, values in made.items():
            alone[name][0, :len(own)] = 1 if name == "segments" else values[row, own]
        found = np.asarray(encoder(params, jnp.asarray(lonely), inputs_of(alone)))
        np.testing.assert_allclose(found[0, :len(own)], whole[row, own], atol=1e-5)


@pytest.mark.parametrize("what", ["item", "features/tags", "features/rating", "times"])
def test_nothing_of_a_hidden_place_is_seen(what: str) -> None:
    encoder, params = model(False)
    vectors, made = batch(5)
    random = np.random.default_rng(6)
    hidden = (random.random(SEGMENTS.shape) < 0.4) & (SEGMENTS > 0)
    assert hidden[:, 1:].any() and not hidden[SEGMENTS > 0].all()

    def ask(places: np.ndarray) -> np.ndarray:
        """Queries when what is at `places` is another."""
        changed, other = vectors.copy(), {name: values.copy() for name, values in made.items()}
        if what == "item":
            changed[places] = 9.0
        elif what == "times":
            # The first one's is what others are counted from.
            places = places & (made["positions"] > 0)
            other["times"][places] = made["times"][places] * 2 + 77
        else:
            other[what][places] = other[what][places] % 5 + 1
        return np.asarray(encoder(params, jnp.asarray(changed), inputs_of(other), None,
                                  jnp.asarray(hidden)))[SEGMENTS > 0]

    before = ask(np.zeros_like(hidden))
    np.testing.assert_array_equal(ask(hidden), before)
    assert np.abs(ask(~hidden & (SEGMENTS > 0)) - before).max() > 1e-3


def test_a_hidden_place_reads_unknown() -> None:
    """Its vector is the mask's and row 0 of every table."""
    encoder, params = model(False)
    vectors, made = batch(7)
    hidden = jnp.asarray(SEGMENTS == 2)
    moved = {**params, "features/rating": params["features/rating"].at[0].add(1.0),
             "mask": params["mask"] - 1.0}
    asked = {**made, "features/rating": np.maximum(made["features/rating"], 1)}  # none but those
    asked["features/rating"][SEGMENTS == 0] = 0
    found, expected = (np.asarray(encoder(own, jnp.asarray(vectors), inputs_of(asked), None,
                                          hidden)) for own in (moved, params))
    used = SEGMENTS > 0
    np.testing.assert_allclose(found[used], expected[used], atol=1e-5)
