"""One step: the same users give the same loss and gradients, however they are laid out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from steps import make_step as step_of
from steps import new_state

from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders.transformer import Config as Transformer
from rec_jax.model.optimizer import OptimizerConfig, dense_optimizer
from rec_jax.objectives.next_item import Config as NextItem
from rec_jax.tables import TableConfig
from rec_jax.train.state import TrainState
from rec_jax.train.step import Step, StepMetrics

DIM, LENGTH, SEED = 16, 24, 5
Batch = dict[str, Any]


@functools.cache
def make_step(optimizer: optax.GradientTransformation, *, dropout: float = 0.0,
              precision: str = "f32", ema: float | None = None) -> tuple[Step, Any]:
    """A compiled step and a function that makes its first state from the number of items."""
    config = Transformer(layers=1, heads=2, hidden=2, dropout=dropout)
    encoder, params = build_encoder(config, dim=DIM, length=LENGTH, causal=True,
                                    precision=precision, seed=SEED)

    table = TableConfig(dim=DIM, init_scale=0.3)

    def start(num_items: int) -> TrainState:
        return new_state(params, optimizer, table, "dense", num_items, seed=SEED,
                         average=ema is not None)

    return step_of(encoder, NextItem(), optimizer, table, precision=precision, ema=ema), start


SGD = optax.sgd(1.0)  # new = old - gradient: the gradient can be read off the weights
STILL = optax.sgd(0.0)


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return Dataset.open(tiny_dataset)


def epoch(dataset: Dataset, *, packed: bool, micro: int = 1) -> Batch:
    """Every target of the training part once, as one batch `[micro, B, L]`."""
    rows = BatchStream(dataset, length=LENGTH, rows=1, pack=packed).rows_per_epoch
    stream = BatchStream(dataset, length=LENGTH, rows=rows, pack=packed, seed=SEED)
    batch = next(stream)
    missing = -rows % micro  # empty rows, so that micro-batches can be equal
    empty = {"items": 0, "targets": -1, "segments": 0, "positions": 0}
    full = {name: np.pad(value, ((0, missing), (0, 0)), constant_values=empty[name])
            for name, value in batch.items()}
    return {name: value.reshape(micro, -1, LENGTH) for name, value in full.items()}


def host(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)  # a copy: the step donates its state


class Outcome(NamedTuple):
    metrics: StepMetrics
    gradients: dict[str, np.ndarray]


def gradients_of(dataset: Dataset, batch: Batch, precision: str = "f32") -> Outcome:
    step, start = make_step(SGD, precision=precision)
    state = start(dataset.num_items)
    before = host({**state.encoder, "rows": state.items.rows})
    new, metrics = step(state, batch)
    after = host({**new.encoder, "rows": new.items.rows})
    return Outcome(host(metrics), {name: before[name] - after[name] for name in before})


def assert_same(one: Outcome, other: Outcome, tolerance: float) -> None:
    np.testing.assert_allclose(one.metrics.loss, other.metrics.loss, rtol=tolerance)
    np.testing.assert_allclose(one.metrics.gradient_norm, other.metrics.gradient_norm,
                               rtol=tolerance)
    assert one.metrics.positions == other.metrics.positions
    for name, gradient in one.gradients.items():
        scale = np.abs(gradient).max()
        assert scale > 0, f"{name} has no gradient at all"
        np.testing.assert_allclose(gradient, other.gradients[name], atol=tolerance * scale,
                                   rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def padded(dataset: Dataset) -> Outcome:
    return gradients_of(dataset, epoch(dataset, packed=False))


def test_packed_and_padded_users_give_the_same_loss_and_gradients(
        dataset: Dataset, padded: Outcome) -> None:
    packed = epoch(dataset, packed=True)
    assert packed["items"].shape[1] < epoch(dataset, packed=False)["items"].shape[1]
    assert packed["segments"].max() > 1
    assert_same(gradients_of(dataset, packed), padded, 1e-5)


def test_micro_batches_accumulate_exactly(dataset: Dataset, padded: Outcome) -> None:
    batch = epoch(dataset, packed=True, micro=3)
    counts = (batch["targets"] >= 0).sum(axis=(1, 2))
    assert len(set(counts.tolist())) > 1  # a mean of the micro-batches' means would be wrong
    assert_same(gradients_of(dataset, batch), padded, 1e-5)


def test_the_loss_counts_positions_with_a_target_only(dataset: Dataset, padded: Outcome) -> None:
    batch = epoch(dataset, packed=False)
    assert padded.metrics.positions == (batch["targets"] >= 0).sum()
    assert padded.metrics.positions < batch["targets"].size
    assert padded.metrics.loss == pytest.approx(np.log(dataset.num_items), rel=0.3)


def test_bf16_is_close_to_f32(dataset: Dataset, padded: Outcome) -> None:
    half = gradients_of(dataset, epoch(dataset, packed=False), "bf16")
    assert half.metrics.loss == pytest.approx(padded.metrics.loss, rel=1e-2)
    assert half.metrics.loss != padded.metrics.loss  # it does compute in bf16
    for name, gradient in padded.gradients.items():
        error = np.linalg.norm(half.gradients[name] - gradient) / np.linalg.norm(gradient)
        assert error < 0.05, f"{name} is off by {error:.1%}"
        assert half.gradients[name].dtype == np.float32


def test_a_batch_without_targets_moves_nothing(dataset: Dataset) -> None:
    batch = epoch(dataset, packed=True)
    batch["targets"] = np.full_like(batch["targets"], -1)
    found = gradients_of(dataset, batch)
    assert found.metrics.loss == 0 and found.metrics.positions == 0
    assert not any(np.any(gradient) for gradient in found.gradients.values())


def test_the_average_follows_the_weights_at_its_decay(dataset: Dataset) -> None:
    decay = 0.75
    step, start = make_step(SGD, ema=decay)
    state, batch = start(dataset.num_items), epoch(dataset, packed=True)
    expected = host((state.encoder, {"items": state.items.rows}))
    for _ in range(3):
        state, _ = step(state, batch)
        weights = host((state.encoder, {"items": state.items.rows}))
        expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, expected,
                                weights)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
                     host(state.average[:2]), expected)
    assert np.abs(expected[1]["items"] - weights[1]["items"]).max() > 1e-3  # it lags behind


def test_rows_that_pad_the_table_stay_zero_and_all_others_learn(dataset: Dataset) -> None:
    optimizer = dense_optimizer(OptimizerConfig(rate=0.05, warmup=0, weight_decay=0.1), 10)
    step, start = make_step(optimizer, ema=0.5)
    state, batch = start(dataset.num_items), epoch(dataset, packed=True)
    before = host(state.items.rows)
    for _ in range(2):
        state, _ = step(state, batch)
    assert state.average is not None
    for rows in (state.items.rows, state.average.tables["items"]):
        assert not np.any(rows[dataset.num_items:])
        assert np.all(np.any(rows[:dataset.num_items] != before[:dataset.num_items], axis=1))
    assert int(state.step) == 2


def test_dropout_follows_the_step_and_the_seed(dataset: Dataset) -> None:
    step, start = make_step(STILL, dropout=0.5)
    batch = epoch(dataset, packed=True)

    def losses() -> list[float]:
        state, found = start(dataset.num_items), []
        for _ in range(3):
            state, metrics = step(state, batch)
            found.append(float(metrics.loss))
        return found

    first = losses()
    assert len(set(first)) == 3  # the weights never move, so only the dropout can differ
    assert first == losses()


def test_micro_batches_do_not_share_their_dropout(dataset: Dataset) -> None:
    step, start = make_step(STILL, dropout=0.5)
    batch = epoch(dataset, packed=True)
    twice = {name: np.concatenate([value, value]) for name, value in batch.items()}
    _, once = step(start(dataset.num_items), batch)
    _, both = step(start(dataset.num_items), twice)
    assert float(both.positions) == 2 * float(once.positions)
    assert float(both.loss) != pytest.approx(float(once.loss), rel=1e-6)
