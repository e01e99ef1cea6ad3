"""HSTU is its formula, item by item in f64, however users share rows and pieces."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import fast_where

from rec_jax.errors import InputError
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, uses_times
from rec_jax.model.encoders.hstu import Config

DIM, LENGTH, HEADS = 8, 11, 2


class Encoded:
    """An encoder with weights that no two of are alike, jitted, with its gradient."""

    def __init__(self, *, causal: bool = True, precision: str = "f32", **settings: object) -> None:
        self.config = Config(**{"layers": 2, "heads": HEADS, **settings})  # type: ignore[arg-type]
        self.causal = causal
        encoder, params = build_encoder(self.config, dim=DIM, length=LENGTH, causal=causal,
                                        precision=precision, seed=0)
        random = np.random.default_rng(5)
        self.params = {path: leaf + jnp.asarray(0.3 * random.standard_normal(leaf.shape), "f4")
                       for path, leaf in params.items()}
        self._apply = jax.jit(encoder.__call__)
        self._gradient = jax.jit(jax.grad(lambda params, vectors, inputs, weights: jnp.sum(
            encoder(params, vectors, inputs) * weights), argnums=(0, 1)))

    def __call__(self, vectors: np.ndarray, inputs: Inputs,
                 key: jax.Array | None = None) -> np.ndarray:
        return np.asarray(self._apply(self.params, jnp.asarray(vectors), inputs, key))

    def gradient(self, vectors: np.ndarray, inputs: Inputs, weights: np.ndarray) -> dict:
        of_params, of_vectors = self._gradient(self.params, jnp.asarray(vectors), inputs, weights)
        return {name: np.asarray(leaf) for name, leaf in {**of_params, "x": of_vectors}.items()}


encoded = functools.cache(Encoded)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def norm(x: np.ndarray, params: dict[str, np.ndarray], path: str) -> np.ndarray:
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-6)
    return scaled * params[f"{path}/scale"] + params[f"{path}/bias"]


def bucket(seconds: int) -> int:
    """Half octaves of seconds + 1."""
    octave = int(np.floor(np.log2(seconds + 1)))
    return 2 * octave + ((seconds + 1) / 2**octave >= 1.5)


def by_definition(encoder: Encoded, vectors: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Queries f64 `[n, d]` of one user with vectors `[n, d]`, one pair of items at a time."""
    params = {path: np.asarray(leaf, np.float64) for path, leaf in encoder.params.items()}
    x = vectors.astype(np.float64)
    for layer in range(encoder.config.layers):
        at = f"blocks/{layer}"
        mixed, gates = np.zeros_like(x), np.zeros_like(x)
        parts = [silu(norm(row, params, f"{at}/norm") @ params[f"{at}/uvqk/kernel"]
                      + params[f"{at}/uvqk/bias"]).reshape(4, HEADS, -1) for row in x]
        for i in range(len(x)):
            gates[i] = parts[i][0].reshape(-1)
            for head in range(HEADS):
                total = np.zeros(DIM // HEADS)
                for j in range(len(x)):
                    if encoder.causal and j > i:
                        continue
                    score = parts[i][2][head] @ parts[j][3][head]
                    table = params[f"{at}/place"][head]
                    score += table[i - j if encoder.causal else i - j + LENGTH - 1]
                    if times is not None:
                        score += params[f"{at}/time"][bucket(abs(int(times[i]) - int(times[j])))]
                    total += silu(score) / LENGTH * parts[j][1][head]
                mixed[i, head * DIM // HEADS:(head + 1) * DIM // HEADS] = total
        x = x + np.array([
            (norm(mixed[i], params, f"{at}/norm_mixed") * gates[i])
            @ params[f"{at}/project/kernel"] + params[f"{at}/project/bias"] for i in range(len(x))])
    return np.array([norm(row, params, "norm") for row in x])


def users(random: np.random.Generator, counts: list[int]) -> tuple[np.ndarray, Inputs]:
    """One row of packed users with so many items each, and padding behind them."""
    vectors = random.standard_normal((1, LENGTH, DIM)).astype(np.float32)
    segments, positions, times = (np.zeros((1, LENGTH), np.int32) for _ in range(3))
    first = 0
    for number, count in enumerate(counts, 1):
        own = slice(first, first + count)
        segments[0, own], positions[0, own] = number, np.arange(count)
        gaps = np.append(0, (2 ** random.uniform(0, 26, max(count - 1, 0))).astype(np.int32))
        times[0, own] = np.cumsum(gaps[:count])
        first += count
    return vectors, Inputs(*map(jnp.asarray, (segments, positions, times)))


SETTINGS = [{}, {"time_bias": True}, {"causal": False}, {"causal": False, "time_bias": True},
            {"time_bias": True, "query_chunk": 4}]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("counts", [[LENGTH], [1], [1, 3, 2, 4], [5, 5]], ids=repr)
def test_queries_are_those_of_the_definition(settings: dict[str, bool], counts: list[int]) -> None:
    encoder = encoded(**settings)
    vectors, inputs = users(np.random.default_rng(len(counts)), counts)
    found = encoder(vectors, inputs)[0]
    assert np.isfinite(found).all()
    first = 0
    for count in counts:
        own = slice(first, first + count)
        times = np.asarray(inputs.times)[0, own] if settings.get("time_bias") else None
        expected = by_definition(encoder, vectors[0, own], times)
        np.testing.assert_allclose(found[own], expected, atol=2e-5)
        first += count


@pytest.mark.parametrize(("chunk", "settings"), fast_where(
    lambda chunk, settings: (chunk == 4) == (not settings), [1, 4, LENGTH - 1],
    [{}, {"causal": False}]), ids=repr)
def test_pieces_of_a_row_change_neither_queries_nor_gradients(chunk: int,
                                                              settings: dict[str, bool]) -> None:
    whole = encoded(time_bias=True, **settings)
    pieces = encoded(time_bias=True, query_chunk=chunk, **settings)
    random = np.random.default_rng(1)
    vectors, inputs = users(random, [4, 5])
    np.testing.assert_allclose(pieces(vectors, inputs), whole(vectors, inputs), atol=1e-5)
    weights = random.standard_normal((1, LENGTH, DIM)).astype(np.float32)
    found, expected = (one.gradient(vectors, inputs, weights) for one in (pieces, whole))
    for name, gradient in expected.items():
        assert name == "mask" or np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("settings", [{"time_bias": True}, {"causal": False, "query_chunk": 3}],
                         ids=repr)
def test_a_user_gets_the_same_queries_alone_and_in_company(settings: dict[str, bool]) -> None:
    encoder = encoded(**settings)
    together, inputs = users(np.random.default_rng(2), [4, 6])
    packed = encoder(together, inputs)
    alone, others = users(np.random.default_rng(3), [6])
    alone[0, :6] = together[0, 4:10]
    times = np.zeros((1, LENGTH), np.int32)
    times[0, :6] = np.asarray(inputs.times)[0, 4:10]
    found = encoder(alone, others._replace(times=jnp.asarray(times)))
    np.testing.assert_allclose(found[0, :6], packed[0, 4:10], rtol=1e-5, atol=1e-5)


def test_a_later_item_changes_no_earlier_query_and_all_later_ones() -> None:
    encoder = encoded(time_bias=True)
    vectors, inputs = users(np.random.default_rng(4), [LENGTH])
    other = vectors.copy()
    other[:, 6] *= -1
    before, after = encoder(vectors, inputs), encoder(other, inputs)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after).max(axis=-1)[:, 6:] > 1e-5).all()


