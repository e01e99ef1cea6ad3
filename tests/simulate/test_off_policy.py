"""Estimators equal their definitions, written once more by loops over rows and actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated_logs import Drawn, World, draw

from rec_jax.errors import InputError
from rec_jax.simulate.feedback import from_actions, make_feedback
from rec_jax.simulate.off_policy import dros, estimators, ips, switch_dr

NAMES = ("ips", "snips", "dm", "dr", "sndr", "switch_dr", "dros")


def by_loops(log: Drawn, cap: float = math.inf, switch: float = 10.0,
             shrinkage: float = 100.0) -> dict[str, float]:
    """The definitions, row by row."""
    total = dict.fromkeys((*NAMES, "w", "wrq"), 0.0)
    count = len(log.reward)
    for i in range(count):
        a, r = int(log.action[i]), float(log.reward[i])
        raw = float(log.policy[i, a]) / float(log.behaviour[i, a])
        w, q = min(raw, cap), float(log.expected[i, a])
        mean = sum(float(log.policy[i, b]) * float(log.expected[i, b])
                   for b in range(log.policy.shape[1]))
        total["w"] += w
        total["ips"] += w * r
        total["wrq"] += w * (r - q)
        total["dm"] += mean
        total["dr"] += mean + w * (r - q)
        total["switch_dr"] += mean + (w * (r - q) if raw <= switch else 0)
        total["dros"] += mean + (shrinkage * w / (w * w + shrinkage)) * (r - q)
    found = {name: total[name] / count for name in NAMES}
    found["snips"] = total["ips"] / total["w"]
    found["sndr"] = total["dm"] / count + total["wrq"] / total["w"]
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cap", [None, 1.5])
def test_estimators_are_their_definitions(seed: int, cap: float | None) -> None:
    log = draw(seed, rows=20 + 13 * seed, actions=2 + seed)
    found = estimators(log.feedback(), cap=cap, switch=2.0, shrinkage=3.0)
    expected = by_loops(log, math.inf if cap is None else cap, 2.0, 3.0)
    assert tuple(found) == NAMES
    for name, part in found.items():
        np.testing.assert_allclose(part.value, expected[name], rtol=1e-9, atol=1e-9,
                                   err_msg=name)


def test_what_the_columns_allow_is_estimated() -> None:
    columns = [1.0, 0.0], [0.5, 0.5], [0.25, 0.75]
    assert list(estimators(make_feedback(*columns))) == ["ips", "snips"]
    assert list(estimators(make_feedback(*columns, expected_policy=[0.1, 0.3]))) == [
        "ips", "snips", "dm"]


def test_limits_of_the_shrunk_and_the_switched_estimator() -> None:
    feedback = draw(3).feedback()
    found = estimators(feedback)
    for limit, name in ((0.0, "dm"), (math.inf, "dr")):
        assert dros(feedback, limit).value == pytest.approx(found[name].value, abs=1e-12)
        assert switch_dr(feedback, limit if limit else -1.0).value == pytest.approx(
            found[name].value, abs=1e-12)
    assert dros(feedback, 1e12).value == pytest.approx(found["dr"].value, rel=1e-9)


def test_the_logging_policy_itself_earns_the_mean_reward() -> None:
    log = draw(5)
    same = log._replace(policy=log.behaviour).feedback()
    found = estimators(same)
    assert found["ips"].value == pytest.approx(float(np.mean(log.reward)), abs=1e-12)
    assert found["snips"].value == pytest.approx(float(np.mean(log.reward)), abs=1e-12)


def test_self_normalised_estimates_move_with_a_constant() -> None:
    log = draw(6)
    moved = log._replace(reward=log.reward + 7, expected=log.expected + 7).feedback()
    before, after = estimators(log.feedback()), estimators(moved)
    for name in ("snips", "sndr", "dm", "dr"):
        assert after[name].value == pytest.approx(before[name].value + 7, abs=1e-9)
    assert abs(after["ips"].value - before["ips"].value - 7) > 1e-3


def test_a_perfect_model_leaves_nothing_to_correct() -> None:
    log = draw(7)
    right = log._replace(reward=log.expected[np.arange(len(log.reward)), log.action]).feedback()
    found = estimators(right)
    for name in ("dr", "sndr", "switch_dr", "dros"):
        assert found[name].value == pytest.approx(found["dm"].value, abs=1e-12)


def test_estimates_are_right_in_the_mean_over_logs() -> None:
    random = np.random.default_rng(11)
    values = [{name: part.value for name, part in estimators(World.log(random, 200)).items()}
              for _ in range(500)]
    for name in ("ips", "snips", "dr", "sndr"):
        drawn = np.array([value[name] for value in values])
        error = drawn.std() / math.sqrt(len(drawn))
        assert abs(drawn.mean() - World.truth) < 4 * error + 1e-3, name
    assert abs(np.mean([value["dm"] for value in values]) - World.truth / 2) < 0.01
    # With a model, even a wrong one, the estimate varies less.
    assert np.std([value["dr"] for value in values]) < np.std([value["ips"] for value in values])


def test_a_distribution_for_each_position_is_looked_up() -> None:
    random = np.random.default_rng(2)
    policy = random.dirichlet(np.ones(4), (1, 3)).transpose(0, 2, 1)
    model = random.random((9, 4, 3))
    action, position = random.integers(0, 4, 9), random.integers(0, 3, 9)
    found = from_actions(np.ones(9), action, np.full(9, 0.25), policy, expected=model,
                         position=position)
    assert found.expected_logged is not None and found.expected_policy is not None
    for i in range(9):
        at = policy[0, :, position[i]]
        assert found.probability[i] == at[action[i]]
        assert found.expected_logged[i] == model[i, action[i], position[i]]
        np.testing.assert_allclose(found.expected_policy[i], at @ model[i, :, position[i]])


def test_no_weight_at_all_is_no_number() -> None:
    found = estimators(make_feedback([1, 0], [0.5, 0.5], [0, 0]))
    assert found["ips"].value == 0 and math.isnan(found["snips"].value)


def test_a_cap_can_only_lower_an_estimate_of_rewards_above_zero() -> None:
    feedback = World.log(np.random.default_rng(1), 300)
    assert ips(feedback, 1.2).value < ips(feedback, 2.0).value < ips(feedback).value


def test_groups_are_numbered_without_gaps() -> None:
    found = make_feedback(np.ones(5), np.ones(5), np.ones(5), group=["d", "a", "c", "a", "d"])
    assert found.group is not None and found.group.tolist() == [2, 0, 1, 0, 2]
    part = found.take(np.array([True, True, False, True, True]))
    assert part.group is not None and part.group.tolist() == [1, 0, 0, 1]


GOOD = {"reward": [1.0, 0.0, 1.0], "propensity": [0.5, 0.1, 1.0], "probability": [0.0, 1.0, 0.3]}


@pytest.mark.parametrize(("column", "value", "said"), [
    ("propensity", 0.0, "row 1: propensity is 0; expected more than 0 and at most 1"),
    ("propensity", 1.01, "row 1: propensity is 1.01; expected more than 0"),
    ("propensity", -0.1, "row 1: propensity is -0.1; expected more than 0"),
    ("propensity", math.nan, "row 1: propensity is nan; expected a finite number"),
    ("probability", -1e-9, "row 1: probability is -1e-09; expected 0 to 1"),
    ("probability", 1.5, "row 1: probability is 1.5; expected 0 to 1"),
    ("reward", math.inf, "row 1: reward is inf; expected a finite number"),
    ("reward", math.nan, "row 1: reward is nan; expected a finite number"),
])
def test_values_that_cannot_be_are_refused(column: str, value: float, said: str) -> None:
    make_feedback(**GOOD)
    bad = {name: list(values) for name, values in GOOD.items()}
    bad[column][1] = value
    with pytest.raises(InputError) as caught:
        make_feedback(**bad)
    assert str(caught.value).startswith(said)


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"probability has shape \[2\]"):
        make_feedback([1, 0, 1], [0.5, 0.5, 0.5], [0.5, 0.5])
    with pytest.raises(InputError, match="the log has no rows"):
        make_feedback([], [], [])
    with pytest.raises(InputError, match="expected_logged is given without expected_policy"):
        make_feedback(**GOOD, expected_logged=[0, 0, 0])
    with pytest.raises(InputError, match=r"row 0: position is 1\.5; expected a whole number"):
        make_feedback(**GOOD, position=[1.5, 2, 3])
    with pytest.raises(InputError, match=r"row 1: the policy's probabilities sum to 0\.9;"):
        from_actions([1, 0], [0, 1], [0.5, 0.5], [[0.5, 0.5], [0.4, 0.5]])
    with pytest.raises(InputError, match="whole numbers from 0 to 1"):
        from_actions([1, 0], [0, 2], [0.5, 0.5], [[0.5, 0.5]])
