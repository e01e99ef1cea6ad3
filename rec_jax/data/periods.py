"""Interactions as they came: a file is a period, or is cut into periods by time.

A stream of interactions has no dataset folder: its ids are those of the source, as text, and a
period is read when its turn has come, whole and in the order of its times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl

from rec_jax.data.ingest import frames_of
from rec_jax.data.prepare_config import Columns, Filters, Format, PrepareConfig
from rec_jax.data.row_parsing import RowCounts, check_bad_share, parse_rows
from rec_jax.data.source_files import SourceFile
from rec_jax.data.time_units import OUT_OF_RANGE, instant, rescaled
from rec_jax.data.times import TimeReader
from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check


def _with_times() -> Columns:
    return Columns(time="timestamp")


@dataclass(frozen=True)
class PeriodsConfig:
    """What a stream reads.

    files: files, folders of files or globs, one after the other, each in the order of the names
      of its files; a file is read whole, and is a period.
    seconds: cut a file into periods of so many seconds, counted from 1970: 86400 makes days (UTC)
      of a long one; none: a file is one period.
    columns: time must be among them, rating only where `min_rating` is.
    format, separator, quote, encoding, escape, names: as for `rec-jax prepare`.
    min_rating: interactions below it are dropped.
    max_bad_share: rows that cannot be read are counted and skipped; a larger share of them in one
      file ends the run.
    """

    files: tuple[str, ...] = ()
    seconds: int | None = None
    columns: Columns = field(default_factory=_with_times)
    format: Format = "auto"
    separator: str | None = None
    quote: bool | None = None
    encoding: str = "utf-8"
    escape: str | None = None
    names: tuple[str, ...] = ()
    min_rating: float | None = None
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        check(self, "data.", seconds=at_least(1), max_bad_share=at_least(0, 1))
        if self.columns.time is None:
            raise InputError("data.columns.time is missing; expected the column of the times, by "
                             "which ids of a stream age")
        if self.columns.event is not None:
            raise InputError("data.columns.event: a stream has no types of events; expected none")
        if (self.min_rating is None) != (self.columns.rating is None):
            raise InputError("data.min_rating and data.columns.rating belong together; expected "
                             "both or none of them")
        self.as_prepare("")  # what both have is checked there

    def as_prepare(self, source: str) -> PrepareConfig:
        """How `prepare` is told to read a file so."""
        return PrepareConfig(source, "", self.format, self.columns, self.separator, self.quote,
                             self.encoding, self.escape, self.names,
                             filters=Filters(min_rating=self.min_rating),
                             max_bad_share=self.max_bad_share)


class Period(NamedTuple):
    """name: of its file, and where that is cut when it begins; part: which one of its file.

    users, items: text `[n]`; times: int64 seconds `[n]`, rising.
    """

    name: str
    part: int
    users: pl.Series
    items: pl.Series
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


def periods_of(config: PeriodsConfig, file: SourceFile) -> Iterator[Period]:
    """The periods of a file in their order; interactions of one time keep the order of the file.

    Raises:
      InputError: an unreadable file, a missing column, too large a share of bad rows.
    """
    users, items, times = _read(config, file)
    if config.seconds is None:
        yield Period(file.name, 0, users, items, times)
        return
    spans = times // config.seconds
    edges = [*np.flatnonzero(np.diff(spans, prepend=spans[:1] - 1)).tolist(), len(times)]
    for part, (first, last) in enumerate(itertools.pairwise(edges)):
        begins = instant(int(spans[first]) * config.seconds, 1).removesuffix("T00:00:00Z")
        yield Period(f"{file.name} {begins}", part, users[first:last], items[first:last],
                     times[first:last])


def _read(config: PeriodsConfig, file: SourceFile) -> tuple[pl.Series, pl.Series, np.ndarray]:
    how, counts, reader = config.as_prepare(str(file.path)), RowCounts(), TimeReader(config.columns)
    users, items = [pl.Series("user", [], pl.String)], [pl.Series("item", [], pl.String)]
    ticks: list[tuple[pl.Series, int]] = []
    for frame in frames_of(how, file):
        good = parse_rows(frame, how, counts, file, reader)
        users.append(good["user"].cast(pl.String))
        items.append(good["item"].cast(pl.String))
        ticks.append((good["time"], reader.per_second))
    check_bad_share(counts, how)
    if not sum(len(values) for values, _ in ticks):
        return users[0], items[0], np.zeros(0, np.int64)
    joined = pl.concat([rescaled(values, reader.per_second // own) for values, own in ticks])
    if joined.null_count():
        raise InputError(f"{file.name}: {OUT_OF_RANGE}")
    order = np.argsort(joined.to_numpy(), kind="stable")
    times = joined.to_numpy()[order] // reader.per_second
    return pl.concat(users).gather(order), pl.concat(items).gather(order), times
