"""Read the sources once: count and skip bad rows, code the ids, spill the rest to flat files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import Rows, chunks, open_flat, read_flat, write_flat
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.readers import BLANK, Layout, guess_format, read
from rec_jax.data.records import OPEN_QUOTE
from rec_jax.data.source_files import SourceFile, source_files
from rec_jax.data.times import TimeReader, instant, rescaled
from rec_jax.data.vocabulary import Vocabulary
from rec_jax.errors import InputError
from rec_jax.progress import Reporter, Silent

BAD_LINES_KEPT = 5
_EARLY_STOP_ROWS = 1_000_000
MOST_RATINGS = 255
"""Different ratings that are kept: one byte an interaction, and 0 for an unknown one."""
_ROLES = ("user", "item", "time", "rating")
_EXACT_BITS: dict[type[pl.DataType], int] = {pl.Float64: 53, pl.Float32: 24}
"""Whole numbers of up to so many bits are told apart by floats."""


@dataclass
class Counts:
    """What happened to the rows of the sources."""

    rows: int = 0
    blank: int = 0
    bad: int = 0
    below_min_rating: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    bad_lines: list[str] = field(default_factory=list)
    example: str = ""


@dataclass(frozen=True)
class Ingested:
    """rows: in file order, spilled; users, items: the ids by code; ratings: the different ones."""

    rows: Rows
    users: Vocabulary
    items: Vocabulary
    counts: Counts
    ratings: RatingValues
    times: Times | None = None


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


def ingest(config: PrepareConfig, folder: Path, reporter: Reporter | None = None) -> Ingested:
    """Read all sources of `config`; the rows go to flat files in `folder`.

    Raises:
      InputError: an unreadable source, a missing column, too large a share of bad rows.
    """
    columns = config.columns
    reporter = reporter or Silent()
    reporter.begin(None)
    users, items, counts = Vocabulary("user"), Vocabulary("item"), Counts()
    ratings = RatingValues()
    times = Times(TimeReader(columns)) if columns.time is not None else None
    rows = Rows.named(folder, "read", times=columns.time is not None,
                      ratings=columns.rating is not None)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_flat(path)) for path in rows.paths]
        for source in (file for name in config.sources for file in source_files(name)):
            reporter.advance(0, f"reading {source.name}")
            if times:
                times.reader.next_file()
            for frame in _frames(config, source):
                before = times.reader.per_second if times else 1
                good = _clean(frame, config, counts, source, times.reader if times else None)
                if counts.rows >= _EARLY_STOP_ROWS:
                    check_bad_share(counts, config)
                parts = [users.encode(good["user"], source.name),
                         items.encode(good["item"], source.name)]
                if times and rows.times:
                    files[2].flush()
                    times.add(good["time"], rows.times, before)
                    files[2].seek(0, io.SEEK_END)
                    parts.append(good["time"].to_numpy())
                if rows.ratings:
                    found = good["rating"].cast(pl.Float32).to_numpy()
                    ratings.add(found)
                    parts.append(found)
                for part, file in zip(parts, files, strict=True):
                    write_flat(file, part)
                reporter.advance(frame.height)
    check_bad_share(counts, config)
    return Ingested(rows, users, items, counts, ratings, times)


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


def check_bad_share(counts: Counts, config: PrepareConfig) -> None:
    """Raises InputError where more than `max_bad_share` of the rows are bad."""
    limit = config.max_bad_share
    if counts.bad and counts.bad > limit * (counts.rows - counts.blank):
        share = counts.bad / (counts.rows - counts.blank)
        hint = ("; set quote = false if quotes do not enclose fields here, or escape = '\\' if a "
                "backslash stands before quotes" if OPEN_QUOTE in counts.reasons else "")
        raise InputError(f"{counts.bad} of {counts.rows - counts.blank} rows are bad "
                         f"({share:.1%}; max_bad_share is {limit:.1%}): "
                         f"{'; '.join(counts.bad_lines)}{counts.example}{hint}")


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
    if form in ("pairs", "lists") and (columns.time or columns.rating):
        raise InputError(f"format {form!r} has neither times nor ratings; "
                         "columns.time and columns.rating must be left out")
    roles = {"user": columns.user, "item": columns.item,
             **({"time": columns.time} if columns.time else {}),
             **({"rating": columns.rating} if columns.rating else {})}
    return read(source.path, form, file_layout(config, source, roles))


def _clean(frame: pl.DataFrame, config: PrepareConfig, counts: Counts, source: SourceFile,
           times: TimeReader | None) -> pl.DataFrame:
    """Rows with user, item and, where mapped, time (int64 ticks); `counts` is added to."""
    roles = [role for role in _ROLES if role in frame.columns]
    counts.rows += frame.height
    fault = "fault" in frame.columns and frame["fault"].null_count() < frame.height
    if fault:
        height = frame.height
        frame = frame.filter(pl.col("fault").ne_missing(BLANK))
        counts.blank += height - frame.height
    parsed = frame.select(
        times.read(frame[role], source.name) if role == "time" and times
        else _rating(frame[role], config, source) if role == "rating"
        else _ids(frame[role], role, source.name) for role in roles)
    good = parsed.select(pl.all_horizontal(pl.all().is_not_null()).alias("good"))["good"]
    if fault:
        good &= frame["fault"].is_null()
    if not good.all():
        _count_bad(frame.filter(~good), parsed.filter(~good), roles, config, counts, source)
        parsed = parsed.filter(good)
    if config.filters.min_rating is not None:
        height = parsed.height
        parsed = parsed.filter(pl.col("rating") >= config.filters.min_rating)
        counts.below_min_rating += height - parsed.height
    return parsed


def _ids(values: pl.Series, role: str, source: str) -> pl.Series:
    """Int64, Int128 (where the column can hold more than int64) or text; null where empty."""
    kind = values.dtype
    if isinstance(kind, pl.Decimal):
        whole = values.cast(pl.Int128, strict=False)
        if (whole.cast(pl.String) != values.cast(pl.String).str.replace(r"\.0*$", "")).any():
            raise InputError(f"{source}: {role} ids are fractions; expected whole numbers "
                             "or text")
        return _narrow(whole, role, source)
    if kind.is_integer():
        return _narrow(values, role, source)
    if kind.is_float():  # integers with gaps, as pandas writes them
        bits = _EXACT_BITS.get(type(kind), 11)
        values = values.cast(pl.Float64).fill_nan(None)
        if (values.abs() >= 2.0**bits).any():
            raise InputError(f"{source}: {role} ids are floats of 2^{bits} or more, which are not "
                             "told apart; expected integers or text")
        whole = values.cast(pl.Int64, strict=False)
        if (whole.cast(pl.Float64) != values).any():
            raise InputError(f"{source}: {role} ids are fractions; expected integers or text")
        return whole
    if isinstance(kind, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        empty = values == ""
        return values.set(empty, None) if empty.any() else values
    if kind == pl.Null:
        return values.cast(pl.String)
    raise InputError(f"{source}: {role} ids have type {kind}; expected integers or text")


def id_text(values: pl.Series, source: str) -> pl.Series:
    """Ids of items in another file, as text: equal where those of the interactions are.

    Raises:
      InputError: ids of a type that none have.
    """
    return _ids(values, "item", source).cast(pl.String)


def _narrow(whole: pl.Series, role: str, source: str) -> pl.Series:
    if whole.dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return whole.cast(pl.Int64)
    narrow = whole.cast(pl.Int64, strict=False)
    if narrow.null_count() == whole.null_count():
        return narrow
    wide = whole.cast(pl.Int128, strict=False)
    if wide.null_count() > whole.null_count():
        raise InputError(f"{source}: {role} ids are numbers above 2^127; expected smaller ones, "
                         "or text")
    return wide


def _rating(values: pl.Series, config: PrepareConfig, source: SourceFile) -> pl.Series:
    """Float64; null where there is no finite number."""
    kind = values.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    elif not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
        raise InputError(f"{source.name}: {config.columns.rating} has type {kind}; expected "
                         "numbers")
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _count_bad(raw: pl.DataFrame, parsed: pl.DataFrame, roles: list[str], config: PrepareConfig,
               counts: Counts, source: SourceFile) -> None:
    """Name each bad row's first fault. raw, parsed: the bad rows before and after parsing."""
    names = {role: getattr(config.columns, role) for role in roles}
    reason = (raw["fault"] if "fault" in raw.columns else
              pl.Series([None], dtype=pl.String).new_from_index(0, raw.height)).alias("reason")
    unread = reason.is_not_null() & pl.Series(raw.select(
        pl.all_horizontal(pl.col(*roles).is_null())).to_series())
    for role in reversed(roles):
        kind = "time" if role == "time" else "number"
        unreadable = pl.Series([f"{names[role]} is not a {kind}"]).new_from_index(0, raw.height)
        missing = pl.Series([f"no {names[role]}"]).new_from_index(0, raw.height)
        nothing = raw[role].is_null()
        if raw[role].dtype == pl.String:
            nothing |= raw[role] == ""
        elif raw[role].dtype.is_float():  # pandas keeps a missing number so
            nothing |= raw[role].is_nan()
        fault = missing.zip_with(nothing, unreadable)
        reason = fault.zip_with(parsed[role].is_null() & ~unread, reason)
        if role == "time" and not counts.example:
            _show_time(raw[role].filter(parsed[role].is_null() & ~nothing & ~unread), names[role],
                       counts)
    counts.bad += raw.height
    for text, number in reason.value_counts(sort=True).iter_rows():
        counts.reasons[text] = counts.reasons.get(text, 0) + number
    room = BAD_LINES_KEPT - len(counts.bad_lines)
    lines = zip(raw["line"].head(room), reason.head(room), strict=True)
    counts.bad_lines.extend(f"{source.name}:{line}: {text}" for line, text in lines)


def _show_time(unread: pl.Series, name: str, counts: Counts) -> None:
    if len(unread):
        counts.example = (f"; {name} is {str(unread[0])[:40]!r} there, expected a number or ISO "
                          "8601 (columns.time_format names another form)")
