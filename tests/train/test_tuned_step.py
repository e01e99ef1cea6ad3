"""A step leaves what is frozen, and moves the rest by its share of the learning rate."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow_but
from steps import modes_of, new_tables, tables_of

from rec_jax.model.rows import RowSource
from rec_jax.model.tuning import EVERYTHING, Tuning, scale_by_path
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.train.counts import count_parameters
from rec_jax.train.state import TrainState, init_state
from rec_jax.train.step import Step, make_train_step

ITEMS, DIM, RATE = 40, 4, 0.1
OBJECTIVES = {"dense": next_item.Config(backend="xla"),
              "streamed": next_item.Config(backend="xla"),
              "sparse": sampled_softmax.Config(count=8)}
MODES = ["dense", "sparse", "streamed"]
HELD = Tuning({"first": 0.0, "tables/items": 0.0, "tables/inputs": 0.0})


class TwoMatrices:
    """Histories' sums, times two matrices."""

    features, source = (), RowSource(0)

    def __call__(self, params: Any, vectors: jax.Array, *_: Any) -> jax.Array:
        return jnp.cumsum(vectors, axis=1) @ params["first"] @ params["second"]


def params() -> dict[str, jax.Array]:
    random = np.random.default_rng(3)
    return {name: jnp.asarray(random.standard_normal((DIM, DIM)), jnp.float32)
            for name in ("first", "second")}


@functools.cache
def step_of(mode: str, tuning: str, tied: bool = True, kind: str = "sgd") -> tuple[Step, Any]:
    """A step, and what makes its first state."""
    tuned = {"all": EVERYTHING, "held": HELD,
             "half": Tuning({"second": 0.5, "tables/items": 0.5})}[tuning]
    table = TableConfig(dim=DIM, tied=tied, optimizer=RowOptimizerConfig(kind=kind))  # type: ignore[arg-type]
    optimizer = optax.chain(optax.adam(RATE), scale_by_path(tuned))
    modes = modes_of(table, mode)

    def start() -> TrainState:
        tables = {name: each.replace(state=()) if tuned.freezes_table(name) else each
                  for name, each in new_tables(table, mode, ITEMS).items()}
        return init_state(params(), tables, optimizer, seed=0, modes=modes, tuning=tuned)

    step = make_train_step(TwoMatrices(), OBJECTIVES[mode], optimizer,  # type: ignore[arg-type]
                           tables=tables_of(table), modes=modes, tuning=tuned,
                           rate=optax.constant_schedule(RATE))
    return step, start


def batch(seed: int) -> dict[str, np.ndarray]:
    items = np.random.default_rng(seed).integers(0, ITEMS, (1, 4, 7)).astype(np.int32)
    ones = np.ones((1, 4, 6), np.int32)
    return {"items": items[..., :-1], "targets": items[..., 1:], "segments": ones,
            "positions": ones * np.arange(6, dtype=np.int32)}


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("mode", "tied"), [
    ("sparse", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("dense", True), ("streamed", True), ("dense", False), ("streamed", False)))])
def test_what_is_frozen_keeps_its_bits_and_has_no_state(mode: str, tied: bool) -> None:
    step, start = step_of(mode, "held", tied)
    state = start()
    before = {name: bits(table.rows) for name, table in state.tables.items()}
    first = bits(state.encoder["first"])
    assert len(before) == (1 if tied else 2)
    for number in range(4):
        second = bits(state.encoder["second"])
        state, metrics = step(state, batch(number))
        assert np.isfinite(float(metrics.loss))
        assert bits(state.encoder["second"]) != second
    assert {name: bits(table.rows) for name, table in state.tables.items()} == before
    assert bits(state.encoder["first"]) == first
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert moments == [(DIM, DIM)] * 2  # those of `second`
    assert not any(jax.tree.leaves(table.state) for table in state.tables.values())
    counts = count_parameters(state, HELD)
    assert (counts.trained, counts.frozen) == (DIM * DIM, DIM * DIM + ITEMS * DIM * len(before))
    assert counts.optimizer_bytes == 4 * (2 * DIM * DIM + 1)


@pytest.mark.parametrize("mode", slow_but("sparse", MODES))
def test_the_gradient_of_what_trains_is_that_beside_frozen_parameters(mode: str) -> None:
    losses, gradients = [], []
    for tuning in ("all", "held"):
        step, start = step_of(mode, tuning)
        state, metrics = step(start(), batch(0))
        losses.append(float(metrics.loss))
        gradients.append(10 * np.asarray(state.optimizer[0][0].mu["encoder"]["second"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-5 * np.abs(gradients[0]).max())
    assert np.abs(gradients[0]).max() > 1e-4
    np.testing.assert_allclose(float(metrics.gradient_norm), np.linalg.norm(gradients[1]),
                               rtol=1e-5)


@pytest.mark.parametrize("mode", slow_but("sparse", MODES))
def test_half_the_rate_is_half_the_update(mode: str) -> None:
    """Of Adam, and of SGD where a table is not dense; in the first step gradients are equal."""
    moved = []
    for tuning in ("all", "half"):
        step, start = step_of(mode, tuning)
        state = start()
        old = [np.asarray(state.items.rows), *(np.asarray(state.encoder[name])
                                               for name in ("first", "second"))]
        state, _ = step(state, batch(0))
        new = [state.items.rows, *(state.encoder[name] for name in ("first", "second"))]
        moved.append([np.asarray(after) - before for before, after in zip(old, new, strict=True)])
    for factor, whole, half in zip((0.5, 1.0, 0.5), *moved, strict=True):
        assert np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(half, factor * whole, atol=1e-6)


def test_with_everything_frozen_a_step_changes_nothing() -> None:
    tuned = Tuning({"first": 0.0, "second": 0.0, "tables/items": 0.0})
    table = TableConfig(dim=DIM)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    state = init_state(params(), new_tables(table, "dense", ITEMS), optimizer, seed=0,
                       modes=modes_of(table, "dense"), tuning=tuned)
    before = bits((state.encoder, state.items.rows))
    step = make_train_step(TwoMatrices(), OBJECTIVES["dense"], optimizer,  # type: ignore[arg-type]
                           tuning=tuned)
    state, metrics = step(state, batch(0))
    assert bits((state.encoder, state.items.rows)) == before
    assert float(metrics.gradient_norm) == 0 and int(state.step) == 1
