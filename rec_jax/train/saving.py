"""What a training saves, and when a delta will do.

In a sparse table only the rows that steps touched have moved, so that between two full
checkpoints their rows and state are enough; of untied tables each has its own. In a dense or a
streamed table every step moves every row (the full softmax gives each a gradient): there every
checkpoint is full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from rec_jax.checkpoint import Checkpoints, updated_rows
from rec_jax.checkpoint.older import TABLES
from rec_jax.progress import Reporter
from rec_jax.run_sections import CheckpointConfig
from rec_jax.tables.choose import Mode
from rec_jax.tables.marks import mark, marked_rows, unmark
from rec_jax.train.state import TrainState, each_table, to_items
from rec_jax.train.tiers import Tiers

WORTH_IT = 0.5
"""Share of touched rows above which a delta would save too little to be worth its chain."""
MOVING = 0.25
"""The largest share of a sparse table that is assumed to change while it is written."""


def open_to_save(folder: Path, settings: CheckpointConfig, moving: float = 1.0) -> Checkpoints:
    """The checkpoints of a training, as its config says; moving: see `Checkpoints`."""
    return Checkpoints(folder, keep=settings.keep, keep_every=settings.keep_every, moving=moving,
                       copy_bytes=settings.copy_mib * 2**20, growth_bytes=growth_bytes(settings))


@dataclass
class Saver:
    """Saves states; marks: the state's table is marked, and deltas are made of it.

    last: step of the newest checkpoint; deltas: how many lie between it and a full one.
    """

    checkpoints: Checkpoints
    settings: CheckpointConfig
    marks: bool
    tiers: Tiers
    last: int | None = None
    deltas: int = 0

    def begin(self, state: TrainState, last: int | None) -> TrainState:
        """The state with marks, if it needs them; `last` is the checkpoint it comes from."""
        self.last = last
        if not self.marks:
            return state
        if last is not None and TABLES not in self.checkpoints.extra(last):
            self.last = last = None  # its arrays have other names: no delta builds on it
        while last is not None and (last := self.checkpoints.info(last).base) is not None:
            self.deltas += 1
        return each_table(state, mark)

    def save(self, step: int, state: TrainState, extra: Mapping[str, Any],
             metric: float | None) -> TrainState:
        """Start to save; the state to go on with. Raises what `Checkpoints.save` raises."""
        self.tiers.flush(state)
        items, base = self.tiers.items(to_items(each_table(state, unmark))), None
        if self.marks and self.deltas + 1 < self.settings.full_every and self._has_last():
            moved = {name: marked_rows(table) for name, table in state.tables.items()}
            there = sum(table.num_items for table in state.tables.values())
            if sum(map(len, moved.values())) <= WORTH_IT * there:
                base = self.last
                for name, of_table in moved.items():
                    for part, item in items.items():
                        # A second moment that is rounded to 0 would make the next step explode.
                        stored = self.settings.delta_values if part == "model" else "exact"
                        item["tables"][name] = jax.tree.map(
                            lambda rows, numbers=of_table, stored=stored: updated_rows(
                                rows, numbers, stored), item["tables"][name])
        self.checkpoints.save(step, items, extra, metric, base=base)
        self.last, self.deltas = step, 0 if base is None else self.deltas + 1
        return each_table(state, mark) if self.marks else state

    def _has_last(self) -> bool:
        """Whether the checkpoint that a delta would build on is complete, and still there."""
        self.checkpoints.wait()
        return self.last is not None and self.last in self.checkpoints.steps()


def moving_share(mode: Mode) -> float:
    """Share of the state that steps may change while it is written; see `Checkpoints`."""
    return MOVING if mode == "sparse" else 1.0


def growth_bytes(settings: CheckpointConfig) -> float:
    """The most that steps may make a frozen state grow by; see `Checkpoints`."""
    return math.inf if settings.growth_mib is None else settings.growth_mib * 2**20


def make_saver(checkpoints: Checkpoints, settings: CheckpointConfig, mode: Mode, tiers: Tiers,
               reporter: Reporter) -> Saver:
    """A saver for a run whose table is updated in `mode`; says why where deltas cannot be.

    tiers: its tables whose rows do not lie on the devices.
    """
    wanted = settings.full_every > 1
    if wanted and mode != "sparse":
        reporter.say(f"checkpoint.full_every = {settings.full_every} changes nothing: a {mode} "
                     f"table moves every row in every step, so every checkpoint is full")
    elif wanted and jax.process_count() > 1:
        reporter.say("deltas are made by a single process only; every checkpoint is full")
    elif wanted and tiers.names:
        reporter.say("deltas are made of rows on the devices only; every checkpoint is full")
    marks = wanted and mode == "sparse" and jax.process_count() == 1 and not tiers.names
    return Saver(checkpoints, settings, marks, tiers)
