"""Chocolate and kale: what pleases at once wears a user out (RecSim's long-term satisfaction).

Item i has a share of chocolate c_i, even between 0 and 1. A user has an exposure x to kale, and

    satisfaction = sigmoid(sensitivity * x)
    log reward   = satisfaction * (c choc_mean + (1 - c) kale_mean) + (c choc_deviation
                   + (1 - c) kale_deviation) * noise
    next x       = memory * x + 1 - 2 c + innovation * noise

Whoever looks at the next reward alone shows chocolate, and earns less and less. Ie et al., 2019
(arXiv 1909.04847), and the `long_term_satisfaction` environment of its code, whose names these
are; there a user is hardly sensitive (.01), and chocolate is best for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.ranges import above, at_least, below, check
from rec_jax.simulate.environments.base import Array, Outcome


@dataclass(frozen=True)
class Config:
    """Settings of the environment.

    items: V, how many there are.
    horizon: items that a user takes.
    seed: of the catalogue.
    memory: share of the exposure to kale that stays from turn to turn.
    sensitivity: factor from exposure to satisfaction, within the sigmoid.
    innovation: deviation of the noise on the exposure.
    choc_mean, choc_deviation: of the log reward of pure chocolate at full satisfaction.
    kale_mean, kale_deviation: of that of pure kale.
    """

    kind: str = "choc_kale"
    items: int = 1000
    horizon: int = 60
    seed: int = 0
    memory: float = 0.7
    sensitivity: float = 0.5
    innovation: float = 0.05
    choc_mean: float = 5.0
    choc_deviation: float = 0.1
    kale_mean: float = 4.0
    kale_deviation: float = 0.1

    def __post_init__(self) -> None:
        check(self, "environment.", items=at_least(2), horizon=at_least(1), seed=at_least(0),
              memory=below(0, 1), sensitivity=above(0, 100), innovation=at_least(0, 100),
              choc_mean=at_least(-20, 20), choc_deviation=at_least(0, 10),
              kale_mean=at_least(-20, 20), kale_deviation=at_least(0, 10))

    def open(self) -> ChocKale:
        """The environment, with its catalogue drawn."""
        key = jax.random.key(self.seed, impl="threefry2x32")
        return ChocKale(self, jax.random.uniform(key, (self.items,)))


class User(NamedTuple):
    """seen: int32; exposure: f32, x; left: int32, items until the user leaves."""

    seen: Array
    exposure: Array
    left: Array


class Chance(NamedTuple):
    """Two numbers f32 `[]` of a standard normal distribution."""

    engagement: Array
    innovation: Array


@dataclass(frozen=True)
class ChocKale:
    """The environment. chocolate: f32 `[V]`, c."""

    config: Config
    chocolate: Array

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.items

    @property
    def slate(self) -> int:
        """One item is shown, and taken."""
        return 1

    @property
    def horizon(self) -> int:
        """Items that a user takes."""
        return self.config.horizon

    def reset(self, key: Array) -> User:
        """A user whose exposure is anywhere among those that last."""
        item, exposure = jax.random.split(key)
        widest = 1.0 / (1.0 - self.config.memory)
        return User(jax.random.randint(item, (), 0, self.num_items),
                    widest * jax.random.uniform(exposure, minval=-0.5, maxval=0.5),
                    jnp.int32(self.horizon))

    def draw(self, key: Array) -> Chance:
        """The chance of one step."""
        return Chance(*jax.random.normal(key, (2,)))

    def apply(self, state: User, slate: Array, chance: Chance) -> tuple[User, Outcome]:
        """The user takes the one item of the slate."""
        config, item = self.config, slate[0]
        share = self.chocolate[item]
        satisfaction = jax.nn.sigmoid(config.sensitivity * state.exposure)
        mean = share * config.choc_mean + (1 - share) * config.kale_mean
        deviation = share * config.choc_deviation + (1 - share) * config.kale_deviation
        reward = jnp.exp(satisfaction * mean + deviation * chance.engagement)
        exposure = (config.memory * state.exposure + 1 - 2 * share
                    + config.innovation * chance.innovation)
        left = state.left - 1
        return User(item, exposure, left), Outcome(item, reward, left <= 0)

    def tell(self, state: User) -> dict[str, Array]:
        """The chocolate in what was taken, and the exposure after it."""
        return {"chocolate": self.chocolate[state.seen], "exposure": state.exposure}
