"""Targets, corrections and entropies are those of rlax, for the same numbers."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlax_numbers import CAP, DISCOUNT, FILE, HUBER, ITEMS, PLACES, STEPS, by_rlax, inputs

from rec_jax.kernels import softmax_entropy, softmax_loss
from rec_jax.objectives.base import Keys, Search, Task
from rec_jax.objectives.policy_gradient import Config as PolicyGradient
from rec_jax.objectives.q_learning import Config as QLearning

ROWS = jnp.eye(ITEMS)  # so that queries are scores


class Items:
    """The catalogue as a loss asks it, by the dense oracle."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def softmax(self, queries: Any, targets: Any, **_: Any) -> Any:
        return softmax_loss(queries, ROWS, targets, backend="reference")

    def entropy(self, queries: Any, targets: Any, **_: Any) -> Any:
        return softmax_entropy(queries, ROWS, targets, backend="reference")

    def rows(self, name: str) -> Any:
        assert name == "labels"
        return ROWS[self.targets]


def search_of(queries: Any, average: Search | None = None) -> Search:
    """As a step makes it, of one micro-batch."""
    return Search(
        ITEMS, lambda: queries[None], lambda queries, k, _: jax.lax.top_k(queries, k),
        lambda queries, ids: jnp.take_along_axis(queries, ids[:, None], 1)[:, 0],
        lambda name, queries: queries, average)


@pytest.fixture(scope="module")
def known() -> Any:
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def ours() -> Any:
    """The same numbers by the objectives, from one program."""
    given = inputs()
    scores, late = (jnp.asarray(given[name], jnp.float32) for name in ("scores", "late"))
    logs = jax.nn.log_softmax(jnp.asarray(given["behaviour"], jnp.float32))
    chance = jnp.exp(jnp.take_along_axis(logs, given["actions"][:, None], 1)[:, 0])
    batch = {"targets": jnp.asarray(given["actions"], jnp.int32),
             "segments": jnp.ones(PLACES, jnp.int32),
             "positions": jnp.arange(PLACES), "values/reward": jnp.asarray(
                 given["rewards"], jnp.float32), "values/propensity": chance}
    batch = {name: value[None, None] for name, value in batch.items()}
    keys, items = Keys(jnp.zeros(1), jnp.zeros(())), Items(batch["targets"].ravel())

    def first(task: Task) -> Task:
        return jax.tree.map(lambda x: x[0], task)

    @jax.jit
    def all_of() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, config in (
                ("policy_gradient", PolicyGradient(discount=DISCOUNT)),
                ("off_policy", PolicyGradient(discount=DISCOUNT, behaviour="propensity", cap=CAP)),
                ("entropy", PolicyGradient(discount=DISCOUNT, entropy=1.0))):
            task = config.plan(batch, keys, ITEMS)
            found[name] = jnp.sum(config.loss(scores, first(task), items)) / task.divisor[0]
            if name == "policy_gradient":
                found["returns"] = task.values["advantage"][0]
            if name == "off_policy":
                loss = softmax_loss(scores, ROWS, items.targets, backend="reference")[0]
                open_ended = PolicyGradient(behaviour="propensity", cap=None)
                found["ratios"] = open_ended.correction(loss, task.values["log_behaviour"][0])
        found["entropy"] -= found["policy_gradient"]
        chosen = jnp.take_along_axis(scores, items.targets[:, None], 1)[:, 0]
        late_alone = search_of(scores, search_of(late))
        for name, config in (
                ("q_learning", QLearning(discount=DISCOUNT, double=False)),
                ("double_q_learning", QLearning(discount=DISCOUNT)),
                ("several_steps", QLearning(discount=DISCOUNT, double=False, steps=STEPS))):
            task = first(config.mine(config.plan(batch, keys, ITEMS), keys.step, late_alone))
            error = task.values["target"] - chosen
            found[name] = task.values["target"] if name == "several_steps" else error
            if name == "several_steps":
                found["square"] = config.loss(scores, task, items)
                found["huber"] = QLearning(huber=HUBER).loss(scores, task, items)
        return found

    return all_of()


@pytest.mark.parametrize("name", ["returns", "policy_gradient", "off_policy", "entropy", "ratios",
                                  "q_learning", "double_q_learning", "several_steps", "huber",
                                  "square"])
def test_it_is_what_rlax_computes(name: str, ours: Any, known: Any) -> None:
    np.testing.assert_allclose(ours[name], known[name], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # it warns of what it will do without one day
def test_what_was_written_down_is_what_rlax_says(known: Any) -> None:
    pytest.importorskip("rlax", reason=f"rlax is not installed; its numbers of {known['rlax']} "
                                       "were written down")
    for name, value in by_rlax().items():
        np.testing.assert_allclose(value, known[name], rtol=1e-6)
