"""A step over made-up histories and a table of any size, for who wants to time it.

A step is timed from one end to the next with batches that are made ahead, as in training; ids fall
as a power law. `rec-jax bench table` asks for many of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from rec_jax.data.batches import prefetch
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.ranges import at_least, check
from rec_jax.tables import (
    ITEMS,
    RowOptimizerConfig,
    TableConfig,
    init_table,
    row_optimizer,
    rows_over,
)
from rec_jax.tables.row_map import row_map_of
from rec_jax.tier.store import Leaf
from rec_jax.train.mode import Batch, Setting
from rec_jax.train.passing_step import PassingStep
from rec_jax.train.state import init_state
from rec_jax.train.step import make_train_step, place_batch
from rec_jax.train.tiers import PART_STORES, Tiers, passing_table, tiered_table

PLACEMENTS = ("device", "host", "disk")
FULL = 0
"""Instead of a number of negatives: the softmax over all items."""
_POWER = 3.0  # ids fall as its law
_PROBE = 2**26  # bytes that a disk is asked for at once, where its rate is measured


@dataclass(frozen=True)
class Shapes:
    """What is the same for all combinations.

    positions: of a step, in rows of `length`; layers: of the transformer that reads the histories;
    part: see `TableConfig.part`, also for tables on the device; warm: steps that are not timed.
    """

    positions: int = 400
    length: int = 50
    dim: int = 64
    dtype: Literal["f32", "bf16"] = "f32"
    optimizer: Literal["sgd", "adagrad", "adam", "row_adam"] = "adagrad"
    layers: int = 1
    part: int | None = None
    lookahead: int = 2
    warm: int = 3

    def __post_init__(self) -> None:
        check(self, "", positions=at_least(1), length=at_least(1), dim=at_least(2),
              layers=at_least(1), part=at_least(1), lookahead=at_least(0, 1024),
              warm=at_least(1))
        if self.positions % self.length:
            raise InputError(f"positions = {self.positions} are no whole rows of length = "
                             f"{self.length}; expected a multiple")


@dataclass(frozen=True)
class Cell:
    """One combination. negatives: shared by a step, or `FULL`; cache: share of the rows, None where
    there is no cache to choose."""

    where: str
    items: int
    negatives: int
    cache: float | None = None

    @property
    def loss(self) -> str:
        """Its name in tables and plots."""
        return "full softmax" if self.negatives == FULL else f"{self.negatives} negatives"

    @property
    def name(self) -> str:
        """Of its line in a plot: all but the size."""
        return f"{self.loss}, {self.where}" + (
            "" if self.cache is None else f", cache {self.cache:g}")


class TimedTable:
    """One combination, set up."""

    def __init__(self, cell: Cell, shapes: Shapes, folder: Path) -> None:
        """folder: for rows on a disk; nothing of them is left."""
        self.cell = cell
        self.seconds: list[float] = []
        mesh, full = make_mesh(MeshConfig()), cell.negatives == FULL
        mode: Any = "streamed" if full else "sparse"
        config = TableConfig(dim=shapes.dim, dtype=shapes.dtype, part=shapes.part,
                             optimizer=RowOptimizerConfig(kind=shapes.optimizer))
        objective: Any = next_item.Config() if full else sampled_softmax.Config(
            negatives="log_uniform", count=cell.negatives)
        encoder, params = build_encoder(
            transformer.Config(layers=shapes.layers, heads=2, dropout=0.0), dim=shapes.dim,
            length=shapes.length, causal=True, precision="f32", seed=0)
        optimizer, rate = optax.adam(1e-3), optax.constant_schedule(0.05)
        tables, modes = {ITEMS: config}, {ITEMS: mode}
        row_map, over = row_map_of(mode, cell.items), rows_over(mode)
        setting = Setting(encoder, objective, tables, modes, mesh, DTYPES["f32"])
        away: dict[str, Any] = {}
        if cell.where == "device":
            table = init_table(config, cell.items, 0, mesh, row_map=row_map, over=over,
                               optimizer=row_optimizer(config.optimizer))
        else:
            make: Any = passing_table if full else tiered_table
            reads = shapes.positions * 2 + objective.drawn(shapes.positions)
            table, away[ITEMS] = make(
                config, cell.items, 0, mesh, name=ITEMS, over=over, row_map=row_map,
                slots=min(cell.items, max(reads, int((cell.cache or 0.1) * cell.items))
                          if not full else reads), where=cell.where)
            away[ITEMS].store.open(folder)
        self._state = init_state(params, {ITEMS: table}, optimizer, modes=modes, mesh=mesh, seed=0)
        self._step: Any = PassingStep(setting, optimizer, away[ITEMS], rate=rate) if (
            full and away) else make_train_step(encoder, objective, optimizer, tables=tables,
                                                modes=modes, mesh=mesh, rate=rate)
        self._mesh, self._tiers = mesh, Tiers(away, setting, cell.items)
        self._feed = prefetch(self._tiers.feed(_batches(cell.items, shapes), self._state.key, 0),
                              shapes.lookahead)

    def run(self, steps: int, *, counted: bool = True) -> None:
        """Take steps; the seconds of each are kept where they are counted."""
        for batch, _, loaded in itertools.islice(self._feed, steps):
            began = time.perf_counter()
            self._state, places = self._tiers.enter(self._state, loaded)
            self._state, metrics = self._step(self._state, place_batch(batch, self._mesh), places)
            if not np.isfinite(float(metrics.loss)):
                raise RuntimeError(f"{self.cell.name}: the loss is {float(metrics.loss)}")
            jax.block_until_ready(self._state)
            if counted:
                self.seconds.append(time.perf_counter() - began)

    def close(self) -> None:
        """End its threads; its rows are gone."""
        self._tiers.close()
        self._feed.close()


def _batches(items: int, shapes: Shapes) -> Iterator[tuple[Batch, int]]:
    random = np.random.default_rng(items)
    rows, length = shapes.positions // shapes.length, shapes.length
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (1, rows, length))
    while True:
        ids = (items * random.random((1, rows, length + 1)) ** _POWER).astype(np.int32)
        yield {"items": ids[..., :-1], "targets": ids[..., 1:],
               "segments": np.ones((1, rows, length), np.int32), "positions": places}, rows


def disk_rates(folder: Path) -> dict[str, float]:
    """Bytes a second of long writes and reads of a store's parts in `folder`, checks included:
    what `rec-jax plan` takes as --disk-write and --disk-read."""
    store = PART_STORES["disk"](4 * _PROBE, [Leaf((), np.dtype(np.uint8))], _PROBE)
    values = np.random.default_rng(0).integers(0, 256, _PROBE, np.uint8)
    store.open(folder)
    try:
        marks = [time.perf_counter()]
        for part in range(4):
            store.write(part, [values])
        marks.append(time.perf_counter())
        for part in range(4):
            store.read(part, [0])
        marks.append(time.perf_counter())
    finally:
        store.close()
    write, read = np.diff(marks)
    return {"disk_write": 4 * _PROBE / float(write), "disk_read": 4 * _PROBE / float(read)}
