"""In-batch negatives: every label of the step is one of all others, weighed by its frequency."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, check, losses, make_case, sampled_oracle, softmax_oracle

from rec_jax.errors import InputError
from rec_jax.objectives.in_batch import Config

KEY = jax.random.key(0)


def frequencies(seed: int, items: int) -> np.ndarray:
    """Log of random shares of all labels: f64 `[V]`."""
    counts = np.random.default_rng(seed).integers(1, 9, items)
    return np.log(counts / counts.sum())


@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 0.6)])
def test_the_loss_is_its_definition(seed: int, scale: float) -> None:
    case, config = make_case(seed), Config(scale=scale)
    log_q = frequencies(seed, len(case.table))
    count = int(case.weights.sum())

    def oracle(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = scale * queries @ table.T
        result = np.zeros(len(queries))
        for i, label in enumerate(case.targets):
            total = np.exp(scores[i, label])
            for other in case.targets[:count]:
                if other != label:
                    total += np.exp(scores[i, other]) / (count * np.exp(log_q[other]))
            result[i] = np.log(total) - scores[i, label]
        return result

    check(config, case, case.task(config, KEY, log_q[case.targets]), oracle)


def test_labels_as_frequent_as_expected_give_the_full_softmax() -> None:
    case = make_case(2, positions=24, items=12, unlabelled=0)
    case = case._replace(targets=np.arange(24, dtype=np.int32) % 12)
    log_q = np.full(24, -np.log(12.0))
    check(Config(), case, case.task(Config(), KEY, log_q), softmax_oracle(case))


def test_the_sum_over_labels_is_an_unbiased_estimate_of_the_softmaxs() -> None:
    """Over positions whose labels follow q, the corrected terms add up to the whole sum."""
    case = make_case(3, positions=8, items=9, unlabelled=0)
    log_q = frequencies(3, 9)
    random = np.random.default_rng(0)
    labels = random.choice(9, (6000, 8), p=np.exp(log_q))

    @jax.jit
    @jax.vmap
    def sums(labels: jax.Array) -> jax.Array:
        task = case._replace(targets=labels).task(
            Config(), KEY, jnp.asarray(log_q, jnp.float32)[labels])
        drawn = task.constants
        return jnp.sum(jnp.exp(case.table @ case.queries[0])[drawn.ids]
                       / jnp.exp(drawn.log_expected))

    found = np.asarray(sums(labels), np.float64)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - np.exp(case.table @ case.queries[0]).sum()) < 4.5 * error


def test_a_step_with_one_label_has_no_negatives_and_no_loss() -> None:
    case = make_case(4, positions=3, unlabelled=2)
    task = case.task(Config(), KEY, np.full(3, -1.0))
    check(Config(), case, task, sampled_oracle(case, task))
    assert losses(Config(), case.queries, case.table, task)[0] == 0


def test_a_step_without_a_label_has_finite_gradients() -> None:
    case: Case = make_case(5, positions=3, unlabelled=3)
    task = case.task(Config(), KEY, np.zeros(3))

    def total(queries: jax.Array) -> jax.Array:
        found = losses(Config(), queries, case.table, task)
        return jnp.sum(jnp.where(case.weights > 0, found, 0.0))

    assert not np.any(np.asarray(jax.grad(total)(case.queries)))


def test_batches_without_frequencies_are_refused() -> None:
    with pytest.raises(InputError, match="log_q"):
        make_case(0).task(Config(), KEY)
