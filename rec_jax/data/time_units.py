"""Units of numeric times, and instants as ticks of a unit."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.errors import InputError

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
DAY_SECONDS = 86_400
INT64_MAX = 2**63 - 1
OUT_OF_RANGE = ("some times have nanoseconds, and others are outside the years 1678 to 2261, "
                "which int64 nanoseconds cannot hold; expected coarser times, or dates within "
                "these years")
_PLAUSIBLE = (631_152_000, 4_102_444_800)  # seconds: 1990 to 2100


def detect_unit(values: pl.Series, before: str | None, name: str) -> str:
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
    limit = INT64_MAX // factor
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
