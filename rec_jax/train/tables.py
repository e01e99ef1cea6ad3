"""All tables of a run in one step: each is opened by its own way to train, for what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax.numpy as jnp
import optax

from rec_jax.data.attributes import BEGIN
from rec_jax.data.features import QUERY
from rec_jax.errors import InputError
from rec_jax.objectives import Objective, Task
from rec_jax.objectives.base import Ids, Search, Searching
from rec_jax.tables import ITEMS, USERS, Hyper, Table, TableConfig
from rec_jax.tables.choose import Mode as ModeName
from rec_jax.train import dense, passing, sparse, streamed
from rec_jax.train.fetched import fetch_rows
from rec_jax.train.frozen import held
from rec_jax.train.item_neighbourhood import ItemNeighbourhood
from rec_jax.train.mode import READ, Array, Batch, Opener, OpenTable, Request, Setting
from rec_jax.train.neighbourhood import Neighbourhood
from rec_jax.train.search import search_in
from rec_jax.train.state import TrainState

MODES: dict[str, Opener] = {
    "dense": dense.open_table,
    "sparse": sparse.open_table,
    "streamed": streamed.open_table,
}
"""By the name of a way to train, what opens a table for a step."""


Near = Neighbourhood | ItemNeighbourhood


class Opened(NamedTuple):
    """tables: by name; ids: by table and name, what it reads of every micro-batch `[A, ...]`;
    tasks: with the negatives that were mined; shared: by table and name, what every micro-batch
    reads."""

    tables: dict[str, OpenTable]
    ids: dict[str, dict[str, Ids]]
    tasks: Task
    shared: dict[str, dict[str, Ids]]


def open_tables(setting: Setting, state: TrainState, batch: Batch, tasks: Task, key: Array,
                near: Near | None = None) -> Opened:
    """Open the tables of `state` for a step; tasks are stacked over micro-batches.

    key: of the step, for an objective that searches; near: what is read for a node.
    """
    ids = _read(setting, batch)
    if near is not None:
        return _open_nodes(setting, state, near.of_batch(ids, batch), tasks, near)
    inputs = ids[setting.reads][READ]
    opened = {name: _open(setting, name, state.tables[name], Request(ids[name]))
              for name in ids if name != ITEMS}
    if setting.objective.needs.search:
        search = search_in(setting, state.items, state.encoder, batch, tasks,
                           lambda: _input_rows(setting, state, opened, inputs))
        average = _average_search(setting, state, batch, tasks, inputs)
        tasks = cast(Searching, setting.objective).mine(
            tasks, key, search._replace(average=average))
    ids[ITEMS] |= _scored(setting, tasks)
    opened[ITEMS] = _open(setting, ITEMS, state.items,
                          Request(ids[ITEMS], dict(tasks.shared), tasks.targets.shape))
    return Opened(opened, ids, tasks, {ITEMS: dict(tasks.shared)})


def _open_nodes(setting: Setting, state: TrainState, ids: dict[str, dict[str, Ids]], tasks: Task,
                near: Near) -> Opened:
    """As `open_tables`, with the rows that the vectors of nodes are made of."""
    ids[ITEMS] |= _scored(setting, tasks)
    ids, shared = (near.rows_of(named) for named in (ids, {
        name: dict(tasks.shared) if name == ITEMS else {} for name in ids}))
    opened = {name: _open(setting, name, state.tables[name], Request(ids[name], shared[name]))
              for name in ids}
    return Opened(opened, ids, tasks, shared)


def _open(setting: Setting, name: str, table: Table, request: Request) -> OpenTable:
    how = MODES[setting.modes[name]] if table.passing is None else passing.open_table
    opened = how(setting, name, table, request)
    return held(opened, table) if setting.tuning.freezes_table(name) else opened


def _average_search(setting: Setting, state: TrainState, batch: Batch, tasks: Task, inputs: Ids
                    ) -> Search | None:
    """A search by the moving average of the weights, where the state has one."""
    average = state.average
    if average is None:
        return None
    reads = state.tables[setting.reads]
    return search_in(
        setting, state.items.replace(rows=average.tables[ITEMS]), average.encoder, batch, tasks,
        lambda: dense.take_rows(average.tables[setting.reads], reads.row_map.rows(inputs.ids)))


def asked_of(setting: Setting, batch: Batch, tasks: Task) -> dict[str, Request]:
    """By table what a step reads of it, where its objective does not search; as `open_tables`."""
    ids = _read(setting, batch)
    ids[ITEMS] |= _scored(setting, tasks)
    return {name: Request(each, dict(tasks.shared) if name == ITEMS else {})
            for name, each in ids.items()}


def _read(setting: Setting, batch: Batch) -> dict[str, dict[str, Ids]]:
    """By table the ids that feed the encoder; places in front of a history, and queries, have no
    item, so that a row optimizer does not move the row that stands there."""
    count = batch["items"].shape[0]
    inputs = Ids(batch["items"].reshape(count, -1), batch["segments"].reshape(count, -1) > 0)
    ids: dict[str, dict[str, Ids]] = {name: {} for name in setting.tables}
    read = inputs
    for path in (BEGIN, QUERY):
        if path in batch:
            bare = batch[path][..., 0].reshape(count, -1) > 0
            read = read._replace(present=read.present & ~bare)
    ids[setting.reads][READ] = read
    if USERS in ids:
        ids[USERS][READ] = inputs._replace(ids=batch[USERS].reshape(count, -1))
    return ids


def _scored(setting: Setting, tasks: Task) -> dict[str, Ids]:
    """The ids that the loss reads of every micro-batch."""
    found = dict(tasks.reads)
    if tasks.labels is not None:
        found["labels"] = Ids(tasks.labels.item, tasks.labels.weight != 0)
    elif setting.objective.needs.labels:
        assert tasks.present is not None
        found["labels"] = Ids(tasks.targets, tasks.present)
    return found


def _input_rows(setting: Setting, state: TrainState, opened: Mapping[str, OpenTable],
                inputs: Ids) -> Array:
    """Rows of the inputs `[A, B * L, w]`, before the loss."""
    name = setting.reads
    table = state.tables[name]
    if setting.modes[name] == "dense":
        return dense.take_rows(table.rows, table.row_map.rows(inputs.ids))
    if name in opened:
        return cast(Array, opened[name].slices[READ])
    return fetch_rows(setting, name, table, Request({READ: inputs})).each[READ]


def check_modes(objective: Objective, tables: Mapping[str, TableConfig],
                modes: Mapping[str, ModeName], ema: float | None,
                rate: optax.Schedule | None) -> None:
    """Raises InputError where objective, average or learning rate do not fit how tables train."""
    mode, needs = modes[ITEMS], objective.needs
    if mode != "dense" and (mode == "streamed") != needs.normaliser:
        raise InputError(f"table.update = {mode!r} does not fit objective {objective.kind!r}")
    if mode == "streamed" and needs.mean_row:
        raise InputError("objective.label_smoothing needs the mean row and its gradient, which a "
                         "streamed table does not make; expected 0, or table.update = 'dense'")
    for name, each in modes.items():
        if each == "streamed" and name != ITEMS:
            raise InputError(f"table {name!r} is not scored, so no pass over all of it is made; "
                             "expected update = 'dense' or 'sparse'")
        if each != "dense" and ema is not None:
            raise InputError(f"train.ema would touch every row in every step, which table.update = "
                             f"{each!r} avoids; expected no ema, or table.update = 'dense'")
        if each != "dense" and rate is None and tables[name].optimizer.rate is None:
            raise InputError(f"a {each} table trains with its own optimizer, and nothing says its "
                             "learning rate; expected `rate` or table.optimizer.rate")


def check_drop(drop: float, mode: ModeName) -> None:
    """Raises InputError where items would be scored without their own values by a table in `mode`
    that cannot leave them out."""
    if 0 < drop < 1 and mode == "streamed":
        raise InputError(f"content.drop = {drop:g} leaves out some items' own values in a step, "
                         "and a streamed table is scored as it is stored; expected content.drop = "
                         "0 or 1, or table.update = 'dense'")


def hyper_of(table: TableConfig, rate: optax.Schedule | None, now: Array, factor: float = 1.0
             ) -> Hyper:
    """The scalars of a table's row optimizer: its own rate, or that of the schedule, times
    `factor`."""
    own = table.optimizer.rate
    rates = rate if own is None else optax.constant_schedule(own)
    return Hyper(jnp.asarray(0.0 if rates is None else rates(now), jnp.float32) * factor)
