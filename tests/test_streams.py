"""No two random draws of a run share a key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax import streams
from rec_jax.data.features import Feature
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders.transformer import Config as Transformer

Key = tuple[int, ...]


def bits(key: jax.Array) -> Key:
    return tuple(jax.random.key_data(key).tolist())


def all_keys(seed: int) -> list[Key]:
    """Every key that a run folds or draws from: some steps of three micro-batches."""
    run = streams.of_steps(seed)
    first = streams.of_run(seed, streams.PARAMETERS)
    rngs, features = nnx.Rngs(first), streams.of_run(seed, streams.FEATURES)
    keys = [run, first, features, streams.of_run(seed, streams.MASK),
            *(rngs.params() for _ in range(40)),
            *(jax.random.fold_in(features, number) for number in range(4))]
    for step in range(6):
        now = jnp.int32(step)
        keys += [jax.random.fold_in(run, now), *(streams.of_step(run, now, name) for name in (
            streams.NEGATIVES, streams.ROUNDING, streams.ROWS, 0, 1, 2))]
        rows = streams.of_step(run, now, streams.ROWS)
        keys += [jax.random.fold_in(rows, item) for item in range(5)]
        for name in (streams.DROPOUT, streams.TASK):
            keys += list(streams.of_micro_batches(run, now, 3, name))
    return [bits(key) for key in keys]


def test_no_key_of_a_run_is_there_twice() -> None:
    keys = all_keys(0)
    assert len(keys) == 48 + 6 * 18 and len(set(keys)) == len(keys)


def test_another_seed_shares_no_key() -> None:
    assert not set(all_keys(0)) & set(all_keys(1))


def test_the_first_values_of_an_encoder_are_not_those_of_a_step() -> None:
    """Nor of each other: the mask and the tables of side features come from their own keys."""
    features = (Feature("item_category", "features/a", 5), Feature("rating", "features/b", 5))
    _, params = build_encoder(Transformer(layers=1, heads=1), dim=8, length=8, causal=False,
                              precision="f32", seed=0, features=features)
    drawn = {name: jnp.ravel(params[name])[-8:] for name in (
        "mask", "position", "features/a", "features/b")}
    run = streams.of_steps(0)
    for key in (jax.random.key(0), *(jax.random.fold_in(run, step) for step in range(3))):
        drawn[f"{bits(key)}"] = 0.02 * jax.random.normal(key, (8,))
    names = list(drawn)
    for place, one in enumerate(names):
        for other in names[place + 1:]:
            assert not jnp.any(drawn[one] == drawn[other]), (one, other)
