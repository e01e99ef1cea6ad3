"""Read the sources once: count and skip bad rows, code the ids, spill the rest to flat files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from rec_jax.data.readers import guess_format, read
from rec_jax.data.row_parsing import RowCounts, check_bad_share, parse_rows
from rec_jax.data.source_files import SourceFile, files_of
from rec_jax.data.time_units import instant, rescaled
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
    events: their types, by code - 1, as the rows have them."""

    rows: InteractionFiles
    users: Vocabulary
    items: Vocabulary
    counts: RowCounts
    ratings: RatingValues
    times: Times | None = None
    events: Vocabulary | None = None


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

    @property
    def values(self) -> npt.NDArray[np.float32] | None:
        """Rising, f32; None where there are none or too many of them."""
        return self._values if self._values is not None and len(self._values) else None


def ingest(config: PrepareConfig, folder: Path, reporter: Reporter | None = None,
           known: Known | None = None) -> Ingested:
    """Read all sources of `config`; the rows go to flat files in `folder`.

    known: what the rows are appended to; its rows come first, and its ids have the first codes.

    Raises:
      InputError: an unreadable source, a missing column, too large a share of bad rows.
    """
    columns = config.columns
    reporter = reporter or Silent()
    reporter.begin(None)
    users = Vocabulary("user", known.users if known else None)
    items = Vocabulary("item", known.items if known else None)
    counts = RowCounts()
    ratings = RatingValues()
    times = Times(TimeReader(columns)) if columns.time is not None else None
    events = None if columns.event is None else Vocabulary("event")
    rows = InteractionFiles.named(
        folder, "read", times=columns.time is not None, news=known is not None,
        ratings=columns.rating is not None and (known is None or known.rated),
        events=events is not None)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_flat(path)) for path in rows.paths]
        for old in known.rows if known else ():
            if old.times is not None and times and rows.times:
                times.add(pl.Series(old.times), rows.times, before=1)
            if old.ratings is not None:
                ratings.add(old.ratings)
            for part, file in zip([part for part in old if part is not None], files, strict=True):
                write_flat(file, part)
        for source in files_of(config.sources):
            reporter.advance(0, f"reading {source.name}")
            if times:
                times.reader.next_file()
            for frame in _frames(config, source):
                coarser = times.reader.per_second if times else 1
                good = parse_rows(frame, config, counts, source, times.reader if times else None)
                if counts.rows >= _EARLY_STOP_ROWS:
                    check_bad_share(counts, config)
                parts: list[npt.NDArray[Any]] = [users.encode(good["user"], source.name),
                                                 items.encode(good["item"], source.name)]
                if times and rows.times:
                    files[2].flush()
                    times.add(good["time"], rows.times, coarser)
                    files[2].seek(0, io.SEEK_END)
                    parts.append(good["time"].to_numpy())
                if rows.ratings:
                    found = good["rating"].cast(pl.Float32).to_numpy()
                    ratings.add(found)
                    parts.append(found)
                if rows.news:
                    parts.append(np.full(len(good), NEW, np.uint8))
                if events is not None:
                    parts.append(_event_codes(events, good["event"], columns.event, source.name))
                for part, file in zip(parts, files, strict=True):
                    write_flat(file, part)
                reporter.advance(frame.height)
    check_bad_share(counts, config)
    return Ingested(rows, users, items, counts, ratings, times, events)


def _event_codes(events: Vocabulary, types: pl.Series, column: str | None,
                 source: str) -> npt.NDArray[np.uint8]:
    """Codes from 1 of the types of some events."""
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
                raise InputError("some times have nanoseconds, and others are outside the years "
                                 "1678 to 2261, which int64 nanoseconds cannot hold; expected "
                                 "coarser times, or dates within these years")
            file.seek(start * 8)
            write_flat(file, ticks.to_numpy())


def file_format(config: PrepareConfig, source: SourceFile) -> str:
    """The format of a file of interactions."""
    return guess_format(source.path) if config.format == "auto" else config.format


def file_layout(config: PrepareConfig, source: SourceFile, roles: dict[str, str]) -> Layout:
    """How to read columns of a file of interactions."""
    return Layout(roles, config.separator, config.quote, config.encoding, config.names,
                  config.escape, source.constants)


def _frames(config: PrepareConfig, source: SourceFile) -> Iterator[pl.DataFrame]:
    form = file_format(config, source)
    columns = config.columns
    if form in ("pairs", "lists") and (columns.time or columns.rating or columns.event):
        raise InputError(f"format {form!r} has neither times nor ratings nor types of events; "
                         "columns.time, columns.rating and columns.event must be left out")
    roles = {"user": columns.user, "item": columns.item,
             **({"time": columns.time} if columns.time else {}),
             **({"rating": columns.rating} if columns.rating else {}),
             **({"event": columns.event} if columns.event else {})}
    return read(source.path, form, file_layout(config, source, roles))
