"""Sessions learned from a log against plain numpy: what is likely, what is taken, who leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import config
from rec_jax.errors import InputError
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.simulate.agent import build_agent
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.environments import session
from rec_jax.simulate.rollout import play

USERS, TURNS, SLATE = 5, 16, 4


@pytest.fixture(scope="module")
def environment(tiny_run: Path) -> session.Session:
    return session.Config(run=str(tiny_run), slate=SLATE, horizon=TURNS, nothing=-4.0,
                          impatience=0.05).open()


@pytest.fixture(scope="module")
def react(environment: session.Session) -> Any:
    """One compiled step of several users, by their chance."""
    return jax.jit(jax.vmap(environment.apply))


@pytest.fixture(scope="module")
def log_softmax(environment: session.Session) -> Any:
    """A function of a history: log p of all items, f64 `[V]`."""
    served, length = environment.served, environment.served.reading.length
    rows = np.asarray(served.rows, np.float64)[:environment.num_items]
    query = jax.jit(lambda items, inputs: encode(
        served.encoder, served.params, served.rows, items, inputs))

    def found(history: list[int]) -> np.ndarray:
        recent = history[-length:]
        items = np.pad(recent, (0, length - len(recent)))[None]
        inputs = Inputs((np.arange(length) < len(recent)).astype(np.int32)[None],
                        np.arange(length)[None])
        scores = rows @ np.asarray(query(items, inputs), np.float64)[0, len(recent) - 1]
        return np.asarray(scores - np.logaddexp.reduce(scores))

    return found


def test_users_do_what_a_loop_in_numpy_does(environment: session.Session, react: Any,
                                            log_softmax: Any) -> None:
    """Histories grow beyond what the model reads; some slates have what is likely."""
    random = np.random.default_rng(0)
    users = jax.vmap(environment.reset)(jax.random.split(jax.random.key(3), USERS))
    histories = [[int(seen)] for seen in np.asarray(users.seen)]
    begins = {int(items[0]) for items in np.split(
        np.asarray(environment.served.dataset.items),
        np.asarray(environment.served.dataset.offsets)[1:-1])}
    assert {history[0] for history in histories} <= begins
    lengths = np.diff(np.asarray(environment.served.dataset.offsets))
    took = left = 0
    for turn in range(TURNS):
        slates = random.integers(0, environment.num_items, (USERS, SLATE))
        logs = [log_softmax(history) for history in histories]
        slates[:, 1] = [int(np.argmax(each)) for each in logs]
        chance = random.random((2, USERS)).astype(np.float32)
        users, outcome = react(users, jnp.asarray(slates, jnp.int32), session.Chance(*chance))
        for user in range(USERS):
            weights = np.exp(np.append(logs[user][slates[user]], -4.0))
            place = int(np.searchsorted(np.cumsum(weights / weights.sum()), chance[0, user]))
            item = -1 if place >= SLATE else int(slates[user, place])
            leaves = 0.05
            if item >= 0:
                histories[user].append(item)
                count = len(histories[user])
                leaves = (lengths == count).sum() / max((lengths >= count).sum(), 1)
                leaves = 1.0 if count > lengths.max() else leaves
                took += 1
            assert int(outcome.item[user]) == item, (turn, user)
            assert float(outcome.reward[user]) == (item >= 0)
            assert bool(outcome.done[user]) == (chance[1, user] < leaves or turn == TURNS - 1)
            assert int(users.seen[user]) == histories[user][-1]
            left += chance[1, user] < leaves
    assert 20 < took < USERS * TURNS and left > 0
    assert max(map(len, histories)) > environment.served.reading.length


def test_an_item_may_stand_for_leaving(environment: session.Session, tiny_run: Path,
                                       log_softmax: Any) -> None:
    """It has its probability, the others share the rest, and nobody takes it."""
    end = 2
    name = environment.served.dataset.item_ids()[end]
    leaving = session.Config(run=str(tiny_run), slate=2, leave=name).open()
    user = leaving.reset(jax.random.key(0))
    log_p, log_end = jax.jit(leaving.log_probabilities)(user, jnp.asarray([end, 7]))
    wanted = log_softmax([int(user.seen)])
    np.testing.assert_allclose(log_end, wanted[end], rtol=1e-4)
    np.testing.assert_allclose(log_p[1], wanted[7] - np.log1p(-np.exp(wanted[end])), rtol=1e-4)
    assert log_p[0] == -jnp.inf
    with pytest.raises(InputError, match="'nowhere', which is no item of"):
        session.Config(run=str(tiny_run), leave="nowhere").open()


@pytest.mark.slow
def test_users_are_played_to_their_end_and_likely_items_keep_them(
        environment: session.Session) -> None:
    likely = jnp.arange(SLATE)  # the most popular items

    def show(rare: bool) -> Any:
        items = likely + (environment.num_items - SLATE if rare else 0)
        return jnp.mean(play(environment, lambda histories, place, seed: jnp.broadcast_to(
            items, (histories.shape[0], SLATE)), jax.random.key(1), 32).returns)

    popular, rare = jax.jit(lambda: (show(False), show(True)))()
    assert popular > rare > 0


@pytest.mark.slow
def test_an_agent_plays_and_learns_in_it_on_any_mesh(tiny_run: Path) -> None:
    """The same users do the same on one device and on several."""
    earned: list[list[float]] = []
    for data, items in ((1, 1), (2, 2)):
        agent = build_agent(config.build(AgentConfig, {
            "environment": {"kind": "session", "run": str(tiny_run), "slate": 2, "horizon": 8},
            "acting": {"episodes": 32}, "table": {"dim": 8}, "train": {"steps": 3},
            "objective": {"kind": "policy_gradient", "discount": 0.9},
            "mesh": {"data": data, "items": items}}))
        state = agent.first()
        before = np.asarray(state.training.items.rows[:agent.environment.num_items])
        earned.append([])
        for _ in range(3):
            state, metrics = agent.step(state)
            earned[-1].append(float(metrics.earned))
        after = np.asarray(state.training.items.rows[:agent.environment.num_items])
        assert np.isfinite(after).all() and np.abs(after - before).max() > 0
    assert earned[0] == earned[1] and min(earned[0]) > 0


@pytest.mark.parametrize(("settings", "message"), [
    ({"run": ""}, "environment.run is empty"), ({"slate": 10_000}, "environment.slate is 10000"),
    ({"begin": 500}, "environment.begin = 500"), ({"reward": "money"}, "no values/money.npy")])
def test_what_cannot_be_is_one_line(tiny_run: Path, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.Config(**{"run": str(tiny_run), **settings}).open()


@pytest.mark.parametrize(("settings", "message"), [
    ({"impatience": 2.0}, "impatience"), ({"slate": 0}, "slate"), ({"begin": 0}, "begin")])
def test_settings_that_make_no_sense_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.Config(**settings)
