"""An encoder as plain arrays: build it, and apply it to item vectors.

`flax.nnx` modules describe the encoders; everything that stores or updates them (optimizer,
checkpoint, moving average) sees a flat dict `path -> array`. This file is the bridge, and where
an encoder that sees the future gets the vector that stands for a hidden item.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax import streams
from rec_jax.data.content import Content
from rec_jax.data.features import Feature
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.model.encoders import EncoderConfig, Inputs
from rec_jax.model.encoders.base import at_places
from rec_jax.model.features import add_features, init_tables
from rec_jax.model.heads import FOLDER as HEADS
from rec_jax.model.heads import apply_head, init_heads
from rec_jax.model.lora import FOLDER as LORA
from rec_jax.model.lora import Adapted, LoraConfig, find_adapted, init_lora, merged
from rec_jax.model.rows import RowSource
from rec_jax.tables import INPUTS, USERS

Params = dict[str, jax.Array]
"""Encoder parameters by path, such as `blocks/0/qkv/kernel`."""

MASK = "mask"
"""Path of the vector `[d]` that an encoder reads in place of a hidden item's."""

TEXT = "text/"
"""Before the paths of the parameters of a text encoder that makes items' content."""

TABLES = (INPUTS, USERS)
"""Tables whose rows `[V_padded, d]` stand among an encoder's parameters outside of training:
`INPUTS` where tables are untied, `USERS` where the encoder reads whose a place is."""


def is_text(path: str) -> bool:
    """Whether a parameter is a text encoder's, or adapts one of its matrices."""
    return path.startswith((TEXT, LORA + TEXT))


class Encoder(NamedTuple):
    """The static part of an encoder; parameters travel beside it.

    takes_places: its module computes the queries of asked places alone; see `encoders.base`.
    tied: it reads rows of the items' table; those of a table of inputs have no content.
    head: whose queries it gives (`rec_jax.model.heads`); None: its own, as a training step asks.
    beside: matrices that are adapted and are none of the module's.
    """

    graph: nnx.GraphDef
    structure: Any  # of the module's state, whose leaves are in the order of `paths`
    paths: tuple[str, ...]
    features: tuple[Feature, ...] = ()
    takes_places: bool = True
    source: RowSource = RowSource(0)
    lora: tuple[Adapted, ...] = ()
    beside: tuple[Adapted, ...] = ()
    tied: bool = True
    head: str | None = None

    def __call__(self, params: Params, vectors: jax.Array, inputs: Inputs,
                 key: jax.Array | None = None, hidden: jax.Array | None = None,
                 at: jax.Array | None = None) -> jax.Array:
        """Stored rows `[B, L, w]` of the table that it reads -> queries `[B, L, d]`; no key, no
        dropout.

        hidden: bool `[B, L]`, places whose item the encoder may not see; not for causal ones.
        at: int32 `[B, C]`, places whose queries `[B, C, d]` are wanted, without dropout.
        """
        if self.tied:
            vectors = self.source.compose(params, vectors)
        if hidden is not None:
            vectors = jnp.where(hidden[..., None], params[MASK].astype(vectors.dtype), vectors)
        vectors = add_features(self.features, params, vectors, inputs, hidden)
        if hidden is not None and inputs.times is not None:
            inputs = inputs._replace(times=visible_times(inputs, hidden))
        params = merged(self.lora, params)
        leaves = [params[path] for path in self.paths]
        module = nnx.merge(self.graph, jax.tree.unflatten(self.structure, leaves))
        inputs = inputs._replace(features=None)
        queries = (module(vectors, inputs, key, at) if self.takes_places
                   else at_places(module(vectors, inputs, key), at))
        return queries if self.head is None else apply_head(params, self.head, queries)


def visible_times(inputs: Inputs, hidden: jax.Array) -> jax.Array:
    """Times int32 `[B, L]` in which a hidden item has that of the last visible item before it.

    The time of an item that is still to come is not known when the model is asked, so training
    must not see it. Times count from the first visible item of a segment, since distances to a
    hidden one would tell its time; before that item they are 0.
    """
    assert inputs.times is not None
    length = hidden.shape[1]
    place = jnp.arange(length)
    begin = place - inputs.positions
    # Places rise from segment to segment, so the largest seen so far is never another's.
    last = jax.lax.cummax(jnp.where(hidden, begin, place), axis=1)
    # A segment without a visible item finds one of the next segment; its result is never used.
    first = jax.lax.cummin(jnp.where(hidden, length - 1, place), axis=1, reverse=True)
    first = jnp.take_along_axis(first, begin, axis=1)
    when, start = (jnp.take_along_axis(inputs.times, at, axis=1) for at in (last, first))
    return jnp.where(first <= last, when - start, 0)


