"""The users in plain Python, whose speed is beside ours and with whom peers play, are the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rec_jax.simulate.environments import choc_kale, interest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "plain_users.py"
SPEC = importlib.util.spec_from_file_location("plain_users", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
plain_users = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plain_users)
ITEMS = 20


@pytest.mark.parametrize("name", ["choc_kale", "interest"])
def test_they_do_what_the_environment_does(name: str) -> None:
    config: Any = (choc_kale.Config(items=ITEMS, horizon=40, sensitivity=0.4) if name == "choc_kale"
                   else interest.Config(items=ITEMS, topics=4, trashy=3, budget=60.0, horizon=40,
                                        nothing=1.0))
    world = config.open()
    user = world.reset(jax.random.key(3))
    if name == "choc_kale":
        plain = plain_users.PlainChocKale(config, np.asarray(world.chocolate), 0)
        plain.reset()
        plain.exposure = float(user.exposure)
    else:
        plain = plain_users.PlainInterest(config, np.asarray(world.topic),
                                          np.asarray(world.quality), 0)
        plain.reset()
        plain.interests = np.asarray(user.interests, np.float64).tolist()
    apply, draw = jax.jit(world.apply), jax.jit(world.draw)
    random, earned = np.random.default_rng(0), set()
    for turn in range(config.horizon):
        slate = random.permutation(ITEMS)[:world.slate]
        chance = draw(jax.random.key(turn))
        user, outcome = apply(user, slate, chance)
        if name == "choc_kale":
            reward, done = plain.apply(int(slate[0]), float(chance.engagement),
                                       float(chance.innovation))
        else:
            reward, done = plain.apply(slate.tolist(), float(chance.choice[0, 0]),
                                       float(chance.drift))
        assert reward == pytest.approx(float(outcome.reward), rel=1e-4)
        assert done == bool(outcome.done)
        earned.add(round(reward, 3))
        if done:
            break
    assert turn > 8 and len(earned) > 1


def test_a_new_user_starts_where_those_of_the_environment_do() -> None:
    plain = plain_users.PlainChocKale(choc_kale.Config(), np.linspace(0, 1, 1000), 1)
    begin = []
    for _ in range(2000):
        plain.reset()
        begin.append(plain.exposure)
    widest = 0.5 / 0.3
    assert max(map(abs, begin)) <= widest and np.std(begin) == pytest.approx(
        widest / 3 ** 0.5, rel=0.05)
    assert plain.left == 60
    assert plain.step([0])[1] is False and plain.left == 59
