"""The tables of a run whose rows do not lie on the devices: fed ahead, saved, restored, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rec_jax.checkpoint.row_ranges import RowRanges
from rec_jax.errors import InputError
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.mesh import Axes
from rec_jax.tables import USERS, RowMap, Table, TableConfig, padded_size, row_optimizer
from rec_jax.tables.on_mesh import shards_of
from rec_jax.tables.placement import Where, part_rows
from rec_jax.tables.places import Places
from rec_jax.tier.disk_store import DiskStore
from rec_jax.tier.exchange import Exchange, empty_cache
from rec_jax.tier.part_store import DiskParts, HostParts, PartStore
from rec_jax.tier.passing import PassingTable
from rec_jax.tier.store import HostStore, Leaf, RowStore
from rec_jax.tier.tiered import ROWS, Loaded, TieredTable
from rec_jax.train.ahead import AskedAhead, HostIds
from rec_jax.train.mode import Batch, Setting
from rec_jax.train.state import TrainState


class Fed(NamedTuple):
    """A step's food. sequences: histories in the batch; loaded: by table, what moves before it."""

    batch: Batch
    sequences: int
    loaded: Mapping[str, Loaded | np.ndarray]


STORES: dict[str, Callable[..., RowStore]] = {"host": HostStore, "disk": DiskStore}
"""By placement, what keeps the rows."""
PART_STORES: dict[str, Callable[..., PartStore]] = {"host": HostParts, "disk": DiskParts}
"""By placement, what keeps the rows of a table that passes by in parts."""
Away = TieredTable | PassingTable
"""A table that does not lie on the devices."""
_NONE = HostIds(np.zeros(0, np.int32), np.zeros(0, bool))


def tiered_table(config: TableConfig, num_items: int, seed: int, mesh: Mesh, *, name: str,
                 over: Axes, row_map: RowMap, slots: int, where: Where = "host"
                 ) -> tuple[Table, TieredTable]:
    """A new table that does not lie on the devices: the empty cache of these, and the rest.

    slots: rows of the cache of one shard; where: host or disk; the other arguments are those of
    `init_table`.
    """
    shards = shards_of(mesh, over).pieces
    cache, leaves = _cache(config, num_items, slots * shards, mesh, over, row_map)
    return cache, TieredTable(
        cache, STORES[where](padded_size(num_items), leaves),
        Exchange(config, name, num_items, seed, mesh, cache), shards)


def passing_table(config: TableConfig, num_items: int, seed: int, mesh: Mesh, *, name: str,
                  over: Axes, row_map: RowMap, slots: int, where: Where = "host"
                  ) -> tuple[Table, PassingTable]:
    """As `tiered_table`, of a table that passes by one device in parts; slots: the most rows that
    a step names."""
    cache, leaves = _cache(config, num_items, slots, mesh, over, row_map)
    total = padded_size(num_items)
    part = part_rows(config.dim, leaves[ROWS].dtype.itemsize, total, config.part)
    return cache, PassingTable(cache, PART_STORES[where](total, leaves, part),
                               Exchange(config, name, num_items, seed, mesh, cache))


def _cache(config: TableConfig, num_items: int, slots: int, mesh: Mesh, over: Axes,
           row_map: RowMap) -> tuple[Table, list[Leaf]]:
    """The empty cache of a table, and what its store has of a row."""
    cache = empty_cache(config, num_items, slots, mesh, over=over, row_map=row_map,
                        optimizer=row_optimizer(config.optimizer))
    return cache, [Leaf(leaf.shape[1:], np.dtype(leaf.dtype))
                   for leaf in (cache.rows, *jax.tree.leaves(cache.state))]