def build_encoder(config: EncoderConfig, *, dim: int, length: int, causal: bool, precision: str,
                  seed: int, features: Sequence[Feature] = (), content: Sequence[Content] = (),
                  scale: float = 0.02, heads: Sequence[str] = (),
                  lora: Sequence[LoraConfig] = (), tied: bool = True,
                  beside: Mapping[str, Sequence[int]] | None = None) -> tuple[Encoder, Params]:
    """The encoder of `config` and its initial parameters (f32), drawn from `seed`.

    One that is not causal has a parameter `mask` more, for the places that are hidden from it;
    there is one table more for each of `features`, what each of `content` is led by, which
    begins with deviation `scale`, and one for each of `heads`, and two for each matrix of the
    encoder that `lora` adapts. tied: see `Encoder`. beside: shapes by path of other parameters that
    it may adapt, which are the caller's, and so are their adapters.
    """
    module = config.build(dim=dim, length=length, causal=causal, dtype=DTYPES[precision],
                          rngs=nnx.Rngs(streams.of_run(seed, streams.PARAMETERS)))
    graph, state = nnx.split(module)
    flat = jax.tree.leaves_with_path(state)
    paths = tuple(_name(path) for path, _ in flat)
    for path in paths:
        if path in (MASK, *TABLES) or path.startswith(
                ("features/", "content/", "item_graph/", "tables/", TEXT, HEADS, LORA)):
            raise InputError(f"encoder {config.kind!r} has a parameter {path!r}, which is the name "
                             "of something beside an encoder; expected another name")
    params = dict(zip(paths, (leaf for _, leaf in flat), strict=True))
    if not causal:
        key = streams.of_run(seed, streams.MASK)
        params[MASK] = 0.02 * jax.random.normal(key, (dim,))
    params |= init_tables(features, dim, seed)
    source = RowSource(dim, tuple(content), getattr(config, "drop", 0.0))
    params |= source.init_parameters(seed, scale) | init_heads(heads, dim, seed)
    shapes = {path: params[path].shape for path in paths}
    everywhere = find_adapted(lora, {**shapes, **(beside or {})})
    adapted, others = (tuple(each for each in everywhere if (each.path in shapes) == own)
                       for own in (True, False))
    params |= init_lora(adapted, shapes, seed)
    takes_places = "at" in inspect.signature(module.__call__).parameters
    return Encoder(graph, jax.tree.structure(state), paths, tuple(features), takes_places, source,
                   adapted, others, tied), params


def with_tables(params: Params, tables: Mapping[str, jax.Array]) -> Params:
    """The parameters with the rows of those `tables` beside them that feed an encoder."""
    return {**params, **{name: tables[name] for name in TABLES if name in tables}}


def encode(encoder: Encoder, params: Params, rows: jax.Array, items: jax.Array,
           inputs: Inputs, key: jax.Array | None = None,
           hidden: jax.Array | None = None, at: jax.Array | None = None) -> jax.Array:
    """Histories `[B, L]` of items -> queries `[B, L, d]`, rows gathered from `[V_padded, d]`, or
    from `params[INPUTS]` where the model has it; `hidden`, `at`: see `Encoder`."""
    rows = params.get(INPUTS, rows)
    return encoder(params, jnp.take(rows, items, axis=0), inputs, key, hidden, at)


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
             for entry in path]
    return "/".join(part for part in parts if part not in ("value", ".value"))


def as_vectors(encoder: Encoder, params: Params, rows: jax.Array
               ) -> tuple[Encoder, jax.Array]:
    """Where vectors are no linear map of rows (codes, an MLP), the encoder and the items' rows as
    vectors `[V_padded, d]`, which it reads as they are; otherwise both as they were."""
    source = encoder.source
    if source.linear:
        return encoder, rows
    return encoder._replace(source=RowSource(source.dim)), jax.jit(
        source.compose, out_shardings=rows.sharding)(params, rows)
