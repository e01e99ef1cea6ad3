"""The diagnosis of a log: effective sample, the mean of the weights, support."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_logs import World

from rec_jax.simulate.feedback import Feedback, make_feedback
from rec_jax.simulate.support import diagnose, unsupported, warnings


def of_weights(*weights: float) -> Feedback:
    """Rows with these weights, of at most 100."""
    count = len(weights)
    return make_feedback(np.zeros(count), np.full(count, 0.01), np.array(weights) / 100)


def test_effective_sample_and_largest_weight() -> None:
    equal = diagnose(of_weights(*[1.0] * 10))
    assert equal.effective_sample == pytest.approx(10) and equal.largest_weight == 1
    assert equal.mean_weight == pytest.approx(1) and equal.largest_share == pytest.approx(0.1)
    one = diagnose(of_weights(10.0, *[0.0] * 9))
    assert one.effective_sample == pytest.approx(1) and one.never_taken == 0.9
    assert one.largest_share == 1
    mixed = diagnose(of_weights(1, 2, 3))
    assert mixed.effective_sample == pytest.approx(36 / 14) and mixed.mean_weight == 2


def test_true_propensities_pass_and_wrong_ones_are_told() -> None:
    random = np.random.default_rng(0)
    chances, wrong = [], []
    for _ in range(300):
        log = World.log(random, 500)
        chances.append(diagnose(log).mean_weight_p)
        wrong.append(diagnose(Feedback(**{**vars(log), "propensity": np.full(500, 0.15)})))
    shares = np.array(chances, float)
    assert 0.02 < np.mean(shares < 0.05) < 0.09 and 0.4 < shares.mean() < 0.6
    assert all("more than 1" in warnings(one)[0] for one in wrong)


def test_a_log_without_an_action_is_told() -> None:
    """The weights' mean is then the probability of the actions that the log can have."""
    random = np.random.default_rng(1)
    context = random.integers(0, 4, 4000)
    action = random.integers(0, 4, 4000)  # never the last one
    log = make_feedback(np.zeros(4000), np.full(4000, 0.25), World.policy[context, action])
    found = diagnose(log)
    assert found.mean_weight == pytest.approx(1 - World.policy[:, 4].mean(), abs=0.02)
    assert "less than 1" in warnings(found)[0]
    behaviour = np.tile([0.25, 0.25, 0.25, 0.25, 0.0], (4, 1))
    share, mass = unsupported(World.policy, behaviour)
    assert share == 0.2 and mass == pytest.approx(World.policy[:, 4].mean())
    assert unsupported(World.policy, World.behaviour) == (0, 0)


def test_warnings_say_what_is_wrong_and_nothing_otherwise() -> None:
    assert warnings(diagnose(World.log(np.random.default_rng(2), 2000))) == []
    assert warnings(diagnose(of_weights(*[1.0] * 200))) == []
    assert warnings(diagnose(of_weights(*[1 + 1e-7] * 200))) == []
    said = warnings(diagnose(of_weights(50.0, *[0.5] * 99)))
    assert any("effective sample" in line for line in said)
    assert any("one row has 50% of all weight" in line for line in said)
    assert warnings(diagnose(of_weights(0, 0))) == [
        "the evaluated policy never takes a logged action: the log says nothing about it"]
    assert warnings(diagnose(of_weights(*[2.0] * 200)))[0].startswith(
        "the weights' mean is 2, more than 1")
