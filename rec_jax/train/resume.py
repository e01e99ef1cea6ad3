"""Going on with a run: the newest checkpoint that is whole, and whether it belongs to this run."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from rec_jax import config as configs
from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.checkpoint.older import with_named_tables
from rec_jax.errors import InputError
from rec_jax.inference.checkpoint_of import check_dataset, row_map_in
from rec_jax.progress import Reporter
from rec_jax.run import RunConfig
from rec_jax.tables import USERS, RowMap
from rec_jax.train.build import Built
from rec_jax.train.state import TrainState, from_items, to_items

_OF_A_TABLE = ("gather_slack", "placement", "cache")
FREE: dict[str, tuple[str, ...]] = {
    "mesh": (), "checkpoint": (), "data": ("path", "files"), "table": _OF_A_TABLE,
    "inputs": _OF_A_TABLE, "users": _OF_A_TABLE, "continual": ("run",),
    "train": ("log_every", "checkpoint_every", "lookahead"), "evaluate": ("batch",)}
"""Keys that a resumed run may change; without names, all of that part."""


@dataclass
class Position:
    """Where a run stands, beside its arrays; saved with every checkpoint.

    best, best_step: largest validation metric and the update it was measured after.
    stale: validations since then.
    seconds: training time over all starts, without validation.
    backends: what the kernels computed with, see `rec_jax.train.backends`; None in older runs.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    seconds: float = 0.0
    backends: dict[str, str] | None = None


def resume(checkpoints: Checkpoints, built: Built, config: RunConfig, reporter: Reporter, *,
           force: bool = False) -> tuple[TrainState, int, Position]:
    """State, updates done and position of the newest whole checkpoint, or of the start.

    force: go on although config or dataset are not those of the checkpoint; what differs is
      said. Shapes must fit all the same.

    Raises:
      InputError: the checkpoint is of another config or dataset, or every one is damaged.
    """
    # Shapes only, so that a second state is never held beside the one that is restored.
    like = built.tiers.items(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding), to_items(built.state)))

    def load(step: int) -> tuple[dict[str, Any], Position, RowMap]:
        opened = checkpoints.open(step)  # held against its seal before anything is believed
        extra = opened.info.extra
        try:
            position, data = Position(**extra["position"]), _mapping(extra["data"])
            _check(extra, built, config, reporter, force)
            if force:
                built.stream.seek(operator.index(data["step"]))
            else:
                built.stream.restore(data)
        except (KeyError, TypeError) as error:
            raise Damaged(f"checkpoint of step {step} says nothing usable of where the run stood: "
                          f"{type(error).__name__} {error}") from None
        # Older checkpoints have no `rest`, and moments and averages of bf16 tables in bf16.
        opened = with_named_tables(checkpoints.open(step))
        there = {name: tree for name, tree in like.items()
                 if name != "rest" or name in opened.items}
        row_map = row_map_in(opened, built.dataset.num_trained)
        built.tiers.begin(row_map)
        return opened.restore(there, widen=True), position, row_map

    found = checkpoints.newest(load)
    if found is None:
        built.stream.seek(0)
        return built.state, 0, Position()
    step, (items, position, row_map) = found
    like = {name: table if name == USERS else table.replace(row_map=row_map)
            for name, table in built.state.tables.items()}
    return from_items(built.tiers.caches(items, built.state), like), step, position


def changes(old: Mapping[str, Any], new: Any) -> str | None:
    """The first difference that changes a run's numbers, as `a.b: old -> new`; None if there is
    none. Devices, paths, and how often something is logged or saved may differ.

    old: the plain mapping of a config that was saved; no code that it names is loaded.
    new: a config of any kind of run.
    """
    before = dict(old)
    now = configs.to_mapping(new)
    for part, names in FREE.items():
        if not names:
            before[part] = now[part]
        elif isinstance(before.get(part), Mapping) and isinstance(now.get(part), Mapping):
            same = {name: now[part][name] for name in names if name in now[part]}
            before[part] = {name: value for name, value in before[part].items()
                            if name not in names} | same
    return configs.difference(before, new)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.40}")
    return value


def _check(extra: Mapping[str, Any], built: Built, config: RunConfig, reporter: Reporter,
           force: bool) -> None:
    try:
        check_dataset(built.dataset, str(extra["dataset"]))
        changed = changes(_mapping(extra["config"]), config)
        if changed:
            raise InputError(f"the checkpoint was saved with another config ({changed}); go back "
                             f"to that one, or force it")
        if "seen_targets" not in extra["config"]["evaluate"] and built.validator.misses:
            raise InputError("the checkpoint's best metric counts targets that are in their "
                             f"user's history as ranked, and now {built.validator.misses} of "
                             "them are misses (evaluate.seen_targets); go back to the version "
                             "that saved it, start a new run, or force it")
    except InputError as error:
        if not force:
            raise
        reporter.say(f"forced: {error}")
