"""Hard negatives: the best wrong items for certain, the rest by a uniform sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import check, losses, make_case, sampled_oracle, softmax_oracle

from rec_jax.errors import InputError
from rec_jax.objectives import Task
from rec_jax.objectives.hard_negatives import Config

KEY = jax.random.key(4)


def hard_ids(task: Task) -> set[int]:
    """Those that count as found for certain."""
    drawn = task.constants
    return set(np.asarray(drawn.ids)[np.asarray(drawn.log_expected) == 0].tolist())


@pytest.mark.parametrize("config", [
    Config(queries=3, hard=2, uniform=6),
    pytest.param(Config(queries=99, hard=3, uniform=0, scale=0.7), marks=pytest.mark.slow),
    pytest.param(Config(queries=1, hard=1, uniform=30), marks=pytest.mark.slow)], ids=repr)
def test_the_loss_is_its_definition(config: Config) -> None:
    case = make_case(config.uniform)
    task = case.task(config, KEY)
    check(config, case, task, sampled_oracle(case, task, config.scale))


def test_each_query_finds_its_best_items_but_its_label() -> None:
    case = make_case(1)
    config = Config(queries=99, hard=4, uniform=0)
    scores = case.queries.astype(np.float64) @ case.table.T.astype(np.float64)
    scores[np.arange(len(scores)), case.targets] = -np.inf
    live = case.weights > 0
    wanted = set(np.argsort(-scores[live])[:, :4].ravel().tolist())
    assert hard_ids(case.task(config, KEY)) == wanted


def test_a_uniform_item_that_is_hard_as_well_counts_once() -> None:
    case = make_case(2)
    task = case.task(Config(queries=4, hard=5, uniform=31), KEY)
    used = np.asarray(task.constants.ids)[np.isfinite(task.constants.log_expected)]
    assert len(used) == len(set(used.tolist())) == 31


@pytest.mark.parametrize("config", [
    Config(queries=99, hard=30, uniform=0),  # V - 1: all but the label, and labels differ
    pytest.param(Config(queries=2, hard=3, uniform=31), marks=pytest.mark.slow),
    pytest.param(Config(queries=99, hard=99, uniform=0), marks=pytest.mark.slow),
], ids=repr)
def test_with_every_item_it_is_the_full_softmax(config: Config) -> None:
    case = make_case(3)
    check(config, case, case.task(config, KEY), softmax_oracle(case))


def test_one_position_with_all_wrong_items_is_the_full_softmax() -> None:
    case = make_case(4, positions=1, items=9, unlabelled=0)
    config = Config(queries=1, hard=8, uniform=0)
    check(config, case, case.task(config, KEY), softmax_oracle(case))


def test_the_normaliser_is_estimated_without_bias() -> None:
    case = make_case(5, positions=6, unlabelled=0)
    config = Config(queries=6, hard=2, uniform=5)
    label = np.sum(case.queries * case.table[case.targets], axis=1)

    @jax.jit
    @jax.vmap
    def normaliser(key: jax.Array) -> jax.Array:
        found = losses(config, case.queries, case.table, case.task(config, key))
        return jnp.exp(found + label)

    found = np.asarray(normaliser(jax.random.split(KEY, 3000)), np.float64)
    exact = np.exp(softmax_oracle(case)(case.queries.astype(np.float64), case.table) + label)
    error = found.std(0) / len(found) ** 0.5
    assert np.all(error > 0) and np.all(np.abs(found.mean(0) - exact) < 4.5 * error)


def test_a_catalogue_of_one_item_has_no_loss() -> None:
    case = make_case(6, items=1)
    task = case.task(Config(queries=2, hard=3, uniform=0), KEY)
    assert not np.any(np.asarray(losses(Config(), case.queries, case.table, task)))


def test_positions_without_a_label_look_for_nothing() -> None:
    case = make_case(7, positions=12, unlabelled=10)
    config = Config(queries=12, hard=2, uniform=0)
    assert len(hard_ids(case.task(config, KEY))) <= 4


@pytest.mark.parametrize(("settings", "name"), [
    ({"queries": 0}, "queries"), ({"hard": 0}, "hard"), ({"uniform": -1}, "uniform"),
    ({"scale": 0.0}, "scale")])
def test_impossible_settings_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=f"objective.{name}"):
        Config(**settings)
