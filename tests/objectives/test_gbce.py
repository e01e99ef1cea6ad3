"""Generalised binary cross-entropy: a power on the label's probability, none at t = 0."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from cases import Case, check, drawn_ids, losses, make_case

from rec_jax.errors import InputError
from rec_jax.objectives import bce
from rec_jax.objectives.gbce import Config

KEY = jax.random.key(2)


@pytest.mark.parametrize(("t", "shared"), [(0.75, False), (1.0, False), (0.5, True)])
def test_the_loss_is_its_definition(t: float, shared: bool) -> None:
    count = 4
    case, config = make_case(int(8 * t)), Config(count=count, t=t, shared=shared)
    task = case.task(config, KEY)
    ids = np.broadcast_to(drawn_ids(task).reshape(-1, count), (len(case.queries), count))
    share = count / (len(case.table) - 1)
    power = share * (t * (1 - 1 / share) + 1 / share)

    def oracle(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        chances = 1 / (1 + np.exp(-queries @ table.T))
        found = np.zeros(len(queries))
        for i, label in enumerate(case.targets):
            found[i] = -np.log(chances[i, label] ** power) - sum(
                np.log(1 - chances[i, j]) for j in ids[i] if j != label)
        return found / (count + 1)

    check(config, case, task, oracle)


@pytest.mark.parametrize("shared", [False, True])
def test_with_t_0_or_all_negatives_it_is_binary_cross_entropy(shared: bool) -> None:
    case: Case = make_case(3)
    plain = bce.Config(count=5, shared=shared)
    task = case.task(plain, KEY)
    wanted = losses(plain, case.queries, case.table, task)
    config = Config(count=5, t=0.0, shared=shared)
    task = case.task(config, KEY)
    np.testing.assert_array_equal(
        losses(config, case.queries, case.table, task), wanted)
    assert Config(count=30, t=1.0).positive_weight(31) == 1.0


def test_with_t_1_the_best_score_is_that_of_the_true_probability() -> None:
    """Where an item is the label with chance p, the expected loss is least at sigmoid(s) = p."""
    items, chance = 201, 0.02
    config = Config(count=10, t=1.0)
    power, share = config.positive_weight(items), 10 / (items - 1)
    scores = np.linspace(-8, 2, 100_001)
    met = (1 - chance) * share  # how often it is drawn as a negative
    risk = chance * power * np.logaddexp(0, -scores) + met * np.logaddexp(0, scores)
    assert 1 / (1 + np.exp(-scores[np.argmin(risk)])) == pytest.approx(chance, rel=1e-2)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_a_calibration_outside_0_and_1_is_refused(t: float) -> None:
    with pytest.raises(InputError, match=r"objective\.t"):
        Config(t=t)
