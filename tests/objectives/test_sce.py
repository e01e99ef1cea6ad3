"""Scalable cross-entropy: the softmax within buckets, the largest loss of each position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, Oracle, check, losses, make_case, softmax_oracle

from rec_jax.errors import InputError
from rec_jax.objectives import Task
from rec_jax.objectives.sce import Config

KEY = jax.random.key(3)


def oracle_of(config: Config, case: Case, task: Task) -> Oracle:
    """Bucket by bucket, position by position; buckets are chosen at the case's own arrays."""
    centres = np.asarray(task.constants[1], np.float64)
    near_positions = centres @ case.queries.T.astype(np.float64)
    near_positions[:, case.weights == 0] = -np.inf
    near_items = centres @ case.table.T.astype(np.float64)
    live = int(case.weights.sum())

    def loss(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        scores = config.scale * queries @ table.T
        found = np.full(len(queries), -1.0)
        for positions, items in zip(near_positions, near_items, strict=True):
            best_items = np.argsort(-items)[:config.bucket_items]
            for i in np.argsort(-positions)[:min(config.bucket_positions, live)]:
                label = scores[i, case.targets[i]]
                total = np.exp(label) + sum(
                    np.exp(scores[i, j]) for j in best_items if j != case.targets[i])
                found[i] = max(found[i], np.log(total) - label)
        kept = (found >= 0) & (case.weights > 0)
        return np.where(kept, found, 0.0) / (kept.sum() / live)

    return loss


@pytest.mark.parametrize("config", [
    Config(buckets=3, bucket_positions=4, bucket_items=5),
    Config(buckets=6, bucket_positions=8, bucket_items=9, mix=False, scale=0.6),
    pytest.param(Config(buckets=1, bucket_positions=3, bucket_items=1, mix=False),
                 marks=pytest.mark.slow),
    pytest.param(Config(buckets=2, bucket_positions=50, bucket_items=50), marks=pytest.mark.slow),
], ids=repr)
def test_the_loss_is_its_definition(config: Config) -> None:
    case = make_case(config.buckets)
    task = case.task(config, KEY)
    check(config, case, task, oracle_of(config, case, task))


def test_one_bucket_of_all_positions_and_items_is_the_full_softmax() -> None:
    case = make_case(4)
    config = Config(buckets=1, bucket_positions=99, bucket_items=99, scale=0.8)
    check(config, case, case.task(config, KEY), softmax_oracle(case, 0.8))


def test_positions_without_a_bucket_are_left_out_of_the_mean() -> None:
    case = make_case(5, positions=10, unlabelled=0)
    config = Config(buckets=1, bucket_positions=4, bucket_items=99)
    task = case.task(config, KEY)
    found = np.asarray(losses(config, case.queries, case.table, task))
    exact = softmax_oracle(case)(case.queries.astype(np.float64), case.table)
    assert np.count_nonzero(found) == 4
    assert found.mean() == pytest.approx(exact[found > 0].mean(), rel=1e-5)


def test_more_buckets_come_nearer_to_the_full_softmax_from_below() -> None:
    case = make_case(6, positions=12, items=200, unlabelled=0)
    exact = softmax_oracle(case)(case.queries.astype(np.float64), case.table)
    means = []
    for buckets in (1, 8, 64):
        config = Config(buckets=buckets, bucket_positions=99, bucket_items=40)
        found = np.asarray(losses(config, case.queries, case.table, case.task(config, KEY)))
        assert np.all(found <= exact + 1e-5)
        means.append(found.mean())
    assert means[0] < means[1] < means[2]
    assert means[2] > 0.9 * exact.mean()


def test_mixed_centres_leave_out_positions_without_a_label() -> None:
    case = make_case(7)
    config = Config(buckets=2)
    noise = np.where(case.weights[:, None] > 0, 0, 5).astype(np.float32)
    dirty = case._replace(queries=case.queries + noise)
    np.testing.assert_allclose(case.task(config, KEY).constants[1],
                               dirty.task(config, KEY).constants[1], rtol=1e-5, atol=1e-5)


def test_a_step_without_a_label_has_no_loss_and_no_gradient() -> None:
    case = make_case(8, positions=3, unlabelled=3)
    config = Config(buckets=2)
    task = case.task(config, KEY)

    def total(queries: jax.Array) -> jax.Array:
        return jnp.sum(losses(config, queries, case.table, task))

    value, grads = jax.value_and_grad(total)(jnp.asarray(case.queries))
    assert value == 0 and not np.any(np.asarray(grads))


@pytest.mark.parametrize("name", ["buckets", "bucket_positions", "bucket_items"])
def test_empty_buckets_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"objective.{name} is 0"):
        Config(**{name: 0})
