"""Objectives against drawn rows, in whole steps: on meshes, in micro-batches, in both modes."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow_but
from steps import MeanSoFar, make_step, new_state

from rec_jax.data.label_frequency import log_shares, of_targets
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import Encoder
from rec_jax.objectives import bce, gbce, hard_negatives, in_batch, next_item, sce
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.step import Step, place_batch

ITEMS, DIM, LENGTH, ROWS, STEPS = 60, 8, 6, 8, 8
OBJECTIVES: dict[str, Any] = {
    "in_batch": in_batch.Config(),
    "bce": bce.Config(count=8, shared=True),
    "gbce": gbce.Config(count=8),
    "sce": sce.Config(buckets=4, bucket_positions=16, bucket_items=12),
    "hard_negatives": hard_negatives.Config(queries=6, hard=4, uniform=16),
}
EXACT: dict[str, Any] = {
    "all in one bucket": sce.Config(buckets=1, bucket_positions=99, bucket_items=ITEMS),
    "all hard": hard_negatives.Config(queries=99, hard=ITEMS, uniform=0),
}
SETTINGS = {**OBJECTIVES, **EXACT, "next_item": next_item.Config(backend="xla")}
ADAM = RowOptimizerConfig(kind="adam")


def batch_of(step: int, accumulate: int = 1) -> dict[str, np.ndarray]:
    """One of two batches, popular items more often; each row ends with a position of padding."""
    rng = np.random.default_rng(step % 2)
    items = np.minimum(rng.zipf(1.3, (ROWS, LENGTH + 1)) - 1, ITEMS - 1).astype(np.int32)
    live = np.arange(LENGTH) < LENGTH - 1
    batch = {"items": np.where(live, items[:, :-1], 0), "targets": np.where(live, items[:, 1:], -1),
             "segments": np.broadcast_to(live, (ROWS, LENGTH)),
             "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))}
    split = {name: np.ascontiguousarray(value.reshape(accumulate, -1, LENGTH), np.int32)
             for name, value in batch.items()}
    shares = log_shares(1 + np.bincount(split["targets"].clip(0).ravel(), minlength=ITEMS))
    return {**split, "log_q": of_targets(shares, split["targets"])}


@functools.cache
def setup(name: str, mode: str, data: int = 1, items: int = 1) -> tuple[Any, Step, Any]:
    mesh = make_mesh(MeshConfig(data, items))
    table = TableConfig(dim=DIM, optimizer=ADAM, init_scale=0.3)
    params = {"kernel": jnp.eye(DIM)}
    optimizer = optax.adam(1e-2)
    step = make_step(cast(Encoder, MeanSoFar()), SETTINGS[name], optimizer, table, mode,
                     mesh=mesh, rate=optax.constant_schedule(1e-2))
    return mesh, step, lambda: new_state(params, optimizer, table, mode, ITEMS, mesh)


def train(name: str, mode: str, *shape: int, accumulate: int = 1,
          steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the steps, and the rows."""
    mesh, step, start = setup(name, mode, *shape)
    state, losses = start(), []
    for number in range(steps):
        state, metrics = step(state, place_batch(batch_of(number, accumulate), mesh))
        losses.append(float(metrics.loss))  # one step at a time on the fake devices
    return np.asarray(losses), np.asarray(state.items.rows)


@functools.cache
def alone(name: str, mode: str = "sparse") -> tuple[np.ndarray, np.ndarray]:
    return train(name, mode)


@pytest.mark.parametrize("name", slow_but("in_batch", OBJECTIVES))
def test_steps_learn_and_give_the_same_losses_and_rows_on_a_mesh(name: str) -> None:
    expected, expected_rows = alone(name)
    assert np.all(np.isfinite(expected)) and expected[-2:].mean() < expected[:2].mean()
    losses, rows = train(name, "sparse", 2, 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(rows, expected_rows, atol=2e-3)


@pytest.mark.parametrize("name", slow_but(("bce", "gbce", "in_batch"), [
    name for name in OBJECTIVES if name != "sce"]))
def test_a_dense_table_and_micro_batches_change_nothing(name: str) -> None:
    """Negatives are of the whole step; only the positions of `sce` are of a micro-batch."""
    losses, _ = train(name, "dense", 2, 1, accumulate=2, steps=1)
    np.testing.assert_allclose(losses, alone(name)[0][:1], rtol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_a_loss_in_its_limit_trains_as_the_exact_one(name: str) -> None:
    expected, expected_rows = alone("next_item", "dense")
    losses, rows = alone(name)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(rows, expected_rows, atol=2e-3)


def test_rows_that_no_position_used_stay_as_they_are() -> None:
    """Not even an empty slot's momentum moves a row: positions without a label name item 0."""
    mesh, step, start = setup("in_batch", "sparse")
    batch = batch_of(0)
    for name in ("items", "targets"):
        batch[name] = np.where(batch[name] == 0, 1, batch[name])
    batch["items"] = np.where(batch["segments"] > 0, batch["items"], 0)
    before = np.asarray(start().items.rows)
    state, _ = step(start(), place_batch(batch, mesh))
    used = set(batch["items"][batch["segments"] > 0]) | set(batch["targets"][batch["targets"] >= 0])
    moved = set(np.flatnonzero(np.any(np.asarray(state.items.rows) != before, axis=1)).tolist())
    assert moved and moved <= used and 0 not in moved
