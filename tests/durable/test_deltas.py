"""A sparse training with deltas: smaller checkpoints, the same numbers, whatever stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from signalled import SignalAfter

from rec_jax import config
from rec_jax.checkpoint import Checkpoints
from rec_jax.checkpoint.array_source import DeltaSource
from rec_jax.errors import Preempted
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.tables import Hyper, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.marks import mark, marked_rows, marking, unmark
from rec_jax.tables.update_sparse import update_rows
from rec_jax.train.loop import run_training

SPARSE = ("table.update='sparse'", "train.evaluate_every=100", "train.checkpoint_every=2",
          "train.steps=13", "train.rows=1", "objective.kind='sampled_softmax'",
          "objective.count=4", "checkpoint.keep=3")


def finished(mapping: dict[str, Any], folder: Path, stops: tuple[int, ...] = ()) -> Run:
    run, settings = Run(folder), config.build(RunConfig, mapping)
    for steps in stops:
        with pytest.raises(Preempted):
            run_training(run, settings, SignalAfter(steps))
    run_training(run, settings)
    return run


def arrays(run: Run) -> dict[str, bytes]:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return {name + path: np.asarray(source.read(0, (source.shape or (1,))[0])).tobytes()
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_full_checkpoints_and_deltas_end_with_the_same_bits(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path, tied: bool) -> None:
    settings = (*SPARSE, f"table.tied={str(tied).lower()}")
    full = finished(tiny_mapping(*settings), tmp_path / "full")
    mapping = tiny_mapping(*settings, "checkpoint.full_every=5")
    deltas = finished(mapping, tmp_path / "deltas")
    stopped = finished(mapping, tmp_path / "stopped", stops=(3, 6))
    assert arrays(deltas) == arrays(full) == arrays(stopped)
    with Checkpoints(deltas.checkpoints, read_only=True) as checkpoints:
        bases = {step: checkpoints.info(step).base for step in checkpoints.steps()}
        sizes = {step: checkpoints.size(step) for step in checkpoints.steps()}
    # A delta of more than half of the rows would not be worth it: some are full.
    assert bases[13] == 12 and None in bases.values()
    assert sizes[13] < max(sizes.values())
    with Checkpoints(stopped.checkpoints, read_only=True) as checkpoints:
        assert any(info.base is not None for info in checkpoints.infos().values())


def test_of_untied_tables_a_delta_has_the_rows_that_each_was_touched_in(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = finished(tiny_mapping(*SPARSE, "table.tied=false", "checkpoint.full_every=5"),
                   tmp_path / "run")
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.info(13).base == 12
        before, after = checkpoints.open(12).items["model"], checkpoints.open(13).items["model"]
        touched = {}
        for name in ("items", "inputs"):
            path = f"['tables']['{name}']"
            source = after[path]
            assert isinstance(source, DeltaSource)
            one, other = (leaves[path].read(0, 50) for leaves in (before, after))
            touched[name] = source._deltas[-1].ids.tolist()
            assert touched[name] == np.flatnonzero(np.any(one != other, axis=1)).tolist()
    # One step of one row: 12 inputs; targets and 4 negatives.
    assert 0 < len(touched["inputs"]) <= 12 and 0 < len(touched["items"]) <= 16
    assert touched["inputs"] != touched["items"]


@pytest.mark.slow
def test_only_a_sparse_table_has_deltas_and_the_others_say_why(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    said: list[str] = []

    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    settings = config.build(RunConfig, tiny_mapping(
        "train.steps=2", "train.checkpoint_every=1", "checkpoint.full_every=5"))
    run = Run(tmp_path / "run")
    run_training(run, settings, Told())
    assert any("a dense table moves every row" in line for line in said)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        assert all(info.base is None for info in checkpoints.infos().values())


def test_the_marks_are_the_rows_that_were_updated() -> None:
    optimizer = row_optimizer(RowOptimizerConfig(kind="adam"))
    table = mark(init_table(TableConfig(dim=4), 50, 0, optimizer=optimizer))
    assert len(marked_rows(table)) == 0
    ids = jnp.asarray([3, 7, 49, 2**31 - 1], jnp.int32)
    rows, state = update_rows(table.rows, table.state, ids, jnp.ones((4, 4)),
                              marking(optimizer.update, table.state), Hyper(jnp.float32(0.1)))
    moved = table.replace(rows=rows, state=state)
    np.testing.assert_array_equal(marked_rows(moved), [3, 7, 49])
    assert len(marked_rows(mark(moved))) == 0
    np.testing.assert_array_equal(np.flatnonzero(unmark(moved).state.steps), [3, 7, 49])
    np.testing.assert_array_equal(np.flatnonzero(np.any(rows != table.rows, axis=1)), [3, 7, 49])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_rounded_deltas_keep_the_state_of_the_optimizer_exact(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path, optimizer: str) -> None:
    common = (*SPARSE, f"table.optimizer.kind='{optimizer}'", "train.steps=4")
    exact, rounded = (arrays(finished(tiny_mapping(*common, *more), tmp_path / name))
                      for name, more in (("exact", ()), ("rounded", (
                          "checkpoint.full_every=4", "checkpoint.delta_values='int8'"))))
    differing = {name for name, values in exact.items() if rounded[name] != values}
    assert differing == {"model['tables']['items']"}
