"""Random walks over a graph for objectives that learn from who is near whom.

A walk of t turns goes from an item to somebody who took it and to an item that this one took, t
times; from a user it begins with an item of theirs. t is 1 to T, each as likely. What walks find is
a part of the batch, by name, so that an objective plans from it as from all else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.model.graphs import AnyGraph
from rec_jax.model.neighbours import SampledGraph, walk
from rec_jax.objectives import Objective
from rec_jax.tables import ITEMS, USERS
from rec_jax.train.mode import Array, Batch


def with_walks(graph: AnyGraph | None, objective: Objective, batch: Batch, key: Array) -> Batch:
    """The batch with `walks/items` and `walks/users`, int32 `[A, B, L]`: the items that walks from
    a place's item and from its user end at, where the objective asks for them. key: of the step."""
    longest = objective.needs.walks
    if not longest:
        return batch
    assert isinstance(graph, SampledGraph)
    flat = {name: batch[name].reshape(-1) for name in (ITEMS, USERS)}
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    first = walk(graph, USERS, flat[USERS], 1, keys[0])
    turns = jax.random.randint(keys[1], (2, flat[ITEMS].size), 1, longest + 1)
    starts = jnp.concatenate([flat[ITEMS], first])
    # Of a user the first turn is the item that the walk begins with.
    left = jnp.concatenate([turns[0], turns[1] - 1])
    ends = _after(graph, starts, left, longest, keys[2])
    shape = batch[ITEMS].shape
    found: Any = {f"walks/{name}": part.reshape(shape)
                  for name, part in zip((ITEMS, USERS), jnp.split(ends, 2), strict=True)}
    return {**batch, **found}


def _after(graph: SampledGraph, items: Array, turns: Array, longest: int, key: Array) -> Array:
    """Where walks from `items` int32 `[n]` are after so many turns each."""
    for number in range(longest):
        there = walk(graph, ITEMS, items, 2, jax.random.fold_in(key, number))
        items = jnp.where(number < turns, there, items)
    return items
