"""Read the sources once: count and skip bad rows, code the ids, spill the rest to flat files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import Rows, open_flat, write_flat
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.data.readers import Layout, guess_format, read
from rec_jax.data.vocabulary import Vocabulary
from rec_jax.errors import InputError
from rec_jax.progress import Reporter, Silent

BAD_LINES_KEPT = 5
_EARLY_STOP_ROWS = 1_000_000
MOST_RATINGS = 255
"""Different ratings that are kept: one byte an interaction, and 0 for an unknown one."""
_ROLES = ("user", "item", "time", "rating")


@dataclass
class Counts:
    """What happened to the rows of the sources."""

    rows: int = 0
    blank: int = 0
    bad: int = 0
    below_min_rating: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    bad_lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ingested:
    """rows: in file order, spilled; users, items: the ids by code; ratings: the different ones."""

    rows: Rows
    users: Vocabulary
    items: Vocabulary
    counts: Counts
    ratings: RatingValues


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
    rows = Rows.named(folder, "read", times=columns.time is not None,
                      ratings=columns.rating is not None)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_flat(path)) for path in rows.paths]
        for source in config.sources:
            reporter.advance(0, f"reading {Path(source).name}")
            for frame in _frames(config, source):
                good = _clean(frame, config, counts, source)
                if counts.rows >= _EARLY_STOP_ROWS:
                    check_bad_share(counts, config.max_bad_share)
                parts = [users.encode(good["user"]), items.encode(good["item"])]
                if rows.times:
                    parts.append(good["time"].to_numpy().astype(np.int64, copy=False))
                if rows.ratings:
                    found = good["rating"].cast(pl.Float32).to_numpy()
                    ratings.add(found)
                    parts.append(found)
                for part, file in zip(parts, files, strict=True):
                    write_flat(file, part)
                reporter.advance(frame.height)
    check_bad_share(counts, config.max_bad_share)
    return Ingested(rows, users, items, counts, ratings)


def check_bad_share(counts: Counts, limit: float) -> None:
    """Raises InputError where more than `limit` of the rows are bad."""
    if counts.bad and counts.bad > limit * (counts.rows - counts.blank):
        share = counts.bad / (counts.rows - counts.blank)
        raise InputError(f"{counts.bad} of {counts.rows - counts.blank} rows are bad "
                         f"({share:.1%}; max_bad_share is {limit:.1%}): "
                         f"{'; '.join(counts.bad_lines)}")


def _frames(config: PrepareConfig, source: str) -> Iterator[pl.DataFrame]:
    form = guess_format(source) if config.format == "auto" else config.format
    if form in ("pairs", "lists"):
        if config.columns.time or config.columns.rating:
            raise InputError(f"format {form!r} has neither times nor ratings; "
                             "columns.time and columns.rating must be left out")
        return read(source, form, Layout({}, encoding=config.encoding))
    columns = config.columns
    roles = {"user": columns.user, "item": columns.item,
             **({"time": columns.time} if columns.time else {}),
             **({"rating": columns.rating} if columns.rating else {})}
    return read(source, form, Layout(roles, config.separator, config.quote, config.encoding,
                                     config.names))


def _clean(frame: pl.DataFrame, config: PrepareConfig, counts: Counts, source: str,
           ) -> pl.DataFrame:
    """Rows with user, item and, where mapped, time (int64 seconds); `counts` is added to."""
    roles = [role for role in _ROLES if role in frame.columns]
    counts.rows += frame.height
    extra = "extra" in frame.columns
    if extra:
        height = frame.height
        frame = frame.filter(~pl.all_horizontal(pl.col(*roles, "extra").is_null()))
        counts.blank += height - frame.height
    parsed = frame.select(_parsed(frame[role], role, config.columns, source) for role in roles)
    is_good = pl.all_horizontal(pl.all().is_not_null())
    good = parsed.select(is_good.alias("good"))["good"]
    if extra:
        good &= frame["extra"].is_null()
    if not good.all():
        _count_bad(frame.filter(~good), parsed.filter(~good), roles, config, counts, source)
        parsed = parsed.filter(good)
    if config.filters.min_rating is not None:
        height = parsed.height
        parsed = parsed.filter(pl.col("rating") >= config.filters.min_rating)
        counts.below_min_rating += height - parsed.height
    return parsed


def _parsed(values: pl.Series, role: str, columns: Columns, source: str) -> pl.Series:
    """The field of a role in its final type, null where it is missing or cannot be read."""
    if role == "time":
        return _seconds(values, columns)
    if role == "rating":
        return values.cast(pl.Float64, strict=False).fill_nan(None)
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    if values.dtype.is_float():  # integers with gaps, as pandas writes them
        whole = values.cast(pl.Int64, strict=False)
        if (whole.cast(pl.Float64) != values.cast(pl.Float64).fill_nan(None)).any():
            raise InputError(f"{source}: {role} ids are fractions; expected integers or text")
        return whole
    if values.dtype in (pl.String, pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    raise InputError(f"{source}: {role} ids have type {values.dtype}; expected integers or text")


def _seconds(values: pl.Series, columns: Columns) -> pl.Series:
    """Int64 seconds since 1970, rounded down."""
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
    if values.dtype == pl.String and columns.time_format:
        values = values.str.to_datetime(columns.time_format, strict=False)
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    if isinstance(values.dtype, pl.Datetime):
        unit = values.dtype.time_unit or "us"
        return values.cast(pl.Int64) // per_second[unit]
    divisor = per_second[columns.time_unit]
    if values.dtype != pl.String:
        return _whole(values) // divisor
    whole = values.cast(pl.Int64, strict=False)
    if whole.null_count() > values.null_count():
        whole = whole.zip_with(whole.is_not_null(), _whole(values.cast(pl.Float64, strict=False)))
    whole = whole // divisor
    if whole.null_count() > values.null_count():
        dates = values.str.strip_suffix("Z").str.replace("T", " ").str.to_datetime(
            "%Y-%m-%d %H:%M:%S%.f", strict=False)
        days = values.str.to_datetime("%Y-%m-%d", strict=False)
        dates = dates.zip_with(dates.is_not_null(), days.cast(dates.dtype))
        whole = whole.zip_with(whole.is_not_null(),
                               dates.dt.cast_time_unit("us").cast(pl.Int64) // 1_000_000)
    return whole


def _whole(values: pl.Series) -> pl.Series:
    return values.floor().cast(pl.Int64, strict=False) if values.dtype.is_float() else (
        values.cast(pl.Int64, strict=False))


def _count_bad(raw: pl.DataFrame, parsed: pl.DataFrame, roles: list[str], config: PrepareConfig,
               counts: Counts, source: str) -> None:
    """Name each bad row's first fault. raw, parsed: the bad rows before and after parsing."""
    names = {role: getattr(config.columns, role) for role in roles}
    reason = pl.Series("reason", ["too many fields"]).new_from_index(0, raw.height)
    for role in reversed(roles):
        kind = "time" if role == "time" else "number"
        unreadable = pl.Series([f"{names[role]} is not a {kind}"]).new_from_index(0, raw.height)
        missing = pl.Series([f"no {names[role]}"]).new_from_index(0, raw.height)
        fault = missing.zip_with(raw[role].is_null(), unreadable)
        reason = fault.zip_with(parsed[role].is_null(), reason)
    counts.bad += raw.height
    for text, number in reason.value_counts(sort=True).iter_rows():
        counts.reasons[text] = counts.reasons.get(text, 0) + number
    room = BAD_LINES_KEPT - len(counts.bad_lines)
    lines = zip(raw["line"].head(room), reason.head(room), strict=True)
    counts.bad_lines.extend(f"{Path(source).name}:{line}: {text}" for line, text in lines)
