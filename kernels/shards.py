"""Arguments that the public functions share: checked once, and placed within a sharded table."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp

from .compat import vary, varying_axes
from .primitives import Array, AxisName, Scores
from .rows import gather_rows

FLOATS = ("float32", "bfloat16")


def check_arrays(op: str, queries: Array, items: Array, targets: Array | None,
                 bias: Array | None, softcap: float | None) -> None:
    """Shapes and types of a public call.

    Raises:
      ValueError: one line that names the argument and what was expected.
    """
    def fail(message: str) -> None:
        raise ValueError(f"{op}: {message}")

    if queries.ndim != 2 or items.ndim != 2:
        fail(f"queries {queries.shape} and items {items.shape}; expected [N, d] and [V, d]")
    if queries.shape[1] != items.shape[1]:
        fail(f"queries are {queries.shape[1]} wide and items {items.shape[1]}; expected one width")
    for name, array in (("queries", queries), ("items", items)):
        if array.dtype.name not in FLOATS:
            fail(f"{name} are {array.dtype.name}; expected {' or '.join(FLOATS)}")
        if 0 in array.shape:
            fail(f"{name} have shape {array.shape}; expected no axis of size 0")
    if targets is not None:
        if targets.shape != queries.shape[:1]:
            fail(f"targets have shape {targets.shape}; expected ({queries.shape[0]},)")
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            fail(f"targets are {targets.dtype.name}; expected integers")
    if bias is not None and bias.shape != items.shape[:1]:
        fail(f"bias has shape {bias.shape}; expected ({items.shape[0]},)")
    if softcap is not None and not softcap > 0:
        fail(f"softcap is {softcap}; expected a positive number")


def place(items: Array, num_items: int | Array | None, axis_name: AxisName | None
          ) -> tuple[int | Array, int | Array]:
    """(number of items of the whole table, global id of this shard's first row)."""
    shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    total: int | Array
    if num_items is None:
        total = items.shape[0] * shards
    else:
        total = num_items if isinstance(num_items, jax.Array) else operator.index(num_items)
    return total, 0 if axis_name is None else jax.lax.axis_index(axis_name) * items.shape[0]


def score_rule(items: Array, scale: Array, bias: Array | None, num_items: int | Array | None,
               softcap: float | None, axis_name: AxisName | None,
               first: int | Array = 0) -> Scores:
    """How this shard scores; see `Scores`. first: global id of row 0 of all shards together, where
    they are a part of a table."""
    total, offset = place(items, num_items, axis_name)
    if not isinstance(first, int) or first:
        offset = offset + first
    bias = None if bias is None else bias.astype(jnp.float32)
    return Scores(jnp.asarray(scale, jnp.float32), bias, total, offset, softcap)


def align(*arrays: Array | None) -> Any:
    """The arrays, typed as varying over every mesh axis that any of them varies over.

    A fold mixes all of its arguments, so that inside `shard_map` they must agree. None stays.
    """
    axes = varying_axes(*(x for x in arrays if x is not None))
    return [None if x is None else vary(x, axes) for x in arrays]


def pick_rows(items: Array, ids: Array, offset: int | Array, axis_name: AxisName | None) -> Array:
    """f32 `[N, d]`: the rows of global `ids`, 0 for ids that no shard has."""
    rows = gather_rows(items, ids - offset).astype(jnp.float32)
    return rows if axis_name is None else jax.lax.psum(rows, axis_name)
