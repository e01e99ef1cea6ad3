"""Times as text: ISO 8601, or a `strptime` format; a time without an offset is in UTC."""

from __future__ import annotations

import polars as pl

from rec_jax.data.time_units import DAY_SECONDS, rescaled
from rec_jax.errors import InputError

_BLOCK_ROWS = 1 << 18
_ISO = (r"^(\d{4})-?(\d\d)-?(\d\d)"
        r"(?:[Tt ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9})\d*)?)?)?"
        r"(?: ?([Zz]|UTC|GMT)| ?([+-])(\d\d):?(\d\d)?)?)?$")


def longest(text: pl.Series) -> int:
    """Characters of the longest text; 0 where there is none."""
    sizes = text.str.len_chars().drop_nulls()
    return int(sizes.to_numpy().max()) if len(sizes) else 0


def parse_format(text: pl.Series, form: str) -> pl.Series:
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


def parse_plain_iso(text: pl.Series) -> pl.Series | None:
    """Seconds, if all texts have the form 2024-01-31 12:30:00 (or with a T), which is common and is
    parsed faster; else None."""
    first = text[0] if len(text) else None
    if not isinstance(first, str) or len(first) != 19 or first[4] != "-":
        return None
    sizes = text.str.len_bytes()
    if sizes.min() != 19 or sizes.max() != 19:
        return None
    found = text.str.to_datetime(f"%Y-%m-%d{'T' if first[10] == 'T' else ' '}%H:%M:%S",
                                 strict=False, time_unit="ms")
    return None if found.null_count() > text.null_count() else found.to_physical() // 1_000


def parse_iso(text: pl.Series) -> tuple[pl.Series, int]:
    """`_parse_iso_block`, block by block, since the groups of the expression take much memory."""
    blocks = [_parse_iso_block(text.slice(start, _BLOCK_ROWS))
              for start in range(0, len(text), _BLOCK_ROWS)]
    per_second = max(own for _, own in blocks)
    return pl.concat([rescaled(found, per_second // own) for found, own in blocks]), per_second


def _parse_iso_block(text: pl.Series) -> tuple[pl.Series, int]:
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
    seconds = (day.cast(pl.Int32).cast(pl.Int64) * DAY_SECONDS + number["hour"] * 3_600
               + number["minute"] * 60 + number["second"]
               - pl.when(pl.col("sign") == "-").then(-ahead).otherwise(ahead))
    found = frame.select(pl.when(valid).then(seconds).alias("seconds"))["seconds"]
    fraction = frame["fraction"].str.strip_chars_end("0")
    needed = longest(fraction)
    if not needed:
        return found, 1
    digits = next(step for step in (3, 6, 9) if step >= needed)
    part = fraction.str.pad_end(digits, "0").cast(pl.Int64, strict=False).fill_null(0)
    return rescaled(found, 10**digits) + part, 10**digits
