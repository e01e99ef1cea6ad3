"""Side features: small tables of an encoder whose vectors are added to the item's.

The input of a place is its item's row plus one vector for each feature, as the segment and
position embeddings of BERT (Devlin et al., 2019) are added to the token's. The tables are
parameters of the encoder: `[C + 1, d]` for C categories, row 0 for "unknown", which is zero at
first. `rec_jax.data.features` says which features there are and where their codes come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.data.attributes import BeginConfig
from rec_jax.data.features import Feature, FeatureConfig, uses_gaps
from rec_jax.errors import InputError
from rec_jax.model.encoders import Inputs, carries_begin, uses_times
from rec_jax.model.encoders.relative import TIME_BUCKETS, time_bucket

Array = jax.Array


def init_tables(features: Sequence[Feature], dim: int, seed: int) -> dict[str, Array]:
    """A table f32 `[C + 1, d]` for each feature, and for queries a matrix `[1 + c, d]`, by path:
    normal with deviation 0.02."""
    key = streams.of_run(seed, streams.FEATURES)
    made = {}
    for number, feature in enumerate(features):
        if feature.kind == "query":  # rows of columns, none of which is unknown
            made[feature.path] = 0.02 * jax.random.normal(
                jax.random.fold_in(key, number), (feature.values, dim))
            continue
        size = TIME_BUCKETS if feature.kind == "time_gap" else feature.categories
        drawn = jax.random.normal(jax.random.fold_in(key, number), (size, dim))
        made[feature.path] = jnp.pad(0.02 * drawn, ((1, 0), (0, 0)))
    return made


def check_begin(begin: BeginConfig | None, encoder: Any, objective: Any,
                features: Sequence[FeatureConfig], length: int) -> None:
    """Raises InputError where a model cannot have places in front of histories of `length`."""
    if begin is None:
        return
    for wrong, said in (
            (not carries_begin(encoder),
             f"encoder {encoder.kind!r} reads no places in front of a history; expected one that "
             "does, such as transformer, hstu or bag"),
            (not objective.causal,
             f"objective {objective.kind!r} fills in hidden items; expected one that predicts what "
             "comes next, such as next_item"),
            (uses_times(encoder) or uses_gaps(features),
             "a begin place has no time; expected no encoder.time_bias, and no feature 'time_gap'"),
            (any(feature.path == begin.path for feature in features),
             "an attribute of the items has the name 'begin' among the features, too; expected "
             "another one"),
            (begin.places > length,
             f"{begin.places} places leave no room in rows of data.length = {length}")):
        if wrong:
            raise InputError(f"begin: {said}")


def check_queries(encoder: Any, objective: Any, features: Sequence[FeatureConfig],
                  continual: Any) -> None:
    """Raises InputError where a model cannot have queries among the items of a history."""
    if all(feature.kind != "query" for feature in features):
        return
    for wrong, said in (
            (not carries_begin(encoder),
             f"encoder {encoder.kind!r} reads no places without an item; expected one that does, "
             "such as transformer, hstu or bag"),
            (not objective.causal,
             f"objective {objective.kind!r} fills in hidden items; expected one that predicts what "
             "comes next, such as next_item"),
            (continual is not None,
             "nothing is appended to a dataset with queries; expected no [continual]")):
        if wrong:
            raise InputError(f"features: a query is read, and {said}")


def add_features(features: Sequence[Feature], params: Mapping[str, Array], vectors: Array,
                 inputs: Inputs, hidden: Array | None) -> Array:
    """`vectors` `[B, L, d]` plus those of the features; of a place in front of a history, whose
    codes are not 0, the vector of the place alone, and those of unknown features. A query's vector
    is b + x B for the vector x of its text, also in the place of an item's.

    hidden: bool `[B, L]`, places of which nothing may be seen: their features are unknown, and a
      gap is that to the last place before it that is seen.
    """
    # Begin places and queries have no item, so that they come first.
    for feature in sorted(features, key=lambda each: each.kind not in ("begin", "query")):
        if feature.kind == "query":
            assert inputs.features is not None
            rows = inputs.features[feature.path]
            mapped = rows.reshape(-1, rows.shape[-1]) @ params[feature.path]
            vectors = jnp.where(rows[..., :1] > 0, mapped.reshape(*rows.shape[:-1], -1),
                                vectors).astype(vectors.dtype)
            continue
        if feature.kind == "begin":
            assert inputs.features is not None
            codes = inputs.features[feature.path]
            vectors = jnp.where(codes[..., :1] > 0, mean_vector(params[feature.path], codes),
                                vectors).astype(vectors.dtype)
            continue
        if feature.kind == "time_gap":
            codes = gap_codes(inputs, hidden)[..., None]
        else:
            assert inputs.features is not None
            codes = inputs.features[feature.path]
            if hidden is not None:
                codes = jnp.where(hidden[..., None], 0, codes)
        vectors = vectors + mean_vector(params[feature.path], codes)
    return vectors


def mean_vector(table: Array, codes: Array) -> Array:
    """Mean `[..., d]` of the rows of `table` `[C + 1, d]` for the codes `[..., K]` that are not
    0; row 0 where all are."""
    used = codes > 0
    used = used.at[..., 0].set(used[..., 0] | ~jnp.any(used, axis=-1))
    share = used / jnp.sum(used, axis=-1, keepdims=True)
    # A slot at a time: K rows of d values for each place would be K times the activations.
    return sum((table[codes[..., slot]] * share[..., slot, None]
                for slot in range(codes.shape[-1])), start=jnp.float32(0))


def gap_codes(inputs: Inputs, hidden: Array | None) -> Array:
    """Code int32 `[B, L]` of the seconds between a place and the one before it in its segment.

    1 + the bucket of `time_bucket`; 0 in a segment's first place, in padding, and in a hidden
    place. Hidden places are passed over, so that no gap tells when one of them was.
    """
    assert inputs.times is not None
    place = jnp.arange(inputs.positions.shape[1])
    begin = place - inputs.positions
    # Just before a segment begins: before all of its own places, behind those of the last one.
    seen = place + jnp.zeros_like(begin) if hidden is None else jnp.where(hidden, begin - 1, place)
    before = jnp.pad(jax.lax.cummax(seen, axis=1)[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    known = (before >= begin) & (inputs.segments > 0)
    if hidden is not None:
        known &= ~hidden
    since = inputs.times - jnp.take_along_axis(inputs.times, jnp.maximum(before, 0), axis=1)
    return jnp.where(known, 1 + time_bucket(jnp.maximum(since, 0)), 0)
