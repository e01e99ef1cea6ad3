"""What an item's vector is made of: its own trained values, and what its content says.

    row(i) = e_i + A x_i          x_i: fixed content columns of item i, A [c, d]: trained

A table keeps `[e_i, x_i]` side by side, `[V_padded, d + c]`, so that content travels with its row
wherever rows go: gathered, cut over a mesh, saved, moved to another catalogue. Nothing is needed
but two small functions: `compose` makes a row's vector where a vector is wanted, and `expand`
turns a query so that its product with the stored row is that with the vector:

    h . (e + A x) = [h, A h] . [e, x]

The same source is used in training, evaluation, export and recommendation. Without content both
functions are the identity. Where content is codes, small numbers k_1 .. k_M of an item, the row is
a sum of rows of small tables, e + T_1[k_1] + .. + T_M[k_M], and where it goes through an MLP
(`rec_jax.model.content_mlp`) the row is e + f(x): then no query can be turned. In training
an item's own values may be left out by chance, so that its content learns to stand alone
(DropoutNet, Volkovs et al., NeurIPS 2017): see `without_own`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax import streams
from rec_jax.data.content import Content
from rec_jax.errors import InputError
from rec_jax.model.content_mlp import init_mlp, mlp
from rec_jax.tables.unique import looked_up

Array = jax.Array


class RowSource(NamedTuple):
    """How rows as they are stored become vectors of items. dim: d; left_out: the share of steps in
    which an item has no own values, whatever its content says of that."""

    dim: int
    content: tuple[Content, ...] = ()
    left_out: float = 0.0

    @property
    def columns(self) -> int:
        """Fixed columns of a stored row, behind its d trained ones."""
        return sum(part.columns for part in self.content)

    @property
    def width(self) -> int:
        """Columns of a stored row."""
        return self.dim + self.columns

    @property
    def linear(self) -> bool:
        """Whether vectors are a linear map of stored rows; others have to become vectors to be
        ranked."""
        return all(part.linear for part in self.content)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the parameters of the content."""
        return tuple(path for part in self.content for path in part.paths)

    @property
    def drop(self) -> float:
        """The share of steps in which an item has its content alone; 1: it has no other values."""
        return max(self.left_out, *(part.drop for part in self.content), 0.0)

    def without_own(self, key: Array, rows: Array, items: Array) -> Array:
        """Stored rows `[..., w]` of `items` `[...]`, with 0 for the own values of those that have
        their content alone in the step of `key`.

        Whether an item does is a function of key and id, so it holds wherever a step reads it.
        """
        if not self.drop:
            return rows

        def draw(item: Array) -> Array:
            return jax.random.uniform(jax.random.fold_in(key, item))

        kept = jax.vmap(draw)(items.reshape(-1)).reshape(items.shape) >= self.drop
        return self.with_own(rows, kept[..., None])

    def with_own(self, rows: Array, kept: Array | bool) -> Array:
        """Stored rows `[..., w]` with 0 for the own values of those that are not `kept` `[..., 1]`.
        """
        own = jnp.where(kept, rows[..., :self.dim], 0)
        return jnp.concatenate([own, rows[..., self.dim:]], axis=-1)

    def compose(self, params: Mapping[str, Array], rows: Array) -> Array:
        """Stored rows `[..., d + c]` -> vectors `[..., d]`."""
        vectors, start = rows[..., :self.dim] if self.content else rows, self.dim
        for part in self.content:
            fixed = rows[..., start:start + part.columns]
            weights = [params[path].astype(rows.dtype) for path in part.paths]
            vectors = vectors + (summed(part, weights[0], fixed) if part.centres else
                                 mlp(weights, fixed) if part.hidden else fixed @ weights[0])
            start += part.columns
        return vectors

    def expand(self, params: Mapping[str, Array], queries: Array) -> Array:
        """Queries `[..., d]` -> `[..., d + c]`, whose product with a stored row is that of the
        query with the row's vector."""
        if not self.content:
            return queries
        if not self.linear:
            of = "codes" if any(part.centres for part in self.content) else "an MLP"
            raise InputError(f"content: a query cannot be turned for rows of {of}; expected "
                             "table.update = 'dense' (of codes 'sparse', too), and an objective "
                             "that does not search")
        parts = [queries @ params[part.path].T.astype(queries.dtype) for part in self.content]
        return jnp.concatenate([queries, *parts], axis=-1)

    def init_parameters(self, seed: int, scale: float) -> dict[str, Array]:
        """The matrices f32 `[c, d]`, and MLPs: vectors of content of norm 1 begin with deviation
        `scale`."""
        key, found = streams.of_run(seed, streams.CONTENT), dict[str, Array]()
        for number, part in enumerate(self.content):
            own = jax.random.fold_in(key, number)
            if part.hidden:
                found |= init_mlp(part, self.dim, own, scale)
            else:
                found[part.path] = (scale * part.columns**-0.5 if part.centres else scale
                                    ) * jax.random.normal(own, (part.inputs, self.dim))
        return found


def summed(part: Content, matrix: Array, codes: Array) -> Array:
    """The sums `[..., d]` of the rows of `matrix` `[M K, d]` that codes `[..., M]` name: piece m
    has rows m K to (m + 1) K, code k the k-th of these, and code 0 none."""
    flat = codes.reshape(-1, part.columns).astype(jnp.int32)
    total: Any = 0
    for piece in range(part.columns):
        code = flat[:, piece]
        total = total + looked_up(matrix, piece * part.centres + jnp.maximum(code - 1, 0), code > 0)
    return jnp.reshape(total, (*codes.shape[:-1], matrix.shape[-1]))


def drop_of(source: Any) -> float:
    """`RowSource.drop` of any source; one without it always has its items' own values."""
    return float(getattr(source, "drop", 0.0))
