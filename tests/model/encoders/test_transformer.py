"""What a query of the transformer may depend on, and what it may not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs
from rec_jax.model.encoders.transformer import Config

DIM, LENGTH = 8, 10


class Encoded:
    """An encoder with large weights (its first ones are too small to show a leak), jitted."""

    def __init__(self, *, causal: bool = True, precision: str = "f32", **settings: object) -> None:
        config = Config(layers=2, heads=2, **settings)  # type: ignore[arg-type]
        encoder, params = build_encoder(config, dim=DIM, length=LENGTH, causal=causal,
                                        precision=precision, seed=0)
        self.params = {path: leaf * 20 if path.endswith("kernel") or path == "position" else leaf
                       for path, leaf in params.items()}
        self._apply = jax.jit(encoder.__call__)

    def __call__(self, vectors: np.ndarray, segments: np.ndarray, positions: np.ndarray,
                 key: jax.Array | None = None) -> np.ndarray:
        inputs = Inputs(jnp.asarray(segments), jnp.asarray(positions))
        return np.asarray(self._apply(self.params, jnp.asarray(vectors), inputs, key))


encoded = functools.cache(Encoded)


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which queries differ by more than rounding: bool `[B, L]`."""
    return np.abs(one - other).max(axis=-1) > 1e-4


def vectors(seed: int = 0, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, LENGTH, DIM)).astype(np.float32)


ALONE = (np.ones((1, LENGTH), np.int32), np.arange(LENGTH, dtype=np.int32)[None])
# Two users, of 4 and 5 items, then one place of padding.
PACKED = (np.array([[1] * 4 + [2] * 5 + [0]], np.int32),
          np.array([[*range(4), *range(5), 0]], np.int32))


@pytest.fixture(scope="module")
def causal() -> Encoded:
    return encoded(causal=True)


def test_a_later_item_changes_no_earlier_query(causal: Encoded) -> None:
    one, other = vectors(), vectors()
    other[:, 6] *= -1.0
    before, after = causal(one, *ALONE), causal(other, *ALONE)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert differ(before, after)[:, 6:].all()


def test_an_earlier_item_changes_every_later_query(causal: Encoded) -> None:
    one, other = vectors(), vectors()
    other[:, 0] *= -1.0
    assert differ(causal(one, *ALONE), causal(other, *ALONE)).all()


def test_a_bidirectional_query_sees_the_future() -> None:
    encoder = encoded(causal=False)
    one, other = vectors(), vectors()
    other[:, -1] *= -1.0
    assert differ(encoder(one, *ALONE), encoder(other, *ALONE)).all()


@pytest.mark.parametrize("sees_future", [False, True])
def test_users_packed_in_a_row_give_the_queries_that_they_give_alone(sees_future: bool) -> None:
    encoder = encoded(causal=not sees_future)
    together = vectors()
    packed = encoder(together, *PACKED)
    for first, count in ((0, 4), (4, 5)):
        alone = vectors(9)  # what stands behind the user must not matter either
        alone[0, :count] = together[0, first:first + count]
        segments = np.array([[1] * count + [0] * (LENGTH - count)], np.int32)
        found = encoder(alone, segments, ALONE[1])
        np.testing.assert_allclose(packed[0, first:first + count], found[0, :count],
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sees_future", [False, True])
def test_another_users_items_change_nothing(sees_future: bool) -> None:
    encoder = encoded(causal=not sees_future)
    one, other = vectors(), vectors()
    other[:, :4] *= -1.0
    before, after = encoder(one, *PACKED), encoder(other, *PACKED)
    np.testing.assert_array_equal(before[:, 4:], after[:, 4:])
    assert differ(before, after)[:, :4].any()


def test_rows_of_a_batch_do_not_touch_each_other(causal: Encoded) -> None:
    both = vectors(rows=2)
    segments, positions = (np.repeat(part, 2, axis=0) for part in ALONE)
    other = both.copy()
    other[1] *= -1.0
    before, after = causal(both, segments, positions), causal(other, segments, positions)
    np.testing.assert_array_equal(before[0], after[0])
    assert differ(before, after)[1].any()


def test_the_position_within_the_user_matters(causal: Encoded) -> None:
    repeated = np.repeat(vectors()[:, :1], LENGTH, axis=1)
    queries = causal(repeated, *ALONE)[0]
    assert len(np.unique(queries.round(4), axis=0)) == LENGTH


def test_padding_gives_finite_queries(causal: Encoded) -> None:
    empty = np.zeros((1, LENGTH), np.int32)
    assert np.isfinite(causal(vectors(), empty, empty)).all()


@pytest.mark.parametrize("settings", [{"dropout": 0.5}, {"attention_dropout": 0.5,
                                                         "dropout": 0.0}])
def test_dropout_needs_a_key(settings: dict[str, float]) -> None:
    encoder, quiet = encoded(**settings), encoded(dropout=0.0)
    off = encoder(vectors(), *ALONE)
    np.testing.assert_array_equal(off, quiet(vectors(), *ALONE))
    first, again, other = (encoder(vectors(), *ALONE, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert differ(first, off).any() and differ(first, other).any()


@pytest.mark.parametrize("settings", [{"dropout": 0.5}, {"attention_dropout": 0.5,
                                                         "dropout": 0.0}])
def test_dropout_does_not_let_users_meet(settings: dict[str, float]) -> None:
    encoder, key = encoded(**settings), jax.random.key(1)
    one, other = vectors(), vectors()
    other[:, :4] *= -1.0
    np.testing.assert_array_equal(encoder(one, *PACKED, key)[:, 4:],
                                  encoder(other, *PACKED, key)[:, 4:])


def test_bf16_gives_bf16_queries_near_those_of_f32(causal: Encoded) -> None:
    half = encoded(precision="bf16")(vectors(), *ALONE)
    assert half.dtype == jnp.bfloat16
    full = causal(vectors(), *ALONE)
    assert np.abs(half.astype(np.float32) - full).max() < 0.2
    assert np.corrcoef(half.astype(np.float32).ravel(), full.ravel())[0, 1] > 0.999


def test_the_same_seed_gives_the_same_parameters() -> None:
    def flat(seed: int) -> np.ndarray:
        _, params = build_encoder(Config(), dim=DIM, length=LENGTH, causal=True,
                                  precision="f32", seed=seed)
        return np.concatenate([np.ravel(params[path]) for path in sorted(params)])

    np.testing.assert_array_equal(flat(1), flat(1))
    assert np.any(flat(1) != flat(2))


def test_parameters_have_readable_paths_and_are_f32() -> None:
    _, params = build_encoder(Config(layers=1), dim=DIM, length=LENGTH, causal=True,
                              precision="bf16", seed=0)
    assert "blocks/0/qkv/kernel" in params and "position" in params
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"encoder.heads = 3 does not divide table.dim = 8"):
        build_encoder(Config(heads=3), dim=DIM, length=LENGTH, causal=True, precision="f32",
                      seed=0)


@pytest.mark.parametrize("settings", [
    {"layers": 0}, {"heads": 0}, {"hidden": -1}, {"dropout": 1.0}, {"dropout": -0.1},
    {"attention_dropout": 1.0},
])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))} is"):
        Config(**settings)  # type: ignore[arg-type]


def test_why_the_native_backend_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.kernels.native.build.problem", lambda: "/bin/false has failed")
    with pytest.raises(InputError, match="backend = 'native' cannot be used: /bin/false has fail"):
        build_encoder(Config(backend="native"), dim=DIM, length=LENGTH, causal=True,
                      precision="f32", seed=0)
