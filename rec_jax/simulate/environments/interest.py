"""Interests that move: slates, a user who chooses from them, and a budget of time.

Item i belongs to one topic and has a quality q_i near the topic's own: most topics are trashy, the
others nutritious. A user has an interest u_t in [-1, 1] in each topic, takes an item of a slate by
a choice model from `sharpness * u`, or none, and

    budget   <- budget - length + bonus * length * q      of the item that was taken
    budget   <- budget - idle                             where none was
    u_t      <- u_t +- drift (1 - |u_t|) |u_t|            up with probability (u_t + 1) / 2

of the topic of the item taken. The reward is the time spent, `length`; the user leaves when the
budget is spent. So nutritious items keep users, and trashy ones do not. After the simulation of
SlateQ (Ie et al., 2019, arXiv 1905.12767), where the numbers are from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.ranges import above, at_least, check
from rec_jax.simulate.environments.base import Array, Outcome
from rec_jax.simulate.environments.choices import cascade, multinomial


@dataclass(frozen=True)
class Config:
    """Settings of the environment.

    items: V, how many there are.
    topics: each item belongs to one of so many.
    trashy: topics with a quality from -3 to 0; that of the others is from 0 to 3.
    slate: items that are shown at once.
    horizon: most slates that a user sees.
    seed: of the catalogue.
    choice: multinomial logit, or a cascade from the first item on.
    sharpness: factor from interest to liking.
    nothing: the liking of taking none.
    patience: of a cascade, probability of looking at the next item.
    budget: time that a user has.
    length: time that an item takes, which is the reward.
    bonus: share of that time, for each point of quality, that the user gains.
    idle: time that a slate takes of which nothing is taken.
    drift: how far the interest in a topic moves when an item of it is taken.
    """

    kind: str = "interest"
    items: int = 1000
    topics: int = 20
    trashy: int = 14
    slate: int = 3
    horizon: int = 100
    seed: int = 0
    choice: Literal["multinomial", "cascade"] = "multinomial"
    sharpness: float = 2.0
    nothing: float = 0.0
    patience: float = 0.9
    budget: float = 200.0
    length: float = 4.0
    bonus: float = 0.265
    idle: float = 0.5
    drift: float = 0.3

    def __post_init__(self) -> None:
        check(self, "environment.", items=at_least(1), topics=at_least(1), trashy=at_least(0),
              slate=at_least(1), horizon=at_least(1), seed=at_least(0), sharpness=at_least(0, 100),
              nothing=at_least(-100, 100), patience=at_least(0, 1), budget=above(0, 1e6),
              length=above(0, 1e6), bonus=at_least(0, 100), idle=above(0, 1e6),
              drift=at_least(0, 1))
        if self.trashy > self.topics:
            raise InputError(f"environment.trashy is {self.trashy}, of environment.topics = "
                             f"{self.topics}; expected at most so many")
        if self.slate > self.items:
            raise InputError(f"environment.slate is {self.slate}, of environment.items = "
                             f"{self.items}; expected at most so many")

    def open(self) -> Interest:
        """The environment, with its catalogue drawn."""
        keys = jax.random.split(jax.random.key(self.seed, impl="threefry2x32"), 3)
        worse = jnp.arange(self.topics) < self.trashy
        mean = jax.random.uniform(keys[0], (self.topics,), minval=0.0, maxval=3.0)
        topic = jax.random.randint(keys[1], (self.items,), 0, self.topics)
        quality = jnp.where(worse, -mean, mean)[topic]
        return Interest(self, topic, quality + 0.1 * jax.random.normal(keys[2], (self.items,)))


class User(NamedTuple):
    """seen: int32; interests: f32 `[T]`; budget: f32; left: int32, slates until the horizon."""

    seen: Array
    interests: Array
    budget: Array
    left: Array


class Chance(NamedTuple):
    """Numbers even in [0, 1): choice f32 `[2, K]`, drift f32 `[]`."""

    choice: Array
    drift: Array


@dataclass(frozen=True)
class Interest:
    """The environment. topic: int32 `[V]`; quality: f32 `[V]`."""

    config: Config
    topic: Array
    quality: Array

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.items

    @property
    def slate(self) -> int:
        """Items that are shown at once."""
        return self.config.slate

    @property
    def horizon(self) -> int:
        """Most slates that a user sees."""
        return self.config.horizon

    def reset(self, key: Array) -> User:
        """A user with any interests, who came by an item that is as likely as it is liked."""
        first, second = jax.random.split(key)
        interests = jax.random.uniform(first, (self.config.topics,), minval=-1.0, maxval=1.0)
        seen = jax.random.categorical(second, self.config.sharpness * interests[self.topic])
        return User(seen.astype(jnp.int32), interests, jnp.float32(self.config.budget),
                    jnp.int32(self.horizon))

    def draw(self, key: Array) -> Chance:
        """The chance of one step."""
        first, second = jax.random.split(key)
        return Chance(jax.random.uniform(first, (2, self.slate)), jax.random.uniform(second))

    def apply(self, state: User, slate: Array, chance: Chance) -> tuple[User, Outcome]:
        """The user takes an item of the slate, or none."""
        config = self.config
        liking = config.sharpness * state.interests[self.topic[slate]]
        if config.choice == "cascade":
            place = cascade(liking, config.nothing, config.patience, chance.choice)
        else:
            place = multinomial(liking, config.nothing, chance.choice[0, 0])
        took = place >= 0
        item = slate[jnp.maximum(place, 0)]
        topic = self.topic[item]
        interest = state.interests[topic]
        change = config.drift * (1 - jnp.abs(interest)) * jnp.abs(interest)
        moved = interest + jnp.where(chance.drift < (interest + 1) / 2, change, -change)
        spent = jnp.where(took, config.length * (1 - config.bonus * self.quality[item]),
                          config.idle)
        budget, left = state.budget - spent, state.left - 1
        interests = state.interests.at[topic].set(jnp.where(took, moved, interest))
        user = User(jnp.where(took, item, state.seen), interests, budget, left)
        return user, Outcome(jnp.where(took, item, -1),
                             jnp.where(took, jnp.float32(config.length), 0.0),
                             (budget <= 0) | (left <= 0))

    def tell(self, state: User) -> dict[str, Array]:
        """Of the item taken last, and the user's interest in its topic; and the budget."""
        topic = self.topic[state.seen]
        return {"topic": topic, "quality": self.quality[state.seen],
                "interest": state.interests[topic], "budget": state.budget}
