"""Each variant of the transformer is its formula in f64, in whole rows and in pieces."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.model.encoder import Encoder, build_encoder
from rec_jax.model.encoders import Inputs
from rec_jax.model.encoders.layers import rotated
from rec_jax.model.encoders.transformer import Config

DIM, LENGTH, HEADS = 8, 11, 2
Params = dict[str, Any]


@functools.cache
def built(causal: bool = True, **settings: object) -> tuple[Config, Encoder, Params, Any]:
    """An encoder whose parameters are all different, with its jitted call."""
    config = Config(layers=2, heads=HEADS, **settings)  # type: ignore[arg-type]
    encoder, params = build_encoder(config, dim=DIM, length=LENGTH, causal=causal,
                                    precision="f32", seed=0)
    random = np.random.default_rng(5)
    params = {path: leaf + jnp.asarray(0.3 * random.standard_normal(leaf.shape), "f4")
              for path, leaf in params.items()}
    return config, encoder, params, jax.jit(encoder.__call__)


def norm(x: np.ndarray, params: Params, path: str) -> np.ndarray:
    if f"{path}/bias" not in params:  # RMS
        return x / np.sqrt((x**2).mean() + 1e-6) * params[f"{path}/scale"]
    centred = x - x.mean()
    return (centred / np.sqrt((centred**2).mean() + 1e-6) * params[f"{path}/scale"]
            + params[f"{path}/bias"])


def linear(x: np.ndarray, params: Params, path: str) -> np.ndarray:
    return x @ params[f"{path}/kernel"] + params[f"{path}/bias"]


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """Pairs (i, i + half) as complex numbers, each times its own power of e^i."""
    half = len(x) // 2
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def feed_forward(x: np.ndarray, config: Config, params: Params, at: str) -> np.ndarray:
    up = linear(x, params, f"{at}/up")
    if config.activation == "swiglu":
        gate, values = np.split(up, 2)
        hidden = gate / (1 + np.exp(-gate)) * values
    else:  # the tanh form of GELU
        hidden = up / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return linear(hidden, params, f"{at}/down")


def by_definition(config: Config, causal: bool, params: Params,
                  vectors: np.ndarray) -> np.ndarray:
    """Queries f64 `[n, d]` of one user with vectors `[n, d]`, one pair of items at a time."""
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    x = vectors.astype(np.float64)
    if config.positions == "learned":
        x = x + params["position"][:len(x)]
    for layer in range(config.layers):
        at = f"blocks/{layer}"
        heads = np.array([linear(norm(row, params, f"{at}/norm_attention"), params, f"{at}/qkv")
                          .reshape(3, HEADS, -1) for row in x])
        mixed = np.zeros((len(x), HEADS, DIM // HEADS))
        for i in range(len(x)):
            others = range(i + 1 if causal else len(x))
            for head in range(HEADS):
                scores = []
                for j in others:
                    q, k = heads[i, 0, head], heads[j, 1, head]
                    if config.positions == "rotary":
                        q, k = turned(q, i), turned(k, j)
                    scores.append(q @ k / math.sqrt(DIM // HEADS))
                weights = np.exp(scores - np.max(scores))
                weights /= weights.sum()
                mixed[i, head] = sum(weight * heads[j, 2, head]
                                     for weight, j in zip(weights, others, strict=True))
        x = x + np.array([linear(row.reshape(-1), params, f"{at}/project") for row in mixed])
        x = x + np.array([feed_forward(norm(row, params, f"{at}/norm_mlp"), config, params, at)
                          for row in x])
    return np.array([norm(row, params, "norm") for row in x])


def packed(counts: list[int], seed: int = 0) -> tuple[np.ndarray, Inputs]:
    """One row of users with so many items each, and padding behind them."""
    vectors = np.random.default_rng(seed).standard_normal((1, LENGTH, DIM)).astype(np.float32)
    segments, positions = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
    first = 0
    for number, count in enumerate(counts, 1):
        segments[0, first:first + count] = number
        positions[0, first:first + count] = np.arange(count)
        first += count
    return vectors, Inputs(jnp.asarray(segments), jnp.asarray(positions))


SETTINGS = [{}, {"positions": "rotary"}, {"activation": "swiglu"}, {"norm": "rms"},
            {"positions": "rotary", "activation": "swiglu", "norm": "rms", "causal": False},
            {"positions": "rotary", "query_chunk": 4}, {"causal": False, "query_chunk": 3}]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("counts", [[LENGTH], [1], [1, 3, 2, 4]], ids=repr)
def test_queries_are_those_of_the_definition(settings: dict[str, Any], counts: list[int]) -> None:
    config, _, params, apply = built(**settings)
    vectors, inputs = packed(counts)
    found = np.asarray(apply(params, vectors, inputs))[0]
    assert np.isfinite(found).all()
    first = 0
    for count in counts:
        own = slice(first, first + count)
        expected = by_definition(config, settings.get("causal", True), params, vectors[0, own])
        np.testing.assert_allclose(found[own], expected, atol=5e-5)
        first += count


@pytest.mark.parametrize("settings", [{}, {"causal": False, "positions": "rotary"}], ids=repr)
def test_pieces_of_a_row_change_no_gradient(settings: dict[str, Any]) -> None:
    vectors, inputs = packed([4, 5])
    weights = np.random.default_rng(1).standard_normal(vectors.shape).astype(np.float32)

    def gradient(chunk: int) -> Params:
        _, encoder, params, _ = built(query_chunk=chunk, **settings)
        return jax.jit(jax.grad(lambda params: jnp.sum(
            encoder(params, vectors, inputs) * weights)))(params)

    expected, found = gradient(LENGTH), gradient(4)
    for name, leaf in expected.items():
        assert name == "mask" or np.abs(leaf).max() > 0, name
        np.testing.assert_allclose(found[name], leaf, atol=1e-4, err_msg=name)


def test_a_long_row_holds_no_scores_of_all_pairs() -> None:
    length, dim = 1024, 8

    def scratch(chunk: int) -> int:
        config = Config(layers=1, heads=1, query_chunk=chunk, backend="xla")
        encoder, params = build_encoder(config, dim=dim, length=length, causal=True,
                                        precision="f32", seed=0)
        whole = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(params: Params, vectors: jax.Array, inputs: Inputs) -> jax.Array:
            return jnp.sum(jnp.square(encoder(params, vectors, inputs)))

        compiled = jax.jit(jax.grad(loss)).lower(
            params, jax.ShapeDtypeStruct((1, length, dim), jnp.float32), Inputs(whole, whole))
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert scratch(length) > 4 * length**2 > scratch(128)


def test_attention_dropout_works_in_pieces_too() -> None:
    _, _, params, apply = built(query_chunk=4, attention_dropout=0.5, dropout=0.0)
    vectors, inputs = packed([4, 5])
    off, first, again, other = (np.asarray(apply(params, vectors, inputs, key)) for key in (
        None, jax.random.key(1), jax.random.key(1), jax.random.key(2)))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert np.abs(first - off).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_rotary_products_depend_on_the_distance_alone() -> None:
    random = np.random.default_rng(2)
    q, k = random.standard_normal((2, 1, 1, 1, DIM)).astype(np.float32)

    def product(one: int, other: int) -> float:
        at = [jnp.array([[place]]) for place in (one, other)]
        return float(jnp.sum(rotated(q, at[0]) * rotated(k, at[1])))

    assert product(3, 1) == pytest.approx(product(202, 200), abs=1e-3)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    assert product(7, 7) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


def test_a_gated_layer_has_about_as_many_parameters() -> None:
    def count(activation: str) -> int:
        _, params = build_encoder(Config(activation=activation), dim=48, length=10, causal=True,
                                  precision="f32", seed=0)
        return sum(leaf.size for leaf in params.values())

    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.01)


def test_rotary_positions_have_no_table() -> None:
    assert "position" in built()[2] and "position" not in built(positions="rotary")[2]


def test_rotary_positions_need_pairs() -> None:
    with pytest.raises(InputError, match=r"encoder\.positions = 'rotary' .* is 3; expected an"):
        build_encoder(Config(heads=2, positions="rotary"), dim=6, length=LENGTH, causal=True,
                      precision="f32", seed=0)


def test_a_piece_of_no_queries_is_refused() -> None:
    with pytest.raises(InputError, match="query_chunk is 0; expected at least 1"):
        Config(query_chunk=0)
