"""Logs that are made here: random feedback with all columns, and a known world with its truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec_jax.simulate.feedback import Feedback, from_actions

Array = np.ndarray


class Drawn(NamedTuple):
    """All actions of a random log: policies and reward model `[n, A]`, the rest `[n]`."""

    reward: Array
    action: Array
    propensity: Array
    behaviour: Array
    policy: Array
    expected: Array

    def feedback(self, **more: Array) -> Feedback:
        return from_actions(self.reward, self.action, self.propensity, self.policy,
                            expected=self.expected, **more)


def draw(seed: int, rows: int = 57, actions: int = 6) -> Drawn:
    """Random policies (the evaluated one leaves out some actions) and real-valued rewards."""
    random = np.random.default_rng(seed)
    behaviour = random.dirichlet(np.ones(actions), rows) * 0.9 + 0.1 / actions
    policy = random.dirichlet(np.full(actions, 0.3), rows)
    policy[random.random(policy.shape) < 0.2] = 0
    policy[:, 0] += 0.01
    policy /= policy.sum(axis=1, keepdims=True)
    action = np.array([random.choice(actions, p=row / row.sum()) for row in behaviour])
    return Drawn(random.normal(1, 2, rows), action, behaviour[np.arange(rows), action], behaviour,
                 policy, random.normal(1, 1, (rows, actions)))


class World:
    """Four contexts, five actions, clicks: the true value of the evaluated policy is known."""

    behaviour = np.array([[.3, .2, .2, .2, .1], [.1, .3, .2, .2, .2],
                          [.2, .2, .2, .2, .2], [.2, .1, .4, .1, .2]])
    policy = np.array([[.1, .2, .1, .3, .3], [.2, .2, .3, .2, .1],
                       [.3, .3, .2, .1, .1], [.1, .2, .2, .2, .3]])
    chance = np.array([[.1, .3, .5, .6, .2], [.4, .2, .7, .3, .5],
                       [.6, .5, .2, .3, .3], [.2, .4, .3, .5, .8]])
    truth = float(np.mean(np.sum(policy * chance, axis=1)))

    @classmethod
    def log(cls, random: np.random.Generator, rows: int) -> Feedback:
        """`rows` independent ones, with a reward model that is wrong by a half."""
        context = random.integers(0, 4, rows)
        steps = np.cumsum(cls.behaviour, axis=1)[context]
        action = np.minimum(np.sum(random.random(rows)[:, None] > steps, axis=1), 4)
        reward = (random.random(rows) < cls.chance[context, action]).astype(float)
        model = cls.chance * 0.5
        return from_actions(reward, action, cls.behaviour[context, action], cls.policy[context],
                            expected=model[context])
