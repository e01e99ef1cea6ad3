"""Content that a text encoder makes inside the step, for the items that the step touches.

    ids of the step -> each once -> tokens -> vectors [M, c] -> the content columns of their rows
                                                   gradient  -> the encoder's parameters

Stored rows keep the vectors of all items as they were when the catalogue was last computed; in a
step those of its items are put in their place. So nothing behind the step knows of texts: before
a validation or a checkpoint the columns are computed anew (`Built.refreshed`), and evaluation,
export and recommendation read them as any other content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.mesh import replicated
from rec_jax.model.encoder import Params, is_text
from rec_jax.model.rows import RowSource
from rec_jax.objectives.base import Ids
from rec_jax.tables.unique import NO_ID, looked_up, unique_ids
from rec_jax.text.in_step import encode_texts
from rec_jax.text.item_encoder import ItemEncoder
from rec_jax.train.mode import Array, Composed, Setting


class Touched(NamedTuple):
    """ids: int32 `[M]`, ascending and distinct, then NO_ID; vectors: f32 `[M, c]`, 0 there; pull:
    their gradient -> that of the encoder's parameters that train, by path."""

    ids: Array
    vectors: Array
    pull: Callable[[Array], Params]


def touched(texts: ItemEncoder, tokens: Any, setting: Setting, params: Params,
            trained: Params, num_items: int, each: Mapping[str, Ids], shared: Mapping[str, Ids]
            ) -> Touched:
    """The vectors of all items that a step reads.

    tokens: int32 `[V, L]` and their lengths `[V]`; params: of the run; trained: of these the text
      encoder's that train; each, shared: ids of the items, see `Request`.
    """
    named = [*each.values(), *shared.values()]
    whole = replicated(setting.mesh)
    ids, present = (jax.lax.with_sharding_constraint(
        jnp.concatenate([part.ravel() for part in parts]), whole)
        for parts in zip(*named, strict=True))
    distinct = unique_ids(ids, num_items, present).ids[:min(len(ids), num_items)]
    texts_of, lengths = (jnp.take(array, distinct, axis=0, mode="clip") for array in tokens)
    lengths = jnp.where(distinct == NO_ID, 0, lengths)

    def encode(trained: Params) -> Array:
        weights = texts.weights({**params, **trained}, setting.compute)
        return encode_texts(texts.model, weights, texts_of, lengths, setting.mesh)

    vectors, pull = jax.vjp(encode, trained)
    return Touched(distinct, vectors, lambda gradient: pull(gradient)[0])


def with_texts(composed: Composed, source: RowSource, texts: ItemEncoder, ids: Array,
               vectors: Array) -> Composed:
    """`composed` with the vectors of `ids` in the columns of their content."""
    first = source.dim
    for part in source.content:
        if part.path == texts.content.path:
            break
        first += part.columns

    def in_step(rows: Array, items: Array) -> Array:
        slots = jnp.minimum(jnp.searchsorted(ids, items.ravel()), len(ids) - 1)
        known = ids[slots] == items.ravel()
        made = looked_up(vectors, slots, known).reshape(*items.shape, -1).astype(rows.dtype)
        end = first + made.shape[-1]
        made = jnp.where(known.reshape(items.shape)[..., None], made, rows[..., first:end])
        rows = jnp.concatenate([rows[..., :first], made, rows[..., end:]], axis=-1)
        return composed.in_step(rows, items)

    return composed._replace(in_step=in_step)


def split_texts(params: Params) -> tuple[Params, Params]:
    """Parameters without those of a text encoder, and those."""
    return ({path: leaf for path, leaf in params.items() if not is_text(path)},
            {path: leaf for path, leaf in params.items() if is_text(path)})


@dataclass(frozen=True)
class WithTexts:
    """A jitted step and the tokens of the items, which are an argument as a graph is."""

    step: Any
    tokens: Any

    def __call__(self, state: Any, batch: Any, places: Any = None) -> Any:
        return self.step(state, batch, places, None, self.tokens)

    def lower(self, state: Any, batch: Any, places: Any = None) -> Any:
        """As `jax.jit` lowers."""
        return self.step.lower(state, batch, places, None, self.tokens)
