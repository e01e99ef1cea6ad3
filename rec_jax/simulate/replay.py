"""A store of episodes on the device, from which steps draw: the oldest make room for new ones.

Draws are even, or by priority: an episode comes with probability in proportion to p^a, where p is
the mean error of its places when it was last drawn, or the largest of all while it is new; the
weights 1 / (n P)^b, by which its loss counts, correct for that and are at most 1 (Schaul et al.,
2016). Whole episodes are drawn, since the encoder reads what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.ranges import at_least, check
from rec_jax.simulate.rollout import Episodes

Array = jax.Array

_LEAST = 1e-6  # of a priority, so that whatever is stored may come again


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of the store.

    capacity: episodes that it holds; 0: there is none, and a step takes the episodes that were
      just played.
    begin: episodes of any items, before the first step.
    rows: episodes that an update draws.
    updates: how many updates a step of the run makes.
    priority: a, the power of errors by which episodes are drawn; with 0 draws are even.
    correction: b, how far weights correct for that, from 0 to 1.
    """

    capacity: int = 0
    begin: int = 0
    rows: int = 64
    updates: int = 1
    priority: float = 0.0
    correction: float = 0.4

    def __post_init__(self) -> None:
        check(self, "replay.", capacity=at_least(0), begin=at_least(0), rows=at_least(1),
              updates=at_least(1), priority=at_least(0, 10), correction=at_least(0, 1))


class Replay(NamedTuple):
    """The store. episodes: arrays `[C, L]`; written: int32 `[]`, how many came in all; priority:
    f32 `[C]`, p, 0 where there is none yet."""

    episodes: Episodes
    written: Array
    priority: Array


def new_replay(capacity: int, length: int) -> Replay:
    """An empty store of episodes of `length` places."""
    def empty() -> Array:
        return jnp.zeros((capacity, length), jnp.int32)

    return Replay(Episodes(empty(), empty(), empty(), empty().astype(jnp.float32)), jnp.int32(0),
                  jnp.zeros(capacity))


def add(replay: Replay, episodes: Episodes) -> Replay:
    """The store with these, no more than it holds."""
    count, capacity = episodes.items.shape[0], replay.priority.shape[0]
    places = (replay.written + jnp.arange(count)) % capacity
    highest = jnp.maximum(jnp.max(replay.priority), _LEAST)
    return Replay(
        jax.tree.map(lambda old, new: old.at[places].set(new), replay.episodes, episodes),
        replay.written + count, replay.priority.at[places].set(highest))


def draw(replay: Replay, config: ReplayConfig, key: Array) -> tuple[Episodes, Array, Array]:
    """Episodes, their places int32 `[rows]`, and the factors f32 `[rows]` on their losses."""
    capacity = replay.priority.shape[0]
    there = jnp.minimum(replay.written, capacity)
    if not config.priority:
        places = jax.random.randint(key, (config.rows,), 0, there)
        factors = jnp.ones(config.rows)
    else:
        logits = jnp.where(jnp.arange(capacity) < there, config.priority * jnp.log(
            jnp.maximum(replay.priority, _LEAST)), -jnp.inf)
        places = jax.random.categorical(key, logits, shape=(config.rows,))
        rare = -config.correction * jax.nn.log_softmax(logits)[places]
        factors = jnp.exp(rare - jnp.max(rare))
    return jax.tree.map(lambda x: x[places], replay.episodes), places, factors


def judged(replay: Replay, places: Array, losses: Array, present: Array) -> Replay:
    """The store after the episodes at `places` cost `losses` f32 `[rows, L]` where `present`: the
    error of a squared loss is the root of twice the loss."""
    counted = present.astype(jnp.float32)
    errors = jnp.sum(jnp.sqrt(jnp.maximum(2 * losses, 0.0)) * counted, axis=-1)
    mean = errors / jnp.maximum(jnp.sum(counted, axis=-1), 1.0)
    return replay._replace(priority=replay.priority.at[places].set(jnp.maximum(mean, _LEAST)))
