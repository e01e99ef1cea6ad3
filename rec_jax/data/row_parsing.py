"""Raw rows of a source -> ids, times and ratings; rows that cannot be read are counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from rec_jax.data.file_layout import BLANK
from rec_jax.data.ids import parse_ids
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.records import OPEN_QUOTE
from rec_jax.data.source_files import SourceFile
from rec_jax.data.times import TimeReader
from rec_jax.errors import InputError

MAX_BAD_LINES = 5
"""Bad lines that a report names."""
_ROLES = ("user", "item", "time", "rating", "event", "query")
_OF_INTERACTIONS = ("item", "rating")
"""What a query has not."""


@dataclass
class RowCounts:
    """What happened to the rows of the sources."""

    rows: int = 0
    blank: int = 0
    bad: int = 0
    below_min_rating: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    bad_lines: list[str] = field(default_factory=list)
    example: str = ""

    def add(self, later: RowCounts) -> None:
        """The rows of later files."""
        self.rows += later.rows
        self.blank += later.blank
        self.bad += later.bad
        self.below_min_rating += later.below_min_rating
        for reason, count in later.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.bad_lines += later.bad_lines[:MAX_BAD_LINES - len(self.bad_lines)]
        self.example = self.example or later.example


def parse_rows(frame: pl.DataFrame, config: PrepareConfig, counts: RowCounts, source: SourceFile,
           times: TimeReader | None) -> pl.DataFrame:
    """Rows with user, item and, where mapped, time (int64 ticks); `counts` is added to.

    Where queries are mapped, a row with a text and no item is one: it has `query`, and neither item
    nor rating. All other rows have no `query`.
    """
    roles = [role for role in _ROLES if role in frame.columns]
    counts.rows += frame.height
    has_faults = "fault" in frame.columns and frame["fault"].null_count() < frame.height
    if has_faults:
        height = frame.height
        frame = frame.filter(pl.col("fault").ne_missing(BLANK))
        counts.blank += height - frame.height
    parsed = frame.select(
        times.read(frame[role], source.name) if role == "time" and times
        else _rating(frame[role], config, source) if role == "rating"
        else _text(frame[role], config, source) if role == "query"
        else parse_ids(frame[role], role, source.name) for role in roles)
    if "query" in roles:
        parsed = parsed.with_columns(pl.when(pl.col("item").is_null()).then("query"))
        roles.remove("query")
    lacks = _lacks(parsed, roles)
    good = lacks.select((~pl.any_horizontal(pl.all())).alias("good"))["good"]
    if has_faults:
        good &= frame["fault"].is_null()
    if not good.all():
        _count_bad(frame.filter(~good), lacks.filter(~good), roles, config, counts, source)
        parsed = parsed.filter(good)
    if config.filters.min_rating is not None:
        height = parsed.height
        enough = pl.col("rating") >= config.filters.min_rating
        parsed = parsed.filter(enough | pl.col("query").is_not_null() if "query" in parsed.columns
                               else enough)
        counts.below_min_rating += height - parsed.height
    return parsed


def _lacks(parsed: pl.DataFrame, roles: list[str]) -> pl.DataFrame:
    """Bool by role: whether a row needs one and has none."""
    queries = pl.col("query").is_not_null() if "query" in parsed.columns else pl.lit(False)
    return parsed.select(pl.col(role).is_null() & ~queries if role in _OF_INTERACTIONS
                         else pl.col(role).is_null() for role in roles)


def check_bad_share(counts: RowCounts, config: PrepareConfig) -> None:
    """Raises InputError where more than `max_bad_share` of the rows are bad."""
    limit = config.max_bad_share
    if counts.bad and counts.bad > limit * (counts.rows - counts.blank):
        share = counts.bad / (counts.rows - counts.blank)
        hint = ("; set quote = false if quotes do not enclose fields here, or escape = '\\' if a "
                "backslash stands before quotes" if OPEN_QUOTE in counts.reasons else "")
        raise InputError(f"{counts.bad} of {counts.rows - counts.blank} rows are bad "
                         f"({share:.1%}; max_bad_share is {limit:.1%}): "
                         f"{'; '.join(counts.bad_lines)}{counts.example}{hint}")


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


def _text(values: pl.Series, config: PrepareConfig, source: SourceFile) -> pl.Series:
    """Texts as they stand; null where there is nothing but blanks."""
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if values.dtype not in (pl.String, pl.Null):
        raise InputError(f"{source.name}: {config.columns.query} has type {values.dtype}; expected "
                         "text")
    values = values.cast(pl.String)
    return values.set(values.str.strip_chars() == "", None)


def _count_bad(raw: pl.DataFrame, lacks: pl.DataFrame, roles: list[str], config: PrepareConfig,
               counts: RowCounts, source: SourceFile) -> None:
    """Name each bad row's first fault. raw: the bad rows before parsing; lacks: what each lacks."""
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
        reason = fault.zip_with(lacks[role] & ~unread, reason)
        if role == "time" and not counts.example:
            unparsed = raw[role].filter(lacks[role] & ~nothing & ~unread)
            _keep_example(unparsed, names[role], counts)
    counts.bad += raw.height
    for text, number in reason.value_counts(sort=True).iter_rows():
        counts.reasons[text] = counts.reasons.get(text, 0) + number
    room = MAX_BAD_LINES - len(counts.bad_lines)
    lines = zip(raw["line"].head(room), reason.head(room), strict=True)
    counts.bad_lines.extend(f"{source.name}:{line}: {text}" for line, text in lines)


def _keep_example(unread: pl.Series, name: str, counts: RowCounts) -> None:
    if len(unread):
        counts.example = (f"; {name} is {str(unread[0])[:40]!r} there, expected a number or ISO "
                          "8601 (columns.time_format names another form)")
