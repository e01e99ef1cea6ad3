"""Binary cross-entropy: the label against k negatives, each position's own or shared by all."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from cases import Case, Oracle, catalogue, check, drawn_ids, make_case

from rec_jax.errors import InputError
from rec_jax.objectives import Task
from rec_jax.objectives.bce import Config

KEY = jax.random.key(1)


def oracle_of(case: Case, task: Task, scale: float, count: int,
              power: float = 1.0) -> Oracle:
    """Probabilities, powers and logarithms as they stand in the definition."""
    ids = np.broadcast_to(drawn_ids(task).reshape(-1, count), (len(case.queries), count))

    def loss(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        chances = 1 / (1 + np.exp(-scale * queries @ table.T))
        found = np.zeros(len(queries))
        for i, label in enumerate(case.targets):
            found[i] = -np.log(chances[i, label] ** power)
            found[i] -= sum(np.log(1 - chances[i, j]) for j in ids[i] if j != label)
        return found / (count + 1)

    return loss


@pytest.mark.parametrize(("shared", "count", "scale"), [
    (False, 1, 1.0), (False, 4, 0.7), (True, 5, 1.0), (True, 31, 0.7)])
def test_the_loss_is_its_definition(shared: bool, count: int, scale: float) -> None:
    case, config = make_case(count), Config(count=count, shared=shared, scale=scale)
    task = case.task(config, KEY)
    check(config, case, task, oracle_of(case, task, scale, count))


def test_many_shared_negatives_are_added_in_parts() -> None:
    case, config = make_case(9, items=300), Config(count=270, shared=True)
    task = case.task(config, KEY)
    check(config, case, task, oracle_of(case, task, 1.0, 270))


def test_all_items_as_shared_negatives_ask_about_every_item_once() -> None:
    case = make_case(6)
    config = Config(count=len(case.table), shared=True)

    def whole(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = queries @ table.T
        label = np.arange(len(table)) == case.targets[:, None]
        return np.logaddexp(0, np.where(label, -scores, scores)).sum(1) / (len(table) + 1)

    check(config, case, case.task(config, KEY), whole)


def test_own_negatives_are_all_items_but_the_label_as_likely() -> None:
    case = make_case(7, positions=5, items=6, unlabelled=1)
    task = case.task(Config(count=6000), KEY)
    for ids, label in zip(drawn_ids(task), case.targets, strict=True):
        counts = np.bincount(ids, minlength=6)
        assert counts[label] == 0
        assert np.all(np.abs(np.delete(counts, label) - 1200) < 5 * 1200**0.5)
    np.testing.assert_array_equal(~task.reads["negatives"].present[:, 0], case.weights == 0)


def test_sure_scores_of_either_sign_have_finite_losses() -> None:
    case = make_case(8)
    case = case._replace(queries=case.queries * 300)
    config = Config(count=3)
    task = case.task(config, KEY)
    label = np.asarray(case.table)[case.targets]
    wrong = np.asarray(case.table)[drawn_ids(task)]
    exact = (np.logaddexp(0, -(case.queries * label).sum(1, dtype=np.float64))
             + np.logaddexp(0, np.einsum("nd,nkd->nk", case.queries.astype(np.float64),
                                         wrong)).sum(1)) / 4
    found = config.loss(case.queries, task, catalogue(case.table, task))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Config(count=0), "objective.count is 0"),
    (lambda: make_case(0, items=1).task(Config(), KEY), "no negatives"),
    (lambda: make_case(0).task(Config(count=32, shared=True), KEY), "32 different"),
])
def test_too_few_items_or_negatives_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
