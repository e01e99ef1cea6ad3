"""Read the sources once: count and skip bad rows, code the ids, spill the rest to flat files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import (
    NEW,
    InteractionFiles,
    Interactions,
    chunks,
    open_flat,
    read_flat,
    write_flat,
)
from rec_jax.data.file_layout import Layout
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.query_codes import codes_of
from rec_jax.data.readers import guess_format, read
from rec_jax.data.row_parsing import RowCounts, check_bad_share, parse_rows
from rec_jax.data.source_files import SourceFile, files_of
from rec_jax.data.time_units import OUT_OF_RANGE, instant, rescaled
from rec_jax.data.times import TimeReader
from rec_jax.data.vocabulary import Vocabulary
from rec_jax.errors import InputError
from rec_jax.progress import Reporter, Silent

_EARLY_STOP_ROWS = 1_000_000
MOST_RATINGS = 255
"""Different ratings that are kept: one byte an interaction, and 0 for an unknown one."""
MOST_EVENTS = 255
"""Different types of events: one byte an interaction, and 0 for an unknown one."""


@dataclass(frozen=True)
class Known:
    """What rows are appended to. users, items: ids as text, by code; rows: interactions with what
    they were; rated: they have ratings."""

    users: pl.Series
    items: pl.Series
    rows: Iterator[Interactions]
    rated: bool


@dataclass(frozen=True)
class Ingested:
    """rows: in file order, spilled; users, items: the ids by code; ratings: the different ones;
    events: their types, by code - 1, as the rows have them; texts: of the queries among the rows,
    see `rec_jax.data.query_codes`."""

    rows: InteractionFiles
    users: Vocabulary
    items: Vocabulary
    counts: RowCounts
    ratings: RatingValues
    times: Times | None = None
    events: Vocabulary | None = None
    texts: Vocabulary | None = None


@dataclass
class Times:
    """What the times of the rows are. reader: how they were read; first, last: in its ticks."""

    reader: TimeReader
    first: int | None = None
    last: int | None = None

    def about(self) -> dict[str, str]:
        """The first and the last instant as dates, and the unit that was read."""
        if self.first is None or self.last is None:
            return {}
        per_second = self.reader.per_second
        return {"first": instant(self.first, per_second), "last": instant(self.last, per_second),
                "unit": self.reader.kinds}

    def add(self, ticks: pl.Series, spilled: Path, before: int) -> None:
        """Widen the range by `ticks`. Where these are finer than all `before`, in a second, what
        was written to `spilled` becomes as fine."""
        factor = self.reader.per_second // before
        if factor > 1:
            _rescale(spilled, factor)
            if self.first is not None and self.last is not None:
                self.first, self.last = self.first * factor, self.last * factor
        if len(ticks):
            ends = [int(ticks.min()), int(ticks.max())]  # type: ignore[arg-type]
            known = [] if self.first is None or self.last is None else [self.first, self.last]
            self.first, self.last = min(ends + known), max(ends + known)


class RatingValues:
    """The different ratings of a source, as long as there are at most `MOST_RATINGS`."""

    def __init__(self) -> None:
        self._values: npt.NDArray[np.float32] | None = np.zeros(0, np.float32)

    def add(self, ratings: npt.NDArray[np.float32]) -> None:
        if self._values is not None:
            found = np.union1d(self._values, ratings)
            self._values = found if len(found) <= MOST_RATINGS else None

    def join(self, other: RatingValues) -> None:
        """Those of another source too."""
        if other._values is None:
            self._values = None
        else:
            self.add(other._values)

    @property
    def values(self) -> npt.NDArray[np.float32] | None:
        """Rising, f32; None where there are none or too many of them."""
        return self._values if self._values is not None and len(self._values) else None


@dataclass
class Reading:
    """Where rows go as they are read. files: of `rows`, open, in the order of `Interactions`."""

    users: Vocabulary
    items: Vocabulary
    counts: RowCounts
    ratings: RatingValues
    times: Times | None
    rows: InteractionFiles
    files: list[IO[bytes]]
    events: Vocabulary | None = None
    texts: Vocabulary | None = None

    def add(self, part: Interactions, coarser: int = 1) -> None:
        """Rows in global codes. coarser: ticks in a second of the times before them."""
        if part.times is not None and self.times and self.rows.times:
            self.files[2].flush()
            self.times.add(pl.Series(part.times), self.rows.times, coarser)
            self.files[2].seek(0, io.SEEK_END)
        if part.ratings is not None:
            self.ratings.add(part.ratings[part.items >= 0])
        columns = [column for column in part if column is not None]
        for column, file in zip(columns, self.files, strict=True):
            write_flat(file, column)

    def read(self, config: PrepareConfig, source: SourceFile) -> Iterator[int]:
        """All rows of a file; yields how many were read, again and again."""
        if self.times:
            self.times.reader.next_file()
        for frame in frames_of(config, source):
            coarser = self.times.reader.per_second if self.times else 1
            good = parse_rows(frame, config, self.counts, source,
                              self.times.reader if self.times else None)
            self.add(Interactions(
                self.users.encode(good["user"], source.name),
                codes_of(good, self.items, self.texts, source.name),
                good["time"].to_numpy() if self.rows.times else None,
                (good["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
                 if self.rows.ratings else None),
                np.full(len(good), NEW, np.uint8) if self.rows.news else None,
                None if self.events is None else event_codes(
                    self.events, good["event"], config.columns.event, source.name)), coarser)
            yield frame.height

    def finished(self) -> Ingested:
        return Ingested(self.rows, self.users, self.items, self.counts, self.ratings, self.times,
                        self.events, self.texts)


@contextlib.contextmanager
def reading(config: PrepareConfig, folder: Path, known: Known | None = None,
            as_text: bool = False) -> Iterator[Reading]:
    """The state before the first row, with empty files in `folder`.

    known: what the rows are appended to; its rows come first, and its ids have the first codes.
    as_text: ids are taken as text, as they are where rows are appended.
    """
    columns = config.columns
    empty = pl.Series("id", [], pl.String) if as_text else None
    events = None if columns.event is None else Vocabulary("event")
    rows = InteractionFiles.named(
        folder, "read", times=columns.time is not None, news=known is not None,
        ratings=columns.rating is not None and (known is None or known.rated),
        events=events is not None)
    with contextlib.ExitStack() as stack:
        into = Reading(
            Vocabulary("user", known.users if known else empty),
            Vocabulary("item", known.items if known else empty), RowCounts(), RatingValues(),
            Times(TimeReader(columns)) if columns.time is not None else None, rows,
            [stack.enter_context(open_flat(path)) for path in rows.paths], events,
            None if columns.query is None else Vocabulary("query"))
        for old in known.rows if known else ():
            into.add(old)
        yield into


def ingest(config: PrepareConfig, folder: Path, reporter: Reporter | None = None,
           known: Known | None = None) -> Ingested:
    """Read all sources of `config`; the rows go to flat files in `folder`.

    known: see `reading`.

    Raises:
      InputError: an unreadable source, a missing column, too large a share of bad rows.
    """
    reporter = reporter or Silent()
    reporter.begin(None)
    with reading(config, folder, known) as into:
        for source in files_of(config.sources):
            reporter.advance(0, f"reading {source.name}")
            for rows in into.read(config, source):
                if into.counts.rows >= _EARLY_STOP_ROWS:
                    check_bad_share(into.counts, config)
                reporter.advance(rows)
    check_bad_share(into.counts, config)
    return into.finished()


def event_codes(events: Vocabulary, types: pl.Series, column: str | None,
                source: str) -> npt.NDArray[np.uint8]:
    """Codes from 1 of the types of some events.

    Raises:
      InputError: there are too many types.
    """
    codes = events.encode(types.cast(pl.String), source) + 1
    if events.size > MOST_EVENTS:
        raise InputError(f"{source}: column {column!r} has more than {MOST_EVENTS} types of "
                         "events; expected a column of few, such as view, cart and purchase")
    return codes.astype(np.uint8)


def _rescale(path: Path, factor: int) -> None:
    """Multiply the int64 numbers of a flat file by `factor`, in place."""
    count = path.stat().st_size // 8
    with path.open("r+b", buffering=0) as file:
        for start, stop in chunks(count):
            ticks = rescaled(pl.Series(read_flat(path, np.int64, start, stop)), factor)
            if ticks.null_count():
                raise InputError(OUT_OF_RANGE)
            file.seek(start * 8)
            write_flat(file, ticks.to_numpy())


def file_format(config: PrepareConfig, source: SourceFile) -> str:
    """The format of a file of interactions."""
    return guess_format(source.path) if config.format == "auto" else config.format


def file_layout(config: PrepareConfig, source: SourceFile, roles: dict[str, str]) -> Layout:
    """How to read columns of a file of interactions."""
    return Layout(roles, config.separator, config.quote, config.encoding, config.names,
                  config.escape, source.constants)


def frames_of(config: PrepareConfig, source: SourceFile) -> Iterator[pl.DataFrame]:
    """The raw rows of a file of interactions; see `rec_jax.data.readers`."""
    form = file_format(config, source)
    columns = config.columns
    if form in ("pairs", "lists") and (columns.time or columns.rating or columns.event
                                       or columns.query):
        raise InputError(f"format {form!r} has neither times nor ratings nor types of events nor "
                         "queries; columns.time, columns.rating, columns.event and columns.query "
                         "must be left out")
    roles = {"user": columns.user, "item": columns.item,
             **({"time": columns.time} if columns.time else {}),
             **({"rating": columns.rating} if columns.rating else {}),
             **({"event": columns.event} if columns.event else {}),
             **({"query": columns.query} if columns.query else {})}
    return read(source.path, form, file_layout(config, source, roles))
