"""Negatives drawn over the rows that are live, with what is expected of each draw."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from rec_jax.tier.id_table import IdTable

Draw = Literal["uniform", "count"]


class Drawn(NamedTuple):
    """rows: int32 `[K]`, with repetition; log_expected: f32 `[K]`, log of how often each is
    expected among the K."""

    rows: np.ndarray
    log_expected: np.ndarray


class LiveDraws:
    """Draws from a table of ids.

    uniform: every live row as likely, those too that came in since. count: by how often each id
    was seen, as it was when `refresh` was called last, since a sum over all rows is made then;
    rows that came in since are drawn from the next time on. Before the first refresh, and while
    nobody is live there, draws are uniform.
    """

    def __init__(self, by: Draw) -> None:
        self._by: Draw = by
        self._rows, self._ends = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def refresh(self, table: IdTable) -> None:
        """Count anew. Call it after each barrier: rows that were taken away must not be drawn."""
        if self._by == "count":
            self._rows = table.live()
            self._ends = np.cumsum(table.counts[self._rows])

    def draw(self, table: IdTable, count: int, seed: tuple[int, ...]) -> Drawn:
        """`count` draws, a function of `seed` and of the table. Where no row is live, all are the
        shared one with nothing expected of it: log inf, an empty place."""
        random = np.random.default_rng(seed)
        if not len(table):
            return Drawn(np.zeros(count, np.int32), np.full(count, np.inf, np.float32))
        if not len(self._rows):
            rows = nth_live(table, random.integers(0, len(table), count))
            return Drawn(rows.astype(np.int32),
                         np.full(count, math.log(count / len(table)), np.float32))
        total = int(self._ends[-1])
        places = np.searchsorted(self._ends, random.integers(0, total, count), side="right")
        own = np.diff(self._ends, prepend=0)[places]
        return Drawn(self._rows[places].astype(np.int32),
                     (np.log(own) + math.log(count / total)).astype(np.float32))


def nth_live(table: IdTable, places: np.ndarray) -> np.ndarray:
    """Rows int64 `[n]` at `places` in the ascending order of the live ones; cost follows the free
    rows below the end, not the live ones."""
    free = table.free
    # Before the f-th free row stand free[f] - 1 - f live ones.
    behind = np.searchsorted(free - 1 - np.arange(len(free)), places, side="right")
    return places + 1 + behind
