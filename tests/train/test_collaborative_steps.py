"""Whole steps of the collaborative objectives against dense definitions in f64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import ROWS, Trained, V, log_softmax, make_batch
from marks import alone_or_cut, fast_where

from rec_jax.model.encoders import bag, user
from rec_jax.objectives import bpr, rating_distribution
from rec_jax.objectives.base import Keys
from rec_jax.objectives.sampled import NEGATIVES

MESHES = [(1, 1), (2, 4)]


def flat(trained: Trained) -> dict[str, np.ndarray]:
    return {name: value.reshape(-1, value.shape[-1]) for name, value in trained.batch.items()}


@pytest.mark.parametrize(("power", "count_power", "mode", "mesh"), [
    (1.0, 0.0, "dense", (1, 1)), (1.0, 0.5, "streamed", (2, 4)), (0.0, 1.0, "dense", (1, 1)),
    (2.5, 0.0, "streamed", (1, 1)), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (1.0, 1.0, "dense", (2, 4)), (1.0, 0.0, "streamed", (1, 1)), (0.0, 0.5, "streamed", (1, 1)),
        (2.5, 1.0, "dense", (1, 1))))], ids=str)
def test_the_divergence_from_a_users_ratings(power: float, count_power: float, mode: str,
                                             mesh: tuple[int, int]) -> None:
    """Each user's ratings give a distribution, by powers, and with it a loss, which counts by how
    many they are."""
    trained = Trained(rating_distribution.Config(power=power, count_power=count_power,
                                                 backend="xla", scale=1.5),
                      user.Config(), mode, mesh)
    batch = flat(trained)

    def loss(params: Any, items: Any, users: Any) -> Any:
        queries, total, count = trained.queries(params, items, users), 0.0, 0.0
        for row in range(ROWS):
            for segment, last in ((1, 2), (2, 4)):
                own = (batch["segments"][row] == segment) & (batch["targets"][row] >= 0)
                if not own.any():
                    continue
                share = batch["values/rating"][row][own].astype(np.float64) ** power
                share /= share.sum()
                logs = log_softmax(1.5 * queries[row, last] @ items.T)[batch["targets"][row][own]]
                weight = own.sum() ** count_power
                total += weight * jnp.sum(share * (np.log(share) - logs))
                count += weight
        return total / count

    trained.check(loss)


def test_a_history_asks_for_one_log_normaliser_however_many_labels_it_has() -> None:
    config, asked = rating_distribution.Config(), []
    batch = make_batch(3)
    batch["histories"] = batch["histories"][..., :2]
    key = jax.random.key(0)
    task = config.plan({name: jnp.asarray(value) for name, value in batch.items()},
                       Keys(key[None], key), V).settled()
    one = jax.tree.map(lambda leaf: leaf[0], task)
    assert one.where.shape == (2 * ROWS,)  # two histories a row, and not its six places

    class Counting:
        def softmax(self, queries: Any, targets: Any, **_: Any) -> Any:
            asked.append(queries.shape)
            assert np.all(np.asarray(targets) == -1)
            return jnp.zeros(len(queries)), jnp.zeros(len(queries))

        def rows(self, name: str) -> Any:
            assert name == "labels"
            return jnp.zeros((len(one.labels.item), 4))

        def bias(self, name: str) -> None:
            return None

    config.loss(jnp.zeros((2 * ROWS, 4)), one, Counting())  # type: ignore[arg-type]
    assert asked == [(2 * ROWS, 4)]
    live = batch["targets"][0] >= 0
    assert float(jnp.sum(one.labels.weight)) == pytest.approx(float(one.divisor), rel=1e-6)
    assert int((one.labels.weight != 0).sum()) == live.sum()


@pytest.mark.parametrize("power", [1.0, 100.0])
def test_ratings_that_are_none_or_huge_stay_numbers(power: float) -> None:
    """A history without a rating above 0 has no loss; a power of 100 of 1e4 is a number."""
    config, key = rating_distribution.Config(power=power), jax.random.key(0)
    batch = {"targets": jnp.array([[[1, 2, 3, 4, -1, -1]]]),
             "segments": jnp.array([[[1, 1, 2, 2, 3, 0]]]),
             "histories": jnp.array([[[1, 3, 4, -1]]]),
             "values/rating": jnp.array([[[1e4, 5e3, 0.0, -2.0, 0.0, 0.0]]])}
    task = jax.tree.map(lambda leaf: leaf[0], config.plan(batch, Keys(key[None], key), V).settled())
    np.testing.assert_array_equal(task.present, [True, False, False, False])
    share = np.array([1.0, 0.5**power])
    np.testing.assert_allclose(task.labels.weight[:2], share / share.sum(), rtol=1e-5)
    np.testing.assert_array_equal(task.labels.weight[2:], 0)
    assert float(task.divisor) == 1 and np.isfinite(task.values["negative_entropy"]).all()


@pytest.mark.parametrize(("shared", "mode", "mesh"), fast_where(
    lambda shared, mode, mesh: alone_or_cut(mode, mesh), [False, True], ["dense", "sparse"],
    MESHES), ids=str)
def test_a_label_is_ranked_above_what_was_drawn(shared: bool, mode: str,
                                                mesh: tuple[int, int]) -> None:
    trained = Trained(bpr.Config(count=5, shared=shared, scale=1.3), user.Config(), mode, mesh)
    batch, keys = flat(trained), drawn_keys()
    task = bpr.Config(count=5, shared=shared).plan(
        {"targets": jnp.asarray(trained.batch["targets"])}, keys, V)
    ids = {**task.reads, **task.shared}[NEGATIVES].ids
    ids = np.broadcast_to(np.asarray(ids).reshape(-1, 5), (batch["targets"].size, 5))
    live, targets = batch["targets"].reshape(-1) >= 0, batch["targets"].reshape(-1).clip(0)
    if not shared:
        assert (ids != targets[:, None])[live].all()
    else:
        assert (ids == targets[:, None])[live].any()  # an accidental hit

    def loss(params: Any, items: Any, users: Any) -> Any:
        queries = trained.queries(params, items, users)
        scores = 1.3 * (queries @ items.T).reshape(-1, V)
        own = jnp.take_along_axis(scores, targets[:, None], 1)
        margins = own - jnp.take_along_axis(scores, ids, 1)
        each = jnp.where(ids != targets[:, None], jnp.logaddexp(0.0, -margins), 0.0).sum(1) / 5
        return jnp.sum(jnp.where(live, each, 0.0)) / live.sum()

    trained.check(loss)


def drawn_keys() -> Keys:
    """Those of the first step of seed 0."""
    from rec_jax import streams

    run = streams.of_steps(0)
    return Keys(streams.of_micro_batches(run, 0, 1, streams.TASK),
                streams.of_step(run, 0, streams.NEGATIVES))


@pytest.mark.parametrize("objective", [rating_distribution.Config(backend="xla"),
                                       bpr.Config(count=3)], ids=lambda config: config.kind)
def test_micro_batches_give_the_same_step(objective: Any) -> None:
    mode = "streamed" if objective.needs.normaliser else "sparse"
    make = functools.partial(Trained, objective, user.Config(), mode, (1, 1))
    one, two = make(), make(accumulate=2)
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), two.after.parts,
                 one.after.parts)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_bag_trains_the_items_of_its_histories(mode: str) -> None:
    trained = Trained(bpr.Config(count=5, shared=True), bag.Config(), mode, (2, 4))
    other = Trained(bpr.Config(count=5, shared=True), bag.Config(), "dense", (1, 1))
    np.testing.assert_allclose(trained.loss, other.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trained.after.parts,
                 other.after.parts)
