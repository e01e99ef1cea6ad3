"""Which rows a device's cache holds: planned on the host, from ids that are known ahead.

A step names the rows that it reads. Those that are in the cache stay where they are; for each of
the others a slot is chosen, and what was in it goes out. Victims are found by the clock (Corbato,
1968): a hand goes round over the slots and passes over those that were used again since it came by
last, once. A row that comes in for one step, as most drawn negatives do, goes out again first.

All of it is a function of the rows that were asked for, in their order: no time, no chance. It
decides where rows are, and never what they hold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec_jax.errors import InputError

NEVER = -1


class Moves(NamedTuple):
    """What one shard's cache does before a step. All int64; `out` and `into` come from old to new.

    rows, slots: `[K]`, the rows of the step, ascending, and where they are.
    out, out_slots: `[E]`, rows that leave, and where they are until then.
    into, into_slots: `[M]`, rows that come, and where they go. Of the slots that are emptied, each
    gets one.
    """

    rows: np.ndarray
    slots: np.ndarray
    out: np.ndarray
    out_slots: np.ndarray
    into: np.ndarray
    into_slots: np.ndarray


class Planned(NamedTuple):
    """What all shards do before a step.

    number: of the step, counted from 0 by the plan.
    moves: by shard.
    after: the last step whose rows that left are needed now; `NEVER` where none are.
    """

    number: int
    moves: tuple[Moves, ...]
    after: int


class CachePlan:
    """The caches of one table, a shard each: which slot has which row, step by step."""

    def __init__(self, total: int, slots: int, shards: int = 1) -> None:
        """total: rows of the table, which the shards cut into even ranges; slots: of each shard's
        cache."""
        self._slots, self._range = slots, total // shards
        # Of each row: 0, it never was in a cache; 1 and more, its slot; less, the step it left at.
        # Zeros, which take no memory until they are written.
        self._state = np.zeros(total, np.int32)
        self._clocks = tuple(_Clock(slots) for _ in range(shards))
        self._number = 0

    def plan(self, rows: np.ndarray) -> Planned:
        """The moves before the next step, which reads `rows`: int `[K]`, ascending and distinct.

        Raises:
          InputError: a shard has more rows in this step than slots.
        """
        number, self._number = self._number, self._number + 1
        rows = rows.astype(np.int64, copy=False)
        edges = np.searchsorted(rows, np.arange(len(self._clocks) + 1) * self._range)
        after, moves = NEVER, []
        for shard, clock in enumerate(self._clocks):
            own = rows[edges[shard]:edges[shard + 1]]
            state = self._state[own].astype(np.int64)
            there = state > 0
            slots, into = state - 1, own[~there]
            left = state[state < 0]
            after = max(after, -2 - int(left.min()) if len(left) else NEVER)
            if len(own) > self._slots:
                raise InputError(f"a step reads {len(own)} rows of one shard, and its cache has "
                                 f"room for {self._slots}; expected a larger table.cache")
            taken, out, out_slots = clock.turn(slots[there], into)
            self._state[out] = -2 - number
            self._state[into] = taken + 1
            slots[~there] = taken
            moves.append(Moves(own, slots, out, out_slots, into, taken))
        return Planned(number, tuple(moves), after)


class _Clock:
    """One cache: the row of each slot, and the hand that looks for victims."""

    def __init__(self, slots: int) -> None:
        self._row = np.full(slots, NEVER, np.int64)
        self._again = np.zeros(slots, bool)  # used since the hand came by
        self._hand, self._filled = 0, 0

    def turn(self, used: np.ndarray, into: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slots for the rows `into`, and (rows, slots) of those that leave; `used` slots stay."""
        self._again[used] = True
        fresh = np.arange(self._filled, min(self._filled + len(into), len(self._row)))
        self._filled += len(fresh)
        out_slots = self._victims(len(into) - len(fresh), used)
        out = self._row[out_slots]
        taken = np.concatenate([fresh, out_slots])
        self._row[taken] = into
        return taken, out, out_slots

    def _victims(self, count: int, used: np.ndarray) -> np.ndarray:
        if not count:
            return np.zeros(0, np.int64)
        now = np.zeros(len(self._row), bool)
        now[used] = True
        busy = now.copy()
        found: list[np.ndarray] = []
        while count:
            ahead = min(len(self._row), max(64, 2 * count))
            window = (self._hand + np.arange(ahead)) % len(self._row)
            free = ~busy[window] & ~self._again[window]
            picked = np.flatnonzero(free)[:count]
            passed = ahead if len(picked) < count else int(picked[-1]) + 1
            self._again[window[:passed]] &= now[window[:passed]]
            busy[window[picked]] = True
            found.append(window[picked])
            count -= len(picked)
            self._hand = (self._hand + passed) % len(self._row)
        return np.concatenate(found)
