"""One table that lies in a store and passes by a device in parts, twice a step.

    enter    the rows that a step names, ahead of it
    parts    the rows of each part in turn, for the loss                 (one read ahead)
    update   each part with its state, as it was and as it is after      (one read ahead, and
             the step                                                     written in a thread)

Every row moves in every step, so that nothing is kept on the device from one step to the next.
What is read waits until all that the step before has made is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from rec_jax.tables import RowMap, Table
from rec_jax.tables.places import Places
from rec_jax.tables.unique import NO_ID
from rec_jax.tier.exchange import Exchange
from rec_jax.tier.part_store import PartStore

_WRITES = 2  # parts that may be on their way out at once
ROWS = 0
"""The leaf of the rows themselves; the others are their optimizer's state."""

Array = jax.Array


class PassingTable:
    """A table in a store, and the way of its parts past a device."""

    def __init__(self, table: Table, store: PartStore, exchange: Exchange) -> None:
        """table: the room on the device for the rows that a step names."""
        self.store, self.exchange = store, exchange
        self.row_map: RowMap = table.row_map
        self.num_items = table.num_items
        self._slots = table.rows.shape[0]
        self._device = table.rows.sharding
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="parts in")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="parts out")
        self._leaving: deque[Future[None]] = deque()

    @property
    def _parts(self) -> int:
        return -(-self.store.total // self.store.part)

    def plan(self, ids: np.ndarray, present: np.ndarray) -> np.ndarray:
        """The rows that the next step names, ascending; ids int32 `[n]` where `present`."""
        named = ids[present & (ids >= 0) & (ids < self.num_items)]
        return np.unique(self.row_map.rows(named)).astype(np.int64)

    def load(self, planned: np.ndarray) -> np.ndarray:
        """Nothing is read ahead: the step before changes all rows."""
        return planned

    def enter(self, table: Table, loaded: np.ndarray) -> tuple[Table, Places]:
        """`table` with the rows of the step, and where they are."""
        rows = np.zeros(table.rows.shape, table.rows.dtype)
        rows[:len(loaded)] = self.rows(loaded)
        slots = np.arange(len(loaded))
        return table.replace(rows=jax.device_put(rows, self._device)), Places(
            self.exchange.placed([loaded], self._slots, NO_ID),
            self.exchange.placed([slots], self._slots, NO_ID))

    def parts(self) -> Iterator[tuple[int, Array]]:
        """(number of its first row, rows) of each part."""
        for part, (rows,) in self._ahead([ROWS]):
            yield part * self.store.part, rows

    def update(self, step: Callable[[int, list[Array]], list[Array]]) -> None:
        """Change all rows and their state: `step(number of the first row, leaves)` gives the new
        leaves of a part. What it gives may still be on its way when this returns."""
        for part, leaves in self._ahead(range(len(self.store.leaves))):
            while len(self._leaving) >= _WRITES:
                self._leaving.popleft().result()
            self._leaving.append(self._writer.submit(
                self._keep, part, step(part * self.store.part, leaves)))

    def flush(self, table: Table | None = None) -> None:
        """Return when all that the last step made is written."""
        del table
        while self._leaving:
            self._leaving.popleft().result()

    def get(self, leaf: int, first: int, last: int) -> np.ndarray:
        """Rows from `first` to `last` of a leaf of the whole table."""
        return self._of(leaf, np.arange(first, last))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of `numbers` int64 `[n]`: `[n, d]`."""
        return self._of(ROWS, numbers)

    def fill(self, leaf: int, first: int, values: np.ndarray) -> None:
        """Set the rows of a leaf from `first` on, before the first step. A part that stays as it is
        in a new table is not written, so that it takes nothing."""
        last, done = first + len(values), first
        while done < last:
            part = done // self.store.part
            begin = part * self.store.part
            end = min(begin + self.store.part, last)
            new = values[done - first:end - first]
            if self.store.has(part) or (_bytes(new) != _bytes(
                    self._new(leaf, np.arange(done, end)))).any():
                every = [np.array(one) for one in self._leaves(part, range(
                    len(self.store.leaves)))]
                every[leaf][done - begin:end - begin] = new
                self.store.write(part, every)
            done = end

    def close(self) -> None:
        """End the threads."""
        for pool in (self._reader, self._writer):
            pool.shutdown(cancel_futures=True)
        self.store.close()

    def _ahead(self, leaves: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        """Each part's number and leaves, on the device; the next one is on its way meanwhile."""
        self.flush()

        def read(part: int) -> list[Array]:
            # A copy: the device may write into it, and the store keeps what it has.
            return jax.block_until_ready([  # type: ignore[no-any-return]
                jax.device_put(leaf, self._device, may_alias=False)
                for leaf in self._leaves(part, leaves)])

        coming = self._reader.submit(read, 0)
        for part in range(self._parts):
            here = coming.result()
            if part + 1 < self._parts:
                coming = self._reader.submit(read, part + 1)
            yield part, here

    def _keep(self, part: int, leaves: Sequence[Any]) -> None:
        self.store.write(part, [np.asarray(leaf) for leaf in leaves])

    def _leaves(self, part: int, leaves: Sequence[int]) -> list[np.ndarray]:
        if self.store.has(part):
            return self.store.read(part, leaves)
        first = part * self.store.part
        numbers = np.arange(first, min(first + self.store.part, self.store.total))
        return [self._new(leaf, numbers) for leaf in leaves]

    def _of(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        self.flush()
        one = self.store.leaves[leaf]
        found = np.empty((len(numbers), *one.shape), one.dtype)
        parts = numbers // self.store.part
        written = np.array([self.store.has(part) for part in range(self._parts)])[parts]
        found[written] = self.store.rows(leaf, numbers[written])
        if not written.all():
            found[~written] = self._new(leaf, numbers[~written])
        return found

    def _new(self, leaf: int, numbers: np.ndarray) -> np.ndarray:
        """What rows `numbers` of a leaf are in a new table."""
        if leaf == ROWS:
            return self.exchange.first(np.asarray(self.row_map.ids(numbers)))
        one = self.store.leaves[leaf]
        return np.zeros((len(numbers), *one.shape), one.dtype)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
