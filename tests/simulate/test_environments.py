"""Simulated users against plain numpy, one user and one slate after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.simulate.environments import choc_kale, interest
from rec_jax.simulate.environments.base import Environment, step
from rec_jax.simulate.environments.choices import cascade, multinomial

USERS = 7


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


class ChocKale:
    """Numpy, f64, of one user."""

    def __init__(self, environment: choc_kale.ChocKale, user: Any) -> None:
        self.config = environment.config
        self.chocolate = np.asarray(environment.chocolate, np.float64)
        self.exposure, self.left = float(user.exposure), int(user.left)

    def step(self, slate: np.ndarray, chance: Any) -> tuple[int, float, bool]:
        config, share = self.config, self.chocolate[slate[0]]
        mean = share * config.choc_mean + (1 - share) * config.kale_mean
        noise = share * config.choc_deviation + (1 - share) * config.kale_deviation
        reward = np.exp(sigmoid(config.sensitivity * self.exposure) * mean
                        + noise * float(chance.engagement))
        self.exposure = (config.memory * self.exposure - 2 * (share - 0.5)
                         + config.innovation * float(chance.innovation))
        self.left -= 1
        return int(slate[0]), float(reward), self.left == 0


class Interest:
    """Numpy, f64, of one user."""

    def __init__(self, environment: interest.Interest, user: Any) -> None:
        self.config = environment.config
        self.topic, self.quality = np.asarray(environment.topic), np.asarray(environment.quality)
        self.interests = np.asarray(user.interests, np.float64).copy()
        self.budget, self.left = float(user.budget), int(user.left)

    def take(self, liking: np.ndarray, chance: Any) -> int:
        config, draws = self.config, np.asarray(chance.choice, np.float64)
        if config.choice == "cascade":
            for place, value in enumerate(liking):
                if draws[0, place] < sigmoid(value - config.nothing):
                    return place
                if draws[1, place] >= config.patience:
                    break
            return -1
        weights = np.exp(np.append(liking, config.nothing))
        total = 0.0
        for place, weight in enumerate(weights / weights.sum()):
            total += weight
            if draws[0, 0] < total:
                return place if place < len(liking) else -1
        return -1

    def step(self, slate: np.ndarray, chance: Any) -> tuple[int, float, bool]:
        config = self.config
        place = self.take(config.sharpness * self.interests[self.topic[slate]], chance)
        self.left -= 1
        if place < 0:
            self.budget -= config.idle
            return -1, 0.0, self.budget <= 0 or self.left == 0
        item = int(slate[place])
        topic = self.topic[item]
        value = self.interests[topic]
        change = config.drift * (1 - abs(value)) * abs(value)
        self.interests[topic] += change if float(chance.drift) < (value + 1) / 2 else -change
        self.budget -= config.length - config.bonus * config.length * float(self.quality[item])
        return item, config.length, self.budget <= 0 or self.left == 0


CASES = {
    "choc_kale": (choc_kale.Config(items=50, horizon=9, sensitivity=0.4), ChocKale),
    "multinomial": (interest.Config(items=50, topics=6, trashy=4, slate=4, horizon=30, budget=40,
                                    sharpness=3.0, nothing=0.5), Interest),
    "cascade": (interest.Config(items=50, topics=6, trashy=3, slate=5, horizon=30, budget=40,
                                choice="cascade", patience=0.6, nothing=1.0), Interest),
}


@pytest.mark.parametrize("name", CASES)
def test_many_users_at_once_do_what_each_does_alone_in_numpy(name: str) -> None:
    config, plain = CASES[name]
    environment: Environment = config.open()  # type: ignore[attr-defined]
    users = jax.vmap(environment.reset)(jax.random.split(jax.random.key(1), USERS))
    alone = [plain(environment, jax.tree.map(lambda x, i=i: x[i], users)) for i in range(USERS)]
    assert ((np.asarray(users.seen) >= 0) & (np.asarray(users.seen) < 50)).all()
    one_step = jax.jit(jax.vmap(environment.apply))
    done, taken = np.zeros(USERS, bool), set()
    seen = np.asarray(users.seen)
    for turn in range(environment.horizon):
        keys = jax.random.split(jax.random.key(turn), USERS)
        slates = jax.vmap(lambda key: jax.random.permutation(key, 50)[:environment.slate])(keys)
        chance = jax.vmap(environment.draw)(keys)
        users, outcome = one_step(users, slates, chance)
        for i in range(USERS):
            if done[i]:
                continue
            item, reward, left = alone[i].step(
                np.asarray(slates[i]), jax.tree.map(lambda x, i=i: x[i], chance))
            assert item == int(outcome.item[i])
            np.testing.assert_allclose(float(outcome.reward[i]), reward, rtol=1e-5)
            assert left == bool(outcome.done[i])
            assert int(users.seen[i]) == (item if item >= 0 else seen[i])
            taken.add(item >= 0)
            done[i] = left
        seen = np.asarray(users.seen)
    assert done.all()
    assert name == "choc_kale" or taken == {True, False}


def test_a_step_is_its_chance_applied() -> None:
    environment = CASES["cascade"][0].open()  # type: ignore[attr-defined]
    user, key = environment.reset(jax.random.key(0)), jax.random.key(5)
    slate = jnp.array([3, 1, 4, 9, 2])
    one, other = (step(environment, user, slate, key),
                  environment.apply(user, slate, environment.draw(key)))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_choices_come_as_often_as_their_models_say() -> None:
    liking, many = jnp.array([0.5, -1.0, 1.2]), 40_000
    draws = jax.random.uniform(jax.random.key(2), (many, 2, 3))
    found = jax.vmap(lambda d: multinomial(liking, 0.3, d[0, 0]))(draws)
    weights = np.exp([0.5, -1.0, 1.2, 0.3])
    shares = [np.mean(np.asarray(found) == place) for place in (0, 1, 2, -1)]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    found = jax.vmap(lambda d: cascade(liking, 0.3, 0.7, d))(draws)
    takes = 1 / (1 + np.exp(-(np.asarray(liking) - 0.3)))
    reach = np.cumprod(np.append(1.0, 0.7 * (1 - takes)))
    expected = np.append(takes * reach[:3], 1 - (takes * reach[:3]).sum())
    shares = [np.mean(np.asarray(found) == place) for place in (0, 1, 2, -1)]
    np.testing.assert_allclose(shares, expected, atol=0.01)


def test_chocolate_pays_at_once_and_kale_in_the_end() -> None:
    environment = choc_kale.Config(items=100).open()
    order = np.argsort(np.asarray(environment.chocolate))

    def earned(item: int) -> np.ndarray:
        def turn(user: Any, key: jax.Array) -> Any:
            user, outcome = step(environment, user, jnp.array([item]), key)
            return user, outcome.reward

        user = environment.reset(jax.random.key(0))
        return np.asarray(jax.lax.scan(turn, user, jax.random.split(jax.random.key(1), 60))[1])

    kale, chocolate = earned(int(order[0])), earned(int(order[-1]))
    assert chocolate[0] > 1.2 * kale[0]
    assert kale.sum() > 3 * chocolate.sum()


@pytest.mark.parametrize(("config", "settings", "message"), [
    (choc_kale.Config, {"memory": 1.0}, "memory"), (choc_kale.Config, {"items": 1}, "items"),
    (interest.Config, {"trashy": 21}, "trashy"), (interest.Config, {"slate": 2000}, "slate"),
    (interest.Config, {"choice": "any"}, "choice"), (interest.Config, {"budget": 0.0}, "budget")])
def test_settings_that_make_no_sense_are_one_line(config: Any, settings: Any,
                                                  message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**settings)
