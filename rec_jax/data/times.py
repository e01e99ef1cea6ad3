"""Columns of times -> whole numbers of ticks since 1970 (UTC), as fine as the source is.

Ticks are seconds, or milli-, micro- or nanoseconds where the source tells such apart: they order
interactions, and nothing is rounded before that. A time without an offset is one of UTC.

    numbers     in `columns.time_unit`; "auto" finds it where the numbers are of the years
                1990 to 2100 in one unit only, and takes small numbers as seconds
    text        numbers; ISO 8601 with or without fractions and offsets; or `time_format`
    date types  as they are
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.prepare_config import Columns
from rec_jax.data.time_text import longest, parse_format, parse_iso, parse_plain_iso
from rec_jax.data.time_units import DAY_SECONDS, INT64_MAX, PER_SECOND, detect_unit, rescaled
from rec_jax.errors import InputError

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_DECIMAL = r"^([+-]?)(\d+)\.(\d+)$"


class TimeReader:
    """Reads the time column of one job, file by file.

    per_second: ticks in a second, of what was read last; it only grows. notes: lines that say
      which times are coarser than they look.
    """

    def __init__(self, columns: Columns) -> None:
        self.per_second = 1
        self.notes: list[str] = []
        self._columns = columns
        self._unit: str | None = None
        self._kinds: dict[str, None] = {}

    @property
    def kinds(self) -> str:
        """How times were understood, such as "ms" or "ISO 8601"."""
        return ", ".join(self._kinds)

    def next_file(self) -> None:
        """Another file may have another unit, where it is to be found."""
        self._unit = None

    def join(self, other: TimeReader) -> None:
        """What another reader found in later files, as if this one had read them."""
        self.per_second = max(self.per_second, other.per_second)
        self._kinds |= other._kinds
        self.notes = self.notes or other.notes

    def read(self, values: pl.Series, file: str) -> pl.Series:
        """Int64 ticks; null where there is no time.

        Raises:
          InputError: the column is of a type without instants, or its unit cannot be found.
        """
        ticks, per_second = self._ticks(values, file)
        self.per_second = max(self.per_second, per_second)
        return rescaled(ticks, self.per_second // per_second)

    def _ticks(self, values: pl.Series, file: str) -> tuple[pl.Series, int]:
        kind = values.dtype
        if kind.is_float() and not self.notes:
            self._note_coarse(values, file)
        if isinstance(kind, pl.Categorical | pl.Enum | pl.Decimal):
            values = values.cast(pl.String)
        if self._columns.time_format and (values.dtype == pl.String or kind.is_integer()):
            self._kinds[self._columns.time_format] = None
            values = parse_format(values.cast(pl.String), self._columns.time_format)
        elif isinstance(kind, pl.Date | pl.Datetime):
            self._kinds["date" if kind == pl.Date else "datetime"] = None
        if values.dtype == pl.Date:
            return values.cast(pl.Int32).cast(pl.Int64) * DAY_SECONDS, 1
        if isinstance(values.dtype, pl.Datetime):
            return _without_sentinels(values.to_physical()), PER_SECOND[values.dtype.time_unit]
        if values.dtype == pl.String:
            return self._text(values, file)
        if values.dtype.is_integer() or values.dtype.is_float():
            return self._numbers(values, file)
        if values.dtype == pl.Null:
            return pl.Series(values.name, [None] * len(values), pl.Int64), 1
        raise InputError(f"{file}: {self._columns.time} has type {kind}; expected instants: "
                         "dates, numbers or text")

    def _note_coarse(self, values: pl.Series, file: str) -> None:
        """32-bit floats of seconds of today are minutes apart, and 64-bit ones of nanoseconds 256
        of them: what was closer has no order."""
        numbers = values.set(~values.is_finite(), None).drop_nulls().abs().to_numpy()
        if len(numbers) and (apart := np.spacing(numbers.max())) > 1:
            self.notes.append(
                f"{file}: {self._columns.time} is of {numbers.dtype.itemsize * 8}-bit floats, "
                f"which tell such numbers apart by {apart:g}; what came closer together is in "
                "the order of the file")

    def _text(self, values: pl.Series, file: str) -> tuple[pl.Series, int]:
        usual = parse_plain_iso(values)
        if usual is not None:
            self._kinds["ISO 8601"] = None
            return usual, 1
        whole = values.cast(pl.Int64, strict=False)
        parts: list[tuple[pl.Series, int]] = []
        if whole.null_count() < len(values):
            parts.append(self._numbers(whole, file))
        left = whole.is_null() & values.is_not_null()
        if left.any():
            where = left.arg_true()
            text = (values if left.all() else values.gather(where)).str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
            for found, per_second in (*self._fractions(text, numbers, file), parse_iso(text)):
                if found.null_count() < len(found):
                    spread = np.zeros(len(values), np.int64)
                    spread[where.to_numpy()] = found.fill_null(0).to_numpy()
                    known = np.zeros(len(values), bool)
                    known[where.to_numpy()] = found.is_not_null().to_numpy()
                    parts.append((_masked(spread, known), per_second))
                    if found is not numbers and self._is_iso(found, numbers):
                        self._kinds["ISO 8601"] = None
        per_second = max((part[1] for part in parts), default=1)
        result = pl.Series(values.name, [None], pl.Int64).new_from_index(0, len(values))
        for part, own in parts:
            part = rescaled(part, per_second // own)
            result = result.zip_with(result.is_not_null(), part)
        return result, per_second

    @staticmethod
    def _is_iso(found: pl.Series, numbers: pl.Series) -> bool:
        return bool((found.is_not_null() & numbers.is_null()).any())

    def _fractions(self, text: pl.Series, numbers: pl.Series, file: str,
                   ) -> list[tuple[pl.Series, int]]:
        """Ticks of the numbers that are no plain integers: decimals exactly, others as floats."""
        numbers = numbers.set(~numbers.is_finite(), None)
        if numbers.null_count() == len(numbers):
            return []
        unit = self._known_unit(numbers, file)
        if unit == "YYYYMMDD":
            return [self._numbers(numbers, file)]
        groups = text.str.extract_groups(_DECIMAL).struct.unnest()
        sign, whole, fraction = (groups.to_series(index) for index in range(3))
        exact = whole.cast(pl.Int64, strict=False)
        most = 9 - _DIGITS[unit]
        fraction = fraction.str.strip_chars_end("0")
        needed = longest(fraction)
        digits = next(step for step in (0, 3, 6, 9) if step >= min(needed, most))
        part = (fraction.str.slice(0, digits).str.pad_end(digits, "0") if digits
                else fraction.str.slice(0, 0) + "0").cast(pl.Int64, strict=False)
        if not digits:
            part = pl.zeros(len(text), pl.Int64, eager=True)
        scaled = rescaled(exact, 10**digits)
        ticks = (scaled + part) * (1 - 2 * (sign == "-").cast(pl.Int64))
        others = numbers.zip_with(exact.is_null(), pl.Series([None], dtype=pl.Float64)
                                  .new_from_index(0, len(numbers)))
        return [(ticks, PER_SECOND[unit] * 10**digits), self._numbers(others, file)]

    def _numbers(self, values: pl.Series, file: str) -> tuple[pl.Series, int]:
        if values.dtype.is_float():
            values = values.cast(pl.Float64)
            values = values.set(~values.is_finite(), None)
        else:
            values = _without_sentinels(values.cast(pl.Int64, strict=False))
        if values.null_count() == len(values):
            return values.cast(pl.Int64), 1
        unit = self._known_unit(values, file)
        if unit == "YYYYMMDD":
            whole = values.cast(pl.Int64, strict=False)
            whole = whole.set((whole < 1000_01_01) | (whole > 9999_12_31) | (whole != values), None)
            days = whole.cast(pl.String).str.to_date("%Y%m%d", strict=False)
            return days.cast(pl.Int32).cast(pl.Int64) * DAY_SECONDS, 1
        if values.dtype == pl.Int64:
            return values, PER_SECOND[unit]
        if (values == values.floor()).all() or unit == "ns":
            return values.floor().cast(pl.Int64, strict=False), PER_SECOND[unit]
        finer = "us" if unit in ("s", "ms") else "ns"
        ticks = (values * (PER_SECOND[finer] // PER_SECOND[unit])).round()
        return ticks.cast(pl.Int64, strict=False), PER_SECOND[finer]

    def _known_unit(self, values: pl.Series, file: str) -> str:
        """The unit that is given, or that the first numbers of the file show."""
        if self._columns.time_unit != "auto":
            unit: str = self._columns.time_unit
        else:
            unit = detect_unit(values, self._unit, f"{file}: {self._columns.time}")
            self._unit = unit
        self._kinds[unit] = None
        return unit


def _without_sentinels(ticks: pl.Series) -> pl.Series:
    """The ends of int64 stand for no time, as NumPy's NaT does."""
    low, high = ticks.min(), ticks.max()
    if low == -INT64_MAX - 1 or high == INT64_MAX:
        return ticks.set((ticks == -INT64_MAX - 1) | (ticks == INT64_MAX), None)
    return ticks


def _masked(values: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> pl.Series:
    return pl.Series(values).set(pl.Series(~known), None)
