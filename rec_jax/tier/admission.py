"""How often an id without a row was seen: exactly, or by a sketch of fixed size.

An id gets a row once it was seen often enough. Until then somebody has to count: `Exact` has an
entry for each id, and forgets those that were not seen for long; `Sketch` is a count-min sketch
(Cormode & Muthukrishnan, 2005), some rows of counters at hashed places, whose smallest one is never
less than the count, and too large by e/width of all counts at most, but for a chance of e^-depth.
It forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from rec_jax.ranges import at_least, check
from rec_jax.tier.id_table import IdTable

_U = np.uint64


@dataclass(frozen=True)
class AdmissionConfig:
    """When an id gets a row.

    count: how often it was seen, this time included; 1: at once.
    by: exact: an entry for each id that waits, 55 bytes; sketch: `depth` rows of `width` counters
      of 4 bytes, which may count too much and never too little.
    width, depth: of a sketch: counters of a row, and rows.
    seed: of the sketch's hashes.
    """

    count: int = 1
    by: Literal["exact", "sketch"] = "exact"
    width: int = 2**20
    depth: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "admission.", count=at_least(1, 2**31 - 1), width=at_least(1, 2**31),
              depth=at_least(1, 16), seed=at_least(0, 2**63 - 1))


class Group(NamedTuple):
    """Distinct ids of a batch, int64 `[n]` each: how often each was seen in it, when last, what it
    is checked by, and its first place in the batch."""

    ids: np.ndarray
    counts: np.ndarray
    last: np.ndarray
    checks: np.ndarray
    first: np.ndarray

    def take(self, places: np.ndarray) -> Group:
        """Some of them."""
        return Group(*(column[places] for column in self))


class Waiting(Protocol):
    """Counts of ids that have no row."""

    def add(self, group: Group) -> Group:
        """Count what is seen now. Returns the ids with how often each was seen in all, and when
        last, as far as that is known."""
        ...

    def known_checks(self, ids: np.ndarray) -> np.ndarray:
        """int64 `[n]`: by what earlier ones of `ids` were checked; 0 where nothing is known."""
        ...

    def admitted(self, ids: np.ndarray) -> None:
        """These have a row now, and wait no more."""
        ...

    def forget(self, before: int) -> None:
        """Forget those that were last seen before the time `before`, if that is known."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What makes the same counts by `restore`."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Be the counts of `arrays`."""
        ...

    @property
    def nbytes(self) -> int: ...


def waiting(config: AdmissionConfig, *, native: bool | None = None) -> Waiting:
    """The counts that `config` asks for."""
    return Exact(native=native) if config.by == "exact" else Sketch(config)


class Exact:
    """Counts of every id that waits."""

    def __init__(self, *, native: bool | None = None) -> None:
        self._table = IdTable(native=native)

    def add(self, group: Group) -> Group:
        """See `Waiting`."""
        rows = self._table.find(group.ids)
        there = rows > 0
        old = rows[there].astype(np.int64)
        self._table.touch(old, group.counts[there], group.last[there])
        counts, last = group.counts.copy(), group.last.copy()
        counts[there], last[there] = self._table.counts[old], self._table.last[old]
        new = group.take(np.flatnonzero(~there))
        self._table.add(new.ids, new.counts, new.last, new.checks)
        return group._replace(counts=counts, last=last)

    def known_checks(self, ids: np.ndarray) -> np.ndarray:
        """See `Waiting`."""
        return self._table.checks[self._table.find(ids)]

    def admitted(self, ids: np.ndarray) -> None:
        """See `Waiting`."""
        self._table.drop(self._table.find(ids).astype(np.int64))

    def forget(self, before: int) -> None:
        """See `Waiting`."""
        live = self._table.live()
        self._table.drop(live[self._table.last[live] < before])

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Waiting`."""
        return self._table.arrays()

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Waiting`."""
        self._table.restore(arrays)

    @property
    def nbytes(self) -> int:
        """See `Waiting`."""
        return self._table.nbytes


class Sketch:
    """A count-min sketch; counters stop at their largest number."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._counts = np.zeros((config.depth, config.width), np.uint32)
        self._seeds = _scatter(np.arange(1, config.depth + 1, dtype=_U)
                               + _scatter(np.array([config.seed + 1], _U)))

    def add(self, group: Group) -> Group:
        """See `Waiting`."""
        limit = np.iinfo(np.uint32).max
        found = np.full(len(group.ids), limit, np.int64)
        for line, places in zip(self._counts, self._places(group.ids), strict=True):
            where, back = np.unique(places, return_inverse=True)
            sums = np.zeros(len(where), np.int64)
            np.add.at(sums, back, group.counts)
            line[where] = np.minimum(line[where] + sums, limit)
            np.minimum(found, line[places], out=found)
        return group._replace(counts=found)

    def known_checks(self, ids: np.ndarray) -> np.ndarray:
        """See `Waiting`; it knows none, and counts two texts with one hash as one."""
        return np.zeros(len(ids), np.int64)

    def admitted(self, ids: np.ndarray) -> None:
        """See `Waiting`; what was counted stays."""

    def forget(self, before: int) -> None:
        """See `Waiting`; it knows no times."""

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Waiting`."""
        return {"sketch": self._counts}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Waiting`."""
        self._counts = np.array(arrays["sketch"], np.uint32).reshape(self._counts.shape)

    @property
    def nbytes(self) -> int:
        """See `Waiting`."""
        return self._counts.nbytes

    def _places(self, ids: np.ndarray) -> list[np.ndarray]:
        bits = np.ascontiguousarray(ids, np.int64).view(_U)
        return [((_scatter(bits ^ seed) >> _U(32)) * _U(self._counts.shape[1])
                 >> _U(32)).astype(np.int64) for seed in self._seeds]


def _scatter(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, uint64 of any shape."""
    x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
    return x ^ (x >> _U(31))