class Tiers:
    """The tables of a run that are caches of what lies elsewhere, by name; there may be none."""

    def __init__(self, tables: Mapping[str, Away], setting: Setting, num_items: int
                 ) -> None:
        self._tables = dict(tables)
        self._ask = AskedAhead(setting, num_items) if tables else None

    @property
    def names(self) -> list[str]:
        """Of the tables."""
        return sorted(self._tables)

    def open(self, folder: Path) -> None:
        """Begin; files of rows are in `folder`."""
        for table in self._tables.values():
            table.store.open(folder)

    def check_alone(self, what: str) -> None:
        """Raises InputError where there is such a table; what: needs all rows on the devices."""
        if self._tables:
            raise InputError(f"{what} needs the rows of table {self.names[0]!r} on the devices; "
                             "expected table.placement = 'device'")

    def feed(self, batches: Iterator[tuple[Batch, int]], key: Any, step: int) -> Iterator[Fed]:
        """The batches from step `step` on, each with what moves before it; it may run ahead of the
        training in a thread of its own.

        key: of the state.
        """
        key = np.asarray(key)
        for number, (batch, sequences) in enumerate(batches, step):
            loaded = {}
            if self._ask is not None:
                asked = self._ask(key, number, batch)
                loaded = {name: table.load(table.plan(*asked.get(name, _NONE)))  # type: ignore[arg-type]
                          for name, table in self._tables.items()}
            yield Fed(batch, sequences, loaded)

    def enter(self, state: TrainState, loaded: Mapping[str, Loaded | np.ndarray]
              ) -> tuple[TrainState, dict[str, Places]]:
        """The state with the rows of the next step in its caches, and where they are."""
        places, tables = {}, dict(state.tables)
        for name, table in self._tables.items():
            tables[name], places[name] = table.enter(tables[name], loaded[name])  # type: ignore[arg-type]
        return state._replace(tables=tables), places

    def apart(self, state: TrainState) -> dict[str, RowsApart]:
        """All rows of the tables as they are after the last step, for who ranks them."""
        self.flush(state)
        return {name: RowsApart((table.store.total, state.tables[name].rows.shape[1]),
                                state.tables[name].rows.dtype, table.rows)
                for name, table in self._tables.items()}

    def flush(self, state: TrainState) -> None:
        """Bring what the caches have to where the rows lie, before `items` are read."""
        for name, table in self._tables.items():
            table.flush(state.tables[name])

    def items(self, items: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's pytrees (`to_items`) with whole tables in the place of caches."""
        def leaf(name: str, number: int, like: Any) -> RowRanges:
            table = self._tables[name]
            return RowRanges((table.store.total, *like.shape[1:]), np.dtype(like.dtype),
                             partial(table.get, number), partial(table.fill, number))

        def state(name: str, old: Any) -> Any:
            leaves, structure = jax.tree.flatten(old)
            return jax.tree.unflatten(structure, [
                leaf(name, number, like) for number, like in enumerate(leaves, 1)])

        return self._changed(items, lambda name, old: leaf(name, ROWS, old), state)

    def caches(self, items: Mapping[str, Any], state: TrainState) -> dict[str, Any]:
        """The inverse of `items`, with the caches of `state`."""
        return self._changed(items, lambda name, _: state.tables[name].rows,
                             lambda name, _: state.tables[name].state)

    def begin(self, row_map: RowMap | None = None) -> None:
        """Forget all rows, before those of a checkpoint are filled in. row_map: which row of it an
        item has."""
        for name, table in self._tables.items():
            table.store.clear()
            if row_map is not None and name != USERS:
                table.row_map = row_map

    def close(self) -> None:
        """End what runs for them; the rows are gone."""
        for table in self._tables.values():
            table.close()

    def _changed(self, items: Mapping[str, Any], rows: Callable[[str, Any], Any],
                 state: Callable[[str, Any], Any]) -> dict[str, Any]:
        found = dict(items)
        for part, change in (("model", rows), ("training", state)):
            tables = dict(found[part]["tables"])
            tables |= {name: change(name, tables[name]) for name in self._tables}
            found[part] = {**found[part], "tables": tables}
        return found
