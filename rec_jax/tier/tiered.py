"""One table whose rows lie in a store, with a cache of some of them on the devices.

    plan      which rows a step reads, and what moves before it           (any thread, in order)
    load      the rows that come, from the store                          (the same thread)
    enter     rows out of the cache and into it                           (the training's thread)
    written   what went out is in the store                               (a thread of its own)

Steps may be planned and loaded before the ones ahead of them have begun. A row that is needed again
while it is on its way out is waited for: a plan knows the last step whose rows it needs, and `load`
reads nothing before all that left up to that step is written. So no row is lost, or read as it was
before.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from rec_jax.tables import Table
from rec_jax.tables.places import Places
from rec_jax.tables.unique import NO_ID
from rec_jax.tier.cache_plan import NEVER, CachePlan, Planned
from rec_jax.tier.exchange import Exchange, taken
from rec_jax.tier.store import RowStore

ROWS = 0
"""The leaf of the rows themselves; the others are their optimizer's state."""
ON_THEIR_WAY = 4
"""Steps whose rows may be on their way out at once; a further one waits for the first."""


class Loaded(NamedTuple):
    """What a step needs of a table. planned: the moves; values: rows and state of what comes and
    was written before, by shard and leaf; old: bool `[M]`, of each shard, which of them were."""

    planned: Planned
    values: tuple[list[np.ndarray], ...]
    old: tuple[np.ndarray, ...]


class Closed(Exception):
    """The training has ended, and nobody will ask for what was to be loaded."""


class TieredTable:
    """A table in a store, the plan of its cache, and the way between."""

    def __init__(self, table: Table, store: RowStore, exchange: Exchange, shards: int) -> None:
        """table: the empty cache of all shards."""
        self.store, self.exchange = store, exchange
        self.row_map, self.num_items = table.row_map, table.num_items
        self._slots = table.rows.shape[0] // shards
        self._shards, self._range = shards, store.total // shards
        self._reads = 0
        self._plan = CachePlan(store.total, self._slots, shards)
        self._resident = [np.full(self._slots, NEVER, np.int64) for _ in range(shards)]
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rows out")
        self._leaving: deque[Future[None]] = deque()
        self._changed = threading.Condition()
        self._written, self._closed = NEVER, False
        self._failed: BaseException | None = None
        self._flushed = True

    def plan(self, ids: np.ndarray, present: np.ndarray) -> Planned:
        """The moves before the next step, which reads `ids` int32 `[n]` where they are `present`
        and name a row; n is the same for all steps."""
        self._reads = min(len(ids), self._range)
        named = ids[present & (ids >= 0) & (ids < self.num_items)]
        return self._plan.plan(np.unique(self.row_map.rows(named)))

    def load(self, planned: Planned) -> Loaded:
        """Read the rows that come, once the store has them.

        Raises:
          Closed: `close` was called meanwhile.
          OSError: the store cannot be read, or could not be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._written >= planned.after or self._closed
                                            or self._failed is not None))
            if self._failed is not None:
                raise self._failed
            if self._closed:
                raise Closed
        old = tuple(self.store.has(moves.into) for moves in planned.moves)
        values = tuple(self.store.read(moves.into[there])
                       for moves, there in zip(planned.moves, old, strict=True))
        return Loaded(planned, values, old)

    def enter(self, table: Table, loaded: Loaded) -> tuple[Table, Places]:
        """The cache with all rows of the step, and where they are."""
        moves, old = loaded.planned.moves, loaded.old
        self._flushed = False
        self._let_out(table, loaded.planned)
        if any(there.any() for there in old):
            table = self.exchange.put(table, [each.into_slots[there] for each, there in zip(
                moves, old, strict=True)], loaded.values)
        if not all(there.all() for there in old):
            new = [~there for there in old]
            table = self.exchange.begin(
                table, [each.into_slots[there] for each, there in zip(moves, new, strict=True)],
                [np.asarray(self.row_map.ids(each.into[there]))
                 for each, there in zip(moves, new, strict=True)])
        for shard, each in enumerate(moves):
            self._resident[shard][each.into_slots] = each.into
        return table, Places(
            self.exchange.placed([each.rows for each in moves], self._reads, NO_ID),
            self.exchange.placed([each.slots for each in moves], self._reads, NO_ID))

    def flush(self, table: Table) -> None:
        """Write what the cache has after the last step to the store; it stays in the cache."""
        self._wait()
        if self._flushed:
            return
        self._flushed = True
        slots = [np.flatnonzero(rows != NEVER) for rows in self._resident]
        if any(map(len, slots)):
            values = taken(self.exchange.take(table, slots), slots)
            self.store.write(np.concatenate([rows[own] for rows, own in zip(
                self._resident, slots, strict=True)]), values)

    def get(self, leaf: int, first: int, last: int) -> np.ndarray:
        """Rows from `first` to `last` of a leaf of the whole table, as `flush` left them."""
        rows = np.arange(first, last)
        return self.rows(rows) if leaf == ROWS else self.store.get(leaf, rows)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of `numbers` int64 `[n]`: `[n, d]`, as `flush` left them."""
        values, new = self.store.get(ROWS, numbers), ~self.store.has(numbers)
        if new.any():
            values[new] = self._first(numbers[new])
        return values

    def fill(self, leaf: int, first: int, values: np.ndarray) -> None:
        """Set the rows of a leaf from `first` on, before the first step. What is as in a new table
        is not written, so that it takes nothing."""
        rows = np.arange(first, first + len(values))
        new = self._first(rows) if leaf == ROWS else np.zeros_like(values)
        other = np.any(_bytes(values) != _bytes(new), axis=1)
        rows = rows[other]
        begun = rows[~self.store.has(rows)]
        if len(begun):
            state = [np.zeros((len(begun), *one.shape), one.dtype)
                     for one in self.store.leaves[1:]]
            self.store.write(begun, [self._first(begun), *state])
        self.store.set(leaf, rows, values[other])

    def close(self) -> None:
        """End the threads; a `load` that waits raises `Closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.shutdown(cancel_futures=True)
        self.store.close()

    def _first(self, rows: np.ndarray) -> np.ndarray:
        """What `rows` int64 `[n]` of the table are in a new one: `[n, d]`."""
        return self.exchange.first(np.asarray(self.row_map.ids(rows)))

    def _let_out(self, table: Table, planned: Planned) -> None:
        """Begin to write the rows that leave."""
        slots = [moves.out_slots for moves in planned.moves]
        out = np.concatenate([moves.out for moves in planned.moves])
        values = self.exchange.take(table, slots) if len(out) else []

        def write() -> None:
            try:
                if len(out):
                    self.store.write(out, taken(values, slots))
            except BaseException as error:
                self._failed = error
                raise
            finally:
                with self._changed:
                    self._written = planned.number
                    self._changed.notify_all()

        while len(self._leaving) >= ON_THEIR_WAY:
            self._leaving.popleft().result()
        self._leaving.append(self._writer.submit(write))

    def _wait(self) -> None:
        """Return when all that left is written."""
        while self._leaving:
            self._leaving.popleft().result()


def _bytes(values: np.ndarray) -> np.ndarray:
    """`[n, bytes of a row]`."""
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
