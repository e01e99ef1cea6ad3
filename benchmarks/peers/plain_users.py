"""The simulated users of `rec_jax.simulate.environments` in plain Python, an object each.

This is how RecSim writes its users. Throughput is counted beside them, and programs that know no
JAX play with them. A config is any object with the fields of the environment's own; the file knows
Python and numpy alone, so that it runs in the environment of any peer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-x))


class PlainChocKale:
    """A user of `choc_kale`. chocolate: share of each item."""

    def __init__(self, config: Any, chocolate: np.ndarray, seed: int) -> None:
        self.config, self.chocolate = config, chocolate.tolist()
        self.random = np.random.default_rng(seed)
        self.exposure, self.left = 0.0, 0

    def reset(self) -> None:
        """A new user."""
        self.exposure = (self.random.random() - 0.5) / (1 - self.config.memory)
        self.left = self.config.horizon

    def step(self, slate: Sequence[int]) -> tuple[float, bool]:
        """Reward, and whether the user leaves."""
        return self.apply(slate[0], *self.random.standard_normal(2).tolist())

    def apply(self, item: int, engagement: float, innovation: float) -> tuple[float, bool]:
        """The same of given chance, two numbers of a standard normal distribution."""
        config, share = self.config, self.chocolate[item]
        satisfaction = sigmoid(config.sensitivity * self.exposure)
        mean = share * config.choc_mean + (1 - share) * config.kale_mean
        deviation = share * config.choc_deviation + (1 - share) * config.kale_deviation
        reward = math.exp(satisfaction * mean + deviation * engagement)
        self.exposure = (config.memory * self.exposure + 1 - 2 * share
                         + config.innovation * innovation)
        self.left -= 1
        return reward, self.left == 0


class PlainInterest:
    """A user of `interest` who chooses by a multinomial logit. topic, quality: of each item."""

    def __init__(self, config: Any, topic: np.ndarray, quality: np.ndarray, seed: int) -> None:
        self.config, self.topic, self.quality = config, topic.tolist(), quality.tolist()
        self.random = np.random.default_rng(seed)
        self.interests: list[float] = []
        self.budget, self.left = 0.0, 0

    def reset(self) -> None:
        """A new user."""
        self.interests = self.random.uniform(-1, 1, self.config.topics).tolist()
        self.budget, self.left = self.config.budget, self.config.horizon

    def step(self, slate: Sequence[int]) -> tuple[float, bool]:
        """Reward, and whether the user leaves."""
        return self.apply(slate, *self.random.random(2).tolist())

    def apply(self, slate: Sequence[int], choice: float, drift: float) -> tuple[float, bool]:
        """The same of given chance, two numbers even in [0, 1)."""
        config = self.config
        weights = [math.exp(config.sharpness * self.interests[self.topic[item]]) for item in slate]
        left_over = choice * (sum(weights) + math.exp(config.nothing))
        self.left -= 1
        for item, weight in zip(slate, weights, strict=True):
            left_over -= weight
            if left_over < 0:
                return self.take(item, drift)
        self.budget -= config.idle
        return 0.0, self.budget <= 0 or self.left == 0

    def take(self, item: int, drift: float) -> tuple[float, bool]:
        """Reward, and whether the user leaves, where this one is taken."""
        config, topic = self.config, self.topic[item]
        value = self.interests[topic]
        change = config.drift * (1 - abs(value)) * abs(value)
        self.interests[topic] += change if drift < (value + 1) / 2 else -change
        self.budget -= config.length - config.bonus * config.length * self.quality[item]
        return config.length, self.budget <= 0 or self.left == 0
