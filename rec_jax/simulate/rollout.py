"""Many users played to their end at once, on the device: what was seen, shown, taken and earned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.simulate.environments import Environment
from rec_jax.simulate.environments.base import step

Array = jax.Array


class Episodes(NamedTuple):
    """A row is a user, a place is a turn; every array is `[B, L]`, L the horizon.

    items: int32, what the user had taken last when the slate was chosen; targets: int32, what was
    taken then, -1: nothing; segments: int32, 1 while the user is there; rewards: f32.
    """

    items: Array
    targets: Array
    segments: Array
    rewards: Array

    @property
    def returns(self) -> Array:
        """f32 `[B]`, all that a user earned."""
        return jnp.sum(self.rewards, axis=-1)

    def batch(self) -> dict[str, Array]:
        """As a step takes it, `[1, B, L]`."""
        positions = jnp.broadcast_to(jnp.arange(self.items.shape[1]), self.items.shape)
        found = {"items": self.items, "targets": self.targets, "segments": self.segments,
                 "positions": jnp.where(self.segments > 0, positions, 0),
                 "values/reward": self.rewards}
        return {name: value[None] for name, value in found.items()}


def play(environment: Environment, choose: Callable[[Array, Array, Array], Array], key: Array,
         count: int) -> Episodes:
    """`count` users from their coming to their leaving.

    choose: (histories int32 `[B, L]`, place int32 `[]` up to which they are known, seed uint32
      `[]`) -> slates int32 `[B, K]`.
    key: users and their chance come from it alone, so that policies can be compared on the same.
    """
    return watch(environment, choose, key, count)[0]


def watch(environment: Environment, choose: Callable[[Array, Array, Array], Array], key: Array,
          count: int) -> tuple[Episodes, Any, Array]:
    """`play`, and by turn `[L, B, ...]` the states after it, and the slates int32 `[L, B, K]`."""
    born, chance, chosen = jax.random.split(key, 3)
    length = environment.horizon
    users = jax.vmap(environment.reset)(jax.random.split(born, count))
    react = jax.vmap(functools.partial(step, environment))

    def turn(carry: Any, place: Array) -> Any:
        users, items, here = carry
        items = items.at[:, place].set(jnp.where(here, users.seen, 0))
        seed = jax.random.bits(jax.random.fold_in(chosen, place), (), jnp.uint32)
        slates = choose(items, place, seed)
        users, outcome = react(users, slates, jax.random.split(
            jax.random.fold_in(chance, place), count))
        seen = (here, jnp.where(here, outcome.item, -1), jnp.where(here, outcome.reward, 0.0))
        return (users, items, here & ~outcome.done), (seen, users, slates)

    start = (users, jnp.zeros((count, length), jnp.int32), jnp.ones(count, bool))
    (_, items, _), ((here, targets, rewards), states, slates) = jax.lax.scan(
        turn, start, jnp.arange(length))
    episodes = Episodes(items, targets.T.astype(jnp.int32), here.T.astype(jnp.int32), rewards.T)
    return episodes, states, slates
