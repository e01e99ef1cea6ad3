"""Ids that come and go while a table trains: who gets a row, who keeps it, and who lost it.

    observe   a batch of ids with their times -> the row of each; an id that was seen often enough
              gets one, if one is free, and every other reads the shared row, number 0
    barrier   ids that were not seen for long give their rows back, and so do the first to go of
              those that are more than `keep`; their ids are tombstones
    publish   the tombstones since the last version of the table that somebody serves

All of it is a function of the ids and times in their order: no clock, no chance, no mesh. So a run
that is resumed repeats it, and times are those of the data.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rec_jax.errors import InputError
from rec_jax.ranges import above, at_least, check
from rec_jax.tier.admission import AdmissionConfig, Group, waiting
from rec_jax.tier.array_file import read_arrays, write_arrays
from rec_jax.tier.id_table import IdTable, first_to_go

SHARED = 0
"""The row of every id that has none of its own."""
MOST_ROWS = 2**31 - 2**27 - 1


@dataclass(frozen=True)
class DynamicIdsConfig:
    """Ids of a table.

    capacity: rows, besides the shared one.
    keep: share of the capacity that keeps its rows at a barrier, so that others find some before
      the next one.
    age: an id that was last seen longer ago, in the unit of the times, loses its row; none: never.
    first: who goes first where there are too many: the one that was not seen for longest
      ("time"), or that was seen least ("count"); the other one says among equals, and then the id.
    admission: when an id gets a row.
    """

    capacity: int = 2**20
    keep: float = 0.9
    age: int | None = None
    first: Literal["time", "count"] = "time"
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        check(self, "ids.", capacity=at_least(1, MOST_ROWS), keep=above(0, 1),
              age=at_least(1, 2**62))

    @property
    def kept(self) -> int:
        """Rows that are kept at a barrier, at most."""
        return max(1, int(self.keep * self.capacity))


class Seen(NamedTuple):
    """rows: int32 `[n]`, of the ids of a batch; new: int32 `[m]`, rows that were given out now, in
    the order in which their ids came first; ids: int64 `[m]`, whose they are."""

    rows: np.ndarray
    new: np.ndarray
    ids: np.ndarray


class Evicted(NamedTuple):
    """rows: int32 `[n]`, ascending, that are free now; ids: int64 `[n]`, whose they were."""

    rows: np.ndarray
    ids: np.ndarray


class DynamicIds:
    """The ids of one table. `live` is the table of those that have a row."""

    def __init__(self, config: DynamicIdsConfig, *, native: bool | None = None) -> None:
        """native: which kind of map, see `id_map.new_map`; no answer depends on it."""
        self.config = config
        self.live = IdTable(config.capacity, native=native)
        self._waiting = waiting(config.admission, native=native)
        self._gone = np.zeros(0, np.int64)
        self.now: int | None = None

    def find(self, ids: np.ndarray) -> np.ndarray:
        """int32 `[n]`: the rows of `ids` int64 `[n]`, `SHARED` where one has none; nothing
        changes."""
        return self.live.find(ids)

    def observe(self, ids: np.ndarray, times: np.ndarray, checks: np.ndarray | None = None) -> Seen:
        """Count a batch of `ids` int64 `[n]` that were seen at `times` int64 `[n]`.

        checks: int64 `[n]`, of ids that are hashes of texts, see `text_ids`.

        Raises:
          InputError: two texts have one hash; nothing was counted.
        """
        if not len(ids):
            return Seen(*(np.zeros(0, kind) for kind in (np.int32, np.int32, np.int64)))
        checks = np.zeros(len(ids), np.int64) if checks is None else checks
        rows = self.live.find(ids)
        there = rows > 0
        places = np.flatnonzero(~there)
        group = _grouped(ids, times, checks, places)
        self._check(rows, checks, group)
        self._touch(rows[there], times[there])
        self.now = max(int(times.max()), -2**63 if self.now is None else self.now)
        if not len(group.ids):
            return Seen(rows, np.zeros(0, np.int32), np.zeros(0, np.int64))
        group = self._waiting.add(group) if self._counts_apart else group
        admitted = np.flatnonzero(group.counts >= self.config.admission.count)
        admitted = admitted[np.argsort(group.first[admitted])][:self.live.room]
        new = group.take(admitted)
        given = self.live.add(new.ids, new.counts, new.last, new.checks).astype(np.int32)
        if self._counts_apart:
            self._waiting.admitted(new.ids)
        if len(given):
            rows[places] = self.live.find(ids[places])
        return Seen(rows, given, new.ids)

    def barrier(self) -> Evicted:
        """Take the rows of ids that were not seen for long, or that are too many."""
        live, config = self.live.live(), self.config
        goes = np.zeros(len(live), bool)
        if config.age is not None and self.now is not None:
            goes = self.live.last[live] < self.now - config.age
            self._waiting.forget(self.now - config.age)
        stays = np.flatnonzero(~goes)
        over = len(stays) - config.kept
        if over > 0:
            kept = live[stays]
            keys = [self.live.last[kept], self.live.counts[kept]]
            keys = keys if config.first == "time" else keys[::-1]
            goes[stays[first_to_go([*keys, self.live.ids[kept]], over)]] = True
        rows = live[goes]
        ids = self.live.ids[rows]
        if len(rows):
            self.live.drop(rows)
            self._gone = np.union1d(self._gone, ids)
        return Evicted(rows.astype(np.int32), ids)

    def tombstones(self) -> np.ndarray:
        """int64 `[n]`, ascending: ids that lost their rows since the last `publish`, and have none
        again."""
        return self._gone[self.live.find(self._gone) == 0]

    def publish(self) -> np.ndarray:
        """The tombstones of the version that is published now; the next ones begin behind it."""
        found, self._gone = self.tombstones(), np.zeros(0, np.int64)
        return found

    def save(self, path: Path | str) -> None:
        """Write everything to a file, whole or not at all."""
        arrays = {f"live/{name}": array for name, array in self.live.arrays().items()}
        arrays |= {f"waiting/{name}": array for name, array in self._waiting.arrays().items()}
        write_arrays(path, {**arrays, "gone": self._gone}, {
            "config": dataclasses.asdict(self.config), "now": self.now})

    @classmethod
    def load(cls, path: Path | str, config: DynamicIdsConfig | None = None, *,
             native: bool | None = None) -> DynamicIds:
        """What `save` wrote. config: what it must have been, where that is known.

        Raises:
          InputError: no such file, it is damaged, or of another config.
        """
        arrays, about = read_arrays(path)
        kept = _config(about, path)
        if config is not None and json.loads(json.dumps(dataclasses.asdict(config))) != \
                about["config"]:
            raise InputError(f"the ids in {path} were kept by another config: {about['config']}")
        found = cls(kept, native=native)
        found.live.restore(_under("live/", arrays))
        found._waiting.restore(_under("waiting/", arrays))
        found._gone, found.now = arrays["gone"], about["now"]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all ids take."""
        return self.live.nbytes + self._waiting.nbytes + self._gone.nbytes

    @property
    def _counts_apart(self) -> bool:
        """Whether ids without a row are counted; where the first time is enough, none waits."""
        return self.config.admission.count > 1

    def _touch(self, rows: np.ndarray, times: np.ndarray) -> None:
        np.add.at(self.live.counts, rows, 1)
        np.maximum.at(self.live.last, rows, times)

    def _check(self, rows: np.ndarray, checks: np.ndarray, group: Group) -> None:
        """Raises InputError where an id is the hash of two texts."""
        wrong = (rows > 0) & (self.live.checks[rows] != checks)
        known = self._waiting.known_checks(group.ids)
        bad = np.flatnonzero((group.checks == _TWO) | ((known != 0) & (known != group.checks)))
        if wrong.any() or len(bad):
            place = int(np.argmax(wrong)) if wrong.any() else int(group.first[bad[0]])
            raise InputError(f"the text at place {place} of a batch has the hash of another one; "
                             "expected ids as numbers, or another prefix of all texts")


_TWO = -1
"""The check of an id that came with two; `text_ids` gives none that is 0 or -1."""


def _grouped(ids: np.ndarray, times: np.ndarray, checks: np.ndarray, places: np.ndarray) -> Group:
    """The ids at `places`, each once."""
    distinct, first, back, counts = np.unique(ids[places], return_index=True, return_inverse=True,
                                              return_counts=True)
    last = np.full(len(distinct), -2**63, np.int64)
    np.maximum.at(last, back, times[places])
    found = checks[places][first]
    found[back[checks[places] != found[back]]] = _TWO
    return Group(distinct, counts, last, found, places[first])


def _config(about: dict[str, Any], path: Path | str) -> DynamicIdsConfig:
    try:
        kept = dict(about["config"])
        return DynamicIdsConfig(**{**kept, "admission": AdmissionConfig(**kept["admission"])})
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} holds no ids") from None


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items()
            if name.startswith(prefix)}