def test_another_users_items_and_times_change_nothing() -> None:
    encoder = encoded(time_bias=True, causal=False)
    vectors, inputs = users(np.random.default_rng(4), [4, 5])
    other, times = vectors.copy(), np.array(inputs.times)
    other[:, :4] *= -1
    times[:, :4] += 1000
    before = encoder(vectors, inputs)
    after = encoder(other, inputs._replace(times=jnp.asarray(times)))
    np.testing.assert_array_equal(before[:, 4:9], after[:, 4:9])
    assert (np.abs(before - after).max(axis=-1)[:, :4] > 1e-5).all()


def test_time_matters_where_it_is_asked_for_and_is_not_read_elsewhere() -> None:
    vectors, inputs = users(np.random.default_rng(4), [LENGTH])
    later = inputs._replace(times=inputs.times * jnp.where(jnp.arange(LENGTH) > 5, 50, 1))
    for time_bias in (True, False):
        encoder = encoded(time_bias=time_bias)
        assert uses_times(encoder.config) == time_bias
        differ = np.abs(encoder(vectors, inputs) - encoder(vectors, later)).max(axis=-1)[0] > 1e-5
        assert differ.tolist() == [time_bias and place > 5 for place in range(LENGTH)]


def test_times_that_are_missing_are_an_error() -> None:
    vectors, inputs = users(np.random.default_rng(4), [LENGTH])
    with pytest.raises(InputError, match=r"encoder\.time_bias needs the times"):
        encoded(time_bias=True)(vectors, inputs._replace(times=None))


def test_padding_gives_finite_queries() -> None:
    vectors, inputs = users(np.random.default_rng(4), [])
    assert np.isfinite(encoded(time_bias=True)(vectors, inputs)).all()


def test_dropout_needs_a_key_and_does_not_let_users_meet() -> None:
    encoder = encoded(dropout=0.5)
    vectors, inputs = users(np.random.default_rng(6), [4, 5])
    other = vectors.copy()
    other[:, :4] *= -1
    off = encoder(vectors, inputs)
    first, again = (encoder(vectors, inputs, jax.random.key(1)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - off).max() > 1e-3
    np.testing.assert_array_equal(first[:, 4:9],
                                  encoder(other, inputs, jax.random.key(1))[:, 4:9])
    np.testing.assert_allclose(off, encoded(dropout=0.0)(vectors, inputs), rtol=1e-6)


def test_bf16_gives_bf16_queries_near_those_of_f32() -> None:
    vectors, inputs = users(np.random.default_rng(7), [LENGTH])
    half = encoded(precision="bf16", time_bias=True)(vectors, inputs)
    full = encoded(time_bias=True)(vectors, inputs)
    assert half.dtype == jnp.bfloat16
    assert np.corrcoef(half.astype(np.float32).ravel(), full.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("settings", [{"layers": 0}, {"heads": 0}, {"query_chunk": 0},
                                      {"dropout": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))} is"):
        Config(**settings)  # type: ignore[arg-type]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"encoder.heads = 3 does not divide table.dim = 8"):
        build_encoder(Config(heads=3), dim=DIM, length=LENGTH, causal=True, precision="f32",
                      seed=0)
