"""Times of every kind become the instants that they name, or are refused."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_jax.data.prepare_config import Columns
from rec_jax.data.time_units import PER_SECOND, instant
from rec_jax.data.times import TimeReader
from rec_jax.errors import InputError

UTC = dt.UTC


def read(values: Any, dtype: Any = None, **columns: Any) -> tuple[list[int | None], int]:
    reader = TimeReader(Columns(time="when", **columns))
    ticks = reader.read(pl.Series(values, dtype=dtype, strict=False), "log")
    return ticks.to_list(), reader.per_second


def shown(values: Any, dtype: Any = None, **columns: Any) -> list[str | None]:
    ticks, per_second = read(values, dtype, **columns)
    return [None if tick is None else instant(tick, per_second) for tick in ticks]


@pytest.mark.parametrize(("written", "wanted"), [
    ("2024-01-01T10:00:00+02:00", "2024-01-01T08:00:00Z"),
    ("2024-01-01T10:00:00+0530", "2024-01-01T04:30:00Z"),
    ("2024-01-01 10:00:00-08", "2024-01-01T18:00:00Z"),
    ("2024-01-01 10:00:00+00", "2024-01-01T10:00:00Z"),
    ("2024-01-01 10:00:00 UTC", "2024-01-01T10:00:00Z"),
    ("2024-01-01 10:00:00.25 UTC", "2024-01-01T10:00:00.250000Z"),
    ("2024-01-01 10:00", "2024-01-01T10:00:00Z"),
    ("2024-01-01T10:00+01:00", "2024-01-01T09:00:00Z"),
    ("2024-01-01T10:00:00,5Z", "2024-01-01T10:00:00.500000Z"),
    ("20240101T100000Z", "2024-01-01T10:00:00Z"),
    ("2024-01-01", "2024-01-01T00:00:00Z"),
    (" 2024-01-01 10:00:00 ", "2024-01-01T10:00:00Z"),
    ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    ("1969-12-31 23:59:59.5", "1969-12-31T23:59:59.500000Z"),
    ("9999-12-31T00:00:00", "9999-12-31T00:00:00Z"),
    ("2024-02-30", None), ("2024-01-01T25:00:00", None), ("2024-01-01T10:61", None),
    ("10:00", None), ("NaT", None), ("null", None), ("NA", None), ("nan", None), ("inf", None),
    ("soon", None), ("", None)])
def test_iso_8601(written: str, wanted: str | None) -> None:
    assert shown([written]) == [wanted]
    assert shown([written, "2024-01-01T10:00:00.000000001Z"])[0] in (wanted, None)


@given(st.lists(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1)), min_size=1),
       st.integers(-14 * 60, 14 * 60))
def test_offsets_and_fractions_keep_the_instant(moments: list[dt.datetime], minutes: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    ticks, per_second = read([moment.replace(tzinfo=UTC).astimezone(zone).isoformat()
                              for moment in moments])
    epoch = dt.datetime(1970, 1, 1)
    assert [tick * (1_000_000 // per_second) for tick in ticks] == [
        (moment - epoch) // dt.timedelta(microseconds=1) for moment in moments]


def test_both_hours_of_the_end_of_summer_time_are_told_apart() -> None:
    first, second = read(["2024-10-27T02:30:00+02:00", "2024-10-27T02:30:00+01:00"])[0]
    assert second - first == 3_600


@pytest.mark.parametrize("unit", PER_SECOND)
@pytest.mark.parametrize("as_type", [pl.Int64, pl.Float64, pl.String, pl.UInt64, pl.Int128])
def test_the_unit_of_plausible_numbers_is_found(unit: str, as_type: Any) -> None:
    numbers = [1_700_000_000 * PER_SECOND[unit], 0, 1_600_000_000 * PER_SECOND[unit]]
    values = pl.Series(numbers, dtype=pl.Int64).cast(as_type)
    assert shown(values) == ["2023-11-14T22:13:20Z", "1970-01-01T00:00:00Z",
                             "2020-09-13T12:26:40Z"]


@pytest.mark.parametrize(("values", "wanted"), [
    ([20240131, 19991231], ["2024-01-31T00:00:00Z", "1999-12-31T00:00:00Z"]),
    (["20240131", "0"], ["2024-01-31T00:00:00Z", None]),
    ([0, 1, 5_000], ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "1970-01-01T01:23:20Z"]),
    (list(range(20_000_000, 20_000_300)), None),  # a sequence, not days
    ([-86_400], ["1969-12-31T00:00:00Z"])])
def test_days_and_small_numbers(values: Any, wanted: list[str | None] | None) -> None:
    if wanted is None:
        assert read(values) == (values, 1)
    else:
        assert shown(values) == wanted


@pytest.mark.parametrize(("values", "message"), [
    ([1_700_000_000, 1_700_000_000_000], "look like s and ms.*columns.time_unit"),
    ([20_240_101_103_000], "of no year from 1990 to 2100"), ([10**10], "set columns.time_unit")])
def test_an_unclear_unit_is_asked_for(values: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(values)
    assert read(values, time_unit="s") == (values, 1)


def test_each_file_may_have_its_unit_but_a_file_has_one() -> None:
    reader = TimeReader(Columns(time="when"))
    reader.read(pl.Series([1_700_000_000]), "a")
    with pytest.raises(InputError, match="b: when has numbers that look like s and ms"):
        reader.read(pl.Series([1_700_000_000_000]), "b")
    reader.next_file()
    reader.read(pl.Series([1_700_000_000_000]), "b")
    assert (reader.per_second, reader.kinds) == (1_000, "s, ms")


@pytest.mark.parametrize(("values", "wanted", "per_second"), [
    (["1700000000.123456789", "1.7e9"], [1_700_000_000_123_456_789, 1_700_000_000 * 10**9], 10**9),
    (["-1.5", "-0.25", "3"], [-1_500, -250, 3_000], 1_000),
    (["1700000000123.25"], [1_700_000_000_123_250], 10**6),
    ([1.7e9 + 0.25, float("nan")], [1_700_000_000_250_000, None], 10**6),
    ([Decimal("1700000000.25")], [1_700_000_000_250], 1_000),
    (pl.Series(["4", "3"], dtype=pl.Categorical), [4, 3], 1),
    (["1", "NaT", None, "9" * 30], [1, None, None, None], 1),
    ([None, None], [None, None], 1)])
def test_numbers_keep_their_fractions(values: Any, wanted: list[int | None], per_second: int,
                                      ) -> None:
    assert read(values) == (wanted, per_second)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Datetime("ns"), pl.Datetime("us", "Asia/Tokyo")])
def test_the_ends_of_int64_are_no_time(dtype: Any) -> None:
    values = pl.Series([-2**63, 1_700_000_000 * 10**6, 2**63 - 1]).cast(dtype)
    assert [tick is None for tick in read(values)[0]] == [True, False, True]


def test_typed_instants_keep_their_resolution() -> None:
    moment = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert shown(pl.Series([moment])) == ["2024-01-01T10:00:00Z"]
    assert shown([dt.date(1960, 1, 1)]) == ["1960-01-01T00:00:00Z"]
    assert read(pl.Series([1, 2]).cast(pl.Datetime("ns"))) == ([1, 2], 10**9)


@pytest.mark.parametrize("values", [[dt.timedelta(1)], [dt.time(1)], [True], [[1]], [b"1"],
                                    [{"a": 1}]])
def test_columns_without_instants_are_refused(values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"log: when has type .*; expected instants"):
        read(values)


@pytest.mark.parametrize(("form", "written", "wanted"), [
    ("%d/%m/%Y %H:%M:%S%.f", "02/01/2024 00:00:01.5", "2024-01-02T00:00:01.500000Z"),
    ("%d.%m.%Y", "01.02.2024", "2024-02-01T00:00:00Z"),
    ("%Y-%m-%dT%H:%M:%S%z", "2024-01-01T10:00:00+0200", "2024-01-01T08:00:00Z"),
    ("%Y%m%d%H%M%S", 20_240_101_103_000, "2024-01-01T10:30:00Z")])
def test_other_forms_are_named(form: str, written: Any, wanted: str) -> None:
    assert shown([written], time_format=form) == [wanted]


def test_a_format_keeps_nanoseconds() -> None:
    written = ["01/02/2024 1:00:00.123456789", "01/02/2024 1:00:00.123456788"]
    ticks, per_second = read(written, time_format="%d/%m/%Y %H:%M:%S%.f")
    assert (ticks[0] - ticks[1], per_second) == (1, 10**9)


def test_what_nanoseconds_cannot_hold_is_no_time() -> None:
    assert read(["9999-12-31T00:00:00", "2024-01-01T00:00:00.123456789"])[0][0] is None
