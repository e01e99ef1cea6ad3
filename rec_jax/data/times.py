"""Columns of times -> whole numbers of ticks since 1970 (UTC), as fine as the source is.

Ticks are seconds, or milli-, micro- or nanoseconds where the source tells such apart: they order
interactions, and nothing is rounded before that. A time without an offset is one of UTC.

    numbers     in `columns.time_unit`; "auto" finds it where the numbers are of the years
                1990 to 2100 in one unit only, and takes small numbers as seconds
    text        numbers; ISO 8601 with or without fractions and offsets; or `time_format`
    date types  as they are
"""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.prepare_config import Columns
from rec_jax.errors import InputError

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_DAY = 86_400
_PIECE = 1 << 18
_PLAUSIBLE = (631_152_000, 4_102_444_800)  # seconds: 1990 to 2100
_LIMIT = 2**63 - 1
_ISO = (r"^(\d{4})-?(\d\d)-?(\d\d)"
        r"(?:[Tt ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9})\d*)?)?)?"
        r"(?: ?([Zz]|UTC|GMT)| ?([+-])(\d\d):?(\d\d)?)?)?$")
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

    def read(self, values: pl.Series, source: str) -> pl.Series:
        """Int64 ticks; null where there is no time.

        Raises:
          InputError: the column is of a type without instants, or its unit cannot be found.
        """
        ticks, per_second = self._ticks(values, source)
        self.per_second = max(self.per_second, per_second)
        return rescaled(ticks, self.per_second // per_second)

    def _ticks(self, values: pl.Series, source: str) -> tuple[pl.Series, int]:
        kind = values.dtype
        if kind == pl.Float32 and not self.notes:
            self._note_coarse(values, source)
        if isinstance(kind, pl.Categorical | pl.Enum | pl.Decimal):
            values = values.cast(pl.String)
        if self._columns.time_format and (values.dtype == pl.String or kind.is_integer()):
            self._kinds[self._columns.time_format] = None
            values = _formatted(values.cast(pl.String), self._columns.time_format)
        elif isinstance(kind, pl.Date | pl.Datetime):
            self._kinds["date" if kind == pl.Date else "datetime"] = None
        if values.dtype == pl.Date:
            return values.cast(pl.Int32).cast(pl.Int64) * _DAY, 1
        if isinstance(values.dtype, pl.Datetime):
            return _without_sentinels(values.to_physical()), PER_SECOND[values.dtype.time_unit]
        if values.dtype == pl.String:
            return self._text(values, source)
        if values.dtype.is_integer() or values.dtype.is_float():
            return self._numbers(values, source)
        if values.dtype == pl.Null:
            return pl.Series(values.name, [None] * len(values), pl.Int64), 1
        raise InputError(f"{source}: {self._columns.time} has type {kind}; expected instants: "
                         "dates, numbers or text")

    def _note_coarse(self, values: pl.Series, source: str) -> None:
        """32-bit floats of times of today are minutes apart: what was closer has no order."""
        numbers = values.set(~values.is_finite(), None).drop_nulls().abs().to_numpy()
        if len(numbers) and numbers.max() >= 2**24:
            self.notes.append(
                f"{source}: {self._columns.time} is of 32-bit floats, which tell such numbers "
                f"apart by {np.spacing(numbers.max()):g}; what came closer together is in the "
                "order of the file")

    def _text(self, values: pl.Series, source: str) -> tuple[pl.Series, int]:
        usual = _usual_iso(values)
        if usual is not None:
            self._kinds["ISO 8601"] = None
            return usual, 1
        whole = values.cast(pl.Int64, strict=False)
        parts: list[tuple[pl.Series, int]] = []
        if whole.null_count() < len(values):
            parts.append(self._numbers(whole, source))
        left = whole.is_null() & values.is_not_null()
        if left.any():
            where = left.arg_true()
            text = (values if left.all() else values.gather(where)).str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
            for found, per_second in (*self._fractions(text, numbers, source), _iso(text)):
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

    def _fractions(self, text: pl.Series, numbers: pl.Series, source: str,
                   ) -> list[tuple[pl.Series, int]]:
        """Ticks of the numbers that are no plain integers: decimals exactly, others as floats."""
        numbers = numbers.set(~numbers.is_finite(), None)
        if numbers.null_count() == len(numbers):
            return []
        unit = self._known_unit(numbers, source)
        if unit == "YYYYMMDD":
            return [self._numbers(numbers, source)]
        groups = text.str.extract_groups(_DECIMAL).struct.unnest()
        sign, whole, fraction = (groups.to_series(index) for index in range(3))
        exact = whole.cast(pl.Int64, strict=False)
        most = 9 - _DIGITS[unit]
        fraction = fraction.str.strip_chars_end("0")
        needed = _longest(fraction)
        digits = next(step for step in (0, 3, 6, 9) if step >= min(needed, most))
        part = (fraction.str.slice(0, digits).str.pad_end(digits, "0") if digits
                else fraction.str.slice(0, 0) + "0").cast(pl.Int64, strict=False)
        if not digits:
            part = pl.zeros(len(text), pl.Int64, eager=True)
        scaled = rescaled(exact, 10**digits)
        ticks = (scaled + part) * (1 - 2 * (sign == "-").cast(pl.Int64))
        others = numbers.zip_with(exact.is_null(), pl.Series([None], dtype=pl.Float64)
                                  .new_from_index(0, len(numbers)))
        return [(ticks, PER_SECOND[unit] * 10**digits), self._numbers(others, source)]

    def _numbers(self, values: pl.Series, source: str) -> tuple[pl.Series, int]:
        if values.dtype.is_float():
            values = values.cast(pl.Float64)
            values = values.set(~values.is_finite(), None)
        else:
            values = _without_sentinels(values.cast(pl.Int64, strict=False))
        if values.null_count() == len(values):
            return values.cast(pl.Int64), 1
        unit = self._known_unit(values, source)
        if unit == "YYYYMMDD":
            whole = values.cast(pl.Int64, strict=False)
            whole = whole.set((whole < 1000_01_01) | (whole > 9999_12_31) | (whole != values), None)
            days = whole.cast(pl.String).str.to_date("%Y%m%d", strict=False)
            return days.cast(pl.Int32).cast(pl.Int64) * _DAY, 1
        if values.dtype == pl.Int64:
            return values, PER_SECOND[unit]
        if (values == values.floor()).all() or unit == "ns":
            return values.floor().cast(pl.Int64, strict=False), PER_SECOND[unit]
        finer = "us" if unit in ("s", "ms") else "ns"
        ticks = (values * (PER_SECOND[finer] // PER_SECOND[unit])).round()
        return ticks.cast(pl.Int64, strict=False), PER_SECOND[finer]

    def _known_unit(self, values: pl.Series, source: str) -> str:
        """The unit that is given, or that the first numbers of the file show."""
        if self._columns.time_unit != "auto":
            unit: str = self._columns.time_unit
        else:
            unit = found_unit(values, self._unit, f"{source}: {self._columns.time}")
            self._unit = unit
        self._kinds[unit] = None
        return unit


def found_unit(values: pl.Series, before: str | None, name: str) -> str:
    """The unit of numeric times, without nulls or with.

    before: what earlier numbers of the same file showed. name: of the column, for messages.

    Raises:
      InputError: no unit fits, or several do.
    """
    numbers = values.drop_nulls().to_numpy()
    numbers = numbers[numbers != 0]  # these can be of any unit
    if not len(numbers):
        return before or "s"
    size = np.abs(numbers.astype(np.float64))
    low, high = _PLAUSIBLE
    if before in PER_SECOND:
        scale = PER_SECOND[before]
        if low * scale <= size.min() and size.max() < high * scale:
            return before
    shares = {unit: float(np.mean((size >= low * scale) & (size < high * scale)))
              for unit, scale in PER_SECOND.items()}
    fitting = [unit for unit, share in shares.items() if share]
    ask = 'set columns.time_unit to "s", "ms", "us", "ns" or "YYYYMMDD"'
    if len(fitting) > 1 or (fitting and before and before not in fitting):
        kinds = " and ".join(dict.fromkeys([*([before] if before else []), *fitting]))
        raise InputError(f"{name} has numbers that look like {kinds} of the years 1990 to 2100; "
                         f"{ask}")
    if before and (not fitting or fitting == [before]):
        return before
    if fitting and (shares[fitting[0]] >= 0.5 or fitting[0] == "s"):
        return fitting[0]
    if float(np.mean(_are_days(size))) >= 0.5:
        return "YYYYMMDD"
    if float(np.mean(size < low)) >= 0.5:
        return "s"
    raise InputError(f"{name} has numbers such as {numbers[0]}, which are of no year from "
                     f"1990 to 2100 in any unit; {ask}")


def _are_days(size: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    day, month = size % 100, size // 100 % 100
    return ((size >= 1900_01_01) & (size < 2101_00_00) & (size == np.floor(size))
            & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31))


def rescaled(ticks: pl.Series, factor: int) -> pl.Series:
    """`ticks` times `factor`; null where that leaves 64 bits."""
    if factor == 1:
        return ticks
    limit = _LIMIT // factor
    return ticks.set((ticks > limit) | (ticks < -limit), None) * factor


def instant(ticks: int, per_second: int) -> str:
    """An instant as ISO 8601 in UTC, with as many decimals as it needs, up to microseconds."""
    seconds, rest = divmod(ticks, per_second)
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(
            seconds=seconds, microseconds=rest * 1_000_000 // per_second)
    except OverflowError:
        return f"{seconds} seconds after 1970"
    return moment.isoformat(timespec="auto") + "Z"


def _without_sentinels(ticks: pl.Series) -> pl.Series:
    """The ends of int64 stand for no time, as NumPy's NaT does."""
    low, high = ticks.min(), ticks.max()
    if low == -_LIMIT - 1 or high == _LIMIT:
        return ticks.set((ticks == -_LIMIT - 1) | (ticks == _LIMIT), None)
    return ticks


def _longest(text: pl.Series) -> int:
    sizes = text.str.len_chars().drop_nulls()
    return int(sizes.to_numpy().max()) if len(sizes) else 0


def _masked(values: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> pl.Series:
    return pl.Series(values).set(pl.Series(~known), None)


def _formatted(text: pl.Series, form: str) -> pl.Series:
    """Datetimes of a `strptime` format; fractions of seconds keep all their digits."""
    try:
        found = text.str.to_datetime(form, strict=False)
        if isinstance(found.dtype, pl.Datetime) and _may_be_finer(text, form):
            fine = text.str.to_datetime(form, strict=False, time_unit="ns")
            back = fine.dt.cast_time_unit("us")
            if (back == found).all():  # else a date is out of the range of nanoseconds
                return fine
    except pl.exceptions.PolarsError as error:
        cause = str(error).splitlines()[0]
        raise InputError(f"columns.time_format = {form!r} cannot be used ({cause}); expected "
                         "codes such as %Y-%m-%d %H:%M:%S%.f") from None
    return found


def _may_be_finer(text: pl.Series, form: str) -> bool:
    return ("f" in form.lower().replace("%f", "%.f") and "%" in form
            and bool(text.str.contains(r"[.,]\d{6}[1-9]|[.,]\d{7}[1-9]|[.,]\d{8}[1-9]").any()))


def _usual_iso(text: pl.Series) -> pl.Series | None:
    """Seconds, where all is of the form 2024-01-31 12:30:00 (or with a T): many are, and there is
    a short way. None elsewhere."""
    first = text[0] if len(text) else None
    if not isinstance(first, str) or len(first) != 19 or first[4] != "-":
        return None
    sizes = text.str.len_bytes()
    if sizes.min() != 19 or sizes.max() != 19:
        return None
    found = text.str.to_datetime(f"%Y-%m-%d{'T' if first[10] == 'T' else ' '}%H:%M:%S",
                                 strict=False, time_unit="ms")
    return None if found.null_count() > text.null_count() else found.to_physical() // 1_000


def _iso(text: pl.Series) -> tuple[pl.Series, int]:
    """`_iso_part`, piece by piece, since the groups of the expression take much memory."""
    pieces = [_iso_part(text.slice(start, _PIECE)) for start in range(0, len(text), _PIECE)]
    per_second = max(own for _, own in pieces)
    return pl.concat([rescaled(found, per_second // own) for found, own in pieces]), per_second


def _iso_part(text: pl.Series) -> tuple[pl.Series, int]:
    """Ticks of ISO 8601 dates, with or without time of day, fraction and offset.

    Also in it: a space for the `T`, `UTC` for the `Z`, and a second 60, which is the next
    minute's first.
    """
    groups = text.str.extract_groups(_ISO).struct.unnest()
    names = ("year", "month", "day", "hour", "minute", "second", "fraction", "zone", "sign",
             "ahead", "minutes_ahead")
    frame = groups.rename(dict(zip(groups.columns, names, strict=True)))
    number = {name: pl.col(name).cast(pl.Int32, strict=False).fill_null(0)
              for name in ("hour", "minute", "second", "ahead", "minutes_ahead")}
    day = pl.concat_str(["year", "month", "day"]).str.to_date("%Y%m%d", strict=False)
    midnight = (number["hour"] == 24) & (number["minute"] == 0) & (number["second"] == 0)
    valid = (day.is_not_null() & ((number["hour"] < 24) | midnight) & (number["minute"] < 60)
             & (number["second"] <= 60) & (number["ahead"] <= 18)
             & (number["minutes_ahead"] < 60))
    ahead = (number["ahead"] * 60 + number["minutes_ahead"]) * 60
    seconds = (day.cast(pl.Int32).cast(pl.Int64) * _DAY + number["hour"] * 3_600
               + number["minute"] * 60 + number["second"]
               - pl.when(pl.col("sign") == "-").then(-ahead).otherwise(ahead))
    found = frame.select(pl.when(valid).then(seconds).alias("seconds"))["seconds"]
    fraction = frame["fraction"].str.strip_chars_end("0")
    needed = _longest(fraction)
    if not needed:
        return found, 1
    digits = next(step for step in (3, 6, 9) if step >= needed)
    part = fraction.str.pad_end(digits, "0").cast(pl.Int64, strict=False).fill_null(0)
    return rescaled(found, 10**digits) + part, 10**digits
