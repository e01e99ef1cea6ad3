"""How a model chooses what to show: draws from its softmax, its best items, or anything.

`act(training state, items [B, L], place, seed) -> slates int32 [B, K]`, where place is the last
one of the histories that is known. It is a function of arrays, inside the loop over turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.mesh import replicated
from rec_jax.model.encoders import Inputs
from rec_jax.ranges import at_least, check
from rec_jax.tables.on_mesh import catalogue_sample
from rec_jax.train.dense import take_rows
from rec_jax.train.mode import Setting, top_k
from rec_jax.train.state import TrainState

Array = jax.Array
Act = Callable[[TrainState, Array, Array, Array], Array]
Policy = Literal["sample", "greedy", "random"]


@dataclass(frozen=True)
class ActingConfig:
    """How a run plays while it learns.

    policy: draws from the softmax over all items (without replacement, the slate's order is that
      of the draws), its best items, or any items.
    episodes: users that are played to their end in a step of the run.
    explore: share of places of slates that any item is put in, besides.
    explore_from: share that it falls from, evenly; none: it stays the same.
    explore_steps: steps of the run in which it falls.
    """

    policy: Policy = "sample"
    episodes: int = 64
    explore: float = 0.0
    explore_from: float | None = None
    explore_steps: int = 0

    def __post_init__(self) -> None:
        check(self, "acting.", episodes=at_least(1), explore=at_least(0, 1),
              explore_from=at_least(0, 1), explore_steps=at_least(0))
        if (self.explore_from is None) != (self.explore_steps == 0):
            raise InputError("acting.explore_from and acting.explore_steps belong together; "
                             "expected both, or neither")

    def explored(self, step: Array) -> Array:
        """The share after so many steps of the run, f32 `[]`."""
        if self.explore_from is None:
            return jnp.float32(self.explore)
        left = jnp.clip(1 - step.astype(jnp.float32) / self.explore_steps, 0.0, 1.0)
        return self.explore + (self.explore_from - self.explore) * left


def make_act(setting: Setting, policy: Policy, slate: int) -> Act:
    """The function of a policy; scores are those of the objective (its `scale` and `softcap`)."""
    scale = getattr(setting.objective, "scale", 1.0)
    softcap = getattr(setting.objective, "softcap", None)

    def act(state: TrainState, items: Array, place: Array, seed: Array) -> Array:
        table = state.items
        if policy == "random":
            return any_items(items.shape[0], slate, table.num_items, seed)
        queries = jax.lax.with_sharding_constraint(
            queries_at(setting, state, items, place), replicated(setting.mesh))
        if policy == "greedy":
            return top_k(setting.mesh, table, queries, slate, None)[1]
        expanded = setting.encoder.source.expand(state.encoder, queries)
        rows = catalogue_sample(setting.mesh, expanded, table.rows, slate, seed,
                                num_items=table.num_items, over=table.over, logit_scale=scale,
                                softcap=softcap)
        return table.row_map.ids(rows)

    return act


def queries_at(setting: Setting, state: TrainState, items: Array, place: Array) -> Array:
    """Queries f32 `[B, d]` of histories `[B, L]` that are known up to `place`."""
    count, length = items.shape
    reads = state.tables[setting.reads]
    vectors = take_rows(reads.rows, reads.row_map.rows(items))
    positions = jnp.broadcast_to(jnp.arange(length), items.shape)
    inputs = Inputs((positions <= place).astype(jnp.int32), positions)
    at = jnp.full((count, 1), place, jnp.int32)
    queries = setting.encoder(state.encoder, vectors, inputs, None, None, at)
    return queries[:, 0].astype(jnp.float32)


def any_items(count: int, slate: int, num_items: int, seed: Array) -> Array:
    """Slates int32 `[count, slate]` of any items, each of a slate another one."""
    first = jax.random.randint(key_of(seed), (count, 1), 0, num_items)
    if slate == 1:
        return first
    # Steps of which no sum is a whole round lead to different items.
    steps = jax.random.randint(jax.random.fold_in(key_of(seed), 1), (count, slate - 1), 1,
                               max(2, num_items // slate))
    return (first + jnp.pad(jnp.cumsum(steps, axis=1), ((0, 0), (1, 0)))) % num_items


def exploring(act: Act, share: Array, num_items: int) -> Act:
    """`act` with that share of places given to any item."""
    def mixed(state: TrainState, items: Array, place: Array, seed: Array) -> Array:
        slates = act(state, items, place, seed)
        key = jax.random.fold_in(key_of(seed), 2)
        which, what = jax.random.split(key)
        other = jax.random.randint(what, slates.shape, 0, num_items)
        taken = jax.random.uniform(which, slates.shape) < share
        return jnp.where(taken, other, slates)

    return mixed


def key_of(seed: Array) -> Array:
    """A random key of a seed uint32 `[]`."""
    return jax.random.wrap_key_data(jnp.stack([seed, seed ^ jnp.uint32(0x85EBCA6B)]),
                                    impl="threefry2x32")
