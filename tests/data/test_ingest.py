"""What `prepare` takes from a log: its order, its ids, and what it says about it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, Filters, PrepareConfig, Report, SplitConfig, prepare
from rec_jax.errors import InputError

TIMED = Columns("user", "item", "time")


def run(tmp_path: Path, log: str | pl.DataFrame | pa.Table, columns: Columns = TIMED,
        **settings: Any) -> tuple[Report, Dataset]:
    source = tmp_path / ("log.csv" if isinstance(log, str) else "log.parquet")
    if isinstance(log, str):
        source.write_text(log)
    elif isinstance(log, pa.Table):
        pq.write_table(log, source)
    else:
        log.write_parquet(source)
    report = prepare(PrepareConfig(source=str(source), out=str(tmp_path / "made"), overwrite=True,
                                   columns=columns, **settings))
    return report, Dataset.open(report.out)


def history(dataset: Dataset, user: int = 0) -> list[str]:
    return dataset.item_ids().gather(dataset.history(user)).to_list()


ORDERED = {
    "ms": ["1700000000300", "1700000000200", "1700000000100"],
    "us": ["1700000000000003", "1700000000000002", "1700000000000001"],
    "ns": ["1700000000000000003", "1700000000000000002", "1700000000000000001"],
    "float": ["1700000000.3", "1700000000.2", "1700000000.1"],
    "nine digits": ["1700000000.000000003", "1700000000.000000002", "1700000000.000000001"],
    "iso": ["2023-11-14T22:13:20.3Z", "2023-11-14T22:13:20.2Z", "2023-11-14T22:13:20.1Z"],
    "iso of mixed offsets": ["2023-11-14T23:13:20.3+01:00", "2023-11-14T22:13:20.2Z",
                             "2023-11-14 17:13:20.1-05"],
}


@pytest.mark.parametrize("kind", ORDERED)
@pytest.mark.parametrize("memory_rows", [8_000_000, 2])
def test_order_within_a_second(tmp_path: Path, kind: str, memory_rows: int) -> None:
    rows = zip(("third", "second", "first"), ORDERED[kind], strict=True)
    log = "user,item,time\n" + "".join(f'ann,{item},"{time}"\n' for item, time in rows)
    _, dataset = run(tmp_path, log, memory_rows=memory_rows)
    assert history(dataset) == ["first", "second", "third"]
    assert dataset.times.tolist() == [1_700_000_000] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [pl.Datetime("ms"), pl.Datetime("us", "Europe/Berlin"),
                                   pl.Datetime("ns")])
def test_order_of_typed_instants(tmp_path: Path, dtype: Any) -> None:
    whole = 1_700_000_000 * {"ms": 10**3, "us": 10**6, "ns": 10**9}[dtype.time_unit]
    times = pl.Series([whole + 2, whole + 1, whole]).cast(dtype)
    _, dataset = run(tmp_path, pl.DataFrame({"user": 1, "item": ["c", "b", "a"], "time": times}))
    assert history(dataset) == ["a", "b", "c"]
    assert dataset.times.tolist() == [1_700_000_000] * 3  # type: ignore[union-attr]


def test_times_of_floats_that_are_too_short_are_noted(tmp_path: Path) -> None:
    def notes(numbers: list[float], dtype: Any) -> tuple[str, ...]:
        times = pl.Series(numbers, dtype=dtype)
        report, _ = run(tmp_path, pl.DataFrame({"user": 1, "item": ["a", "b"], "time": times}))
        return report.notes

    note, = notes([1.7e9 + 50, 1.7e9], pl.Float32)
    assert note == ("log.parquet: time is of 32-bit floats, which tell such numbers apart by 128; "
                    "what came closer together is in the order of the file")
    assert notes([1.7e9 + 50, 1.7e9], pl.Float64) == notes([2.0, 1.0], pl.Float32) == ()
    assert "64-bit floats, which tell such numbers apart by 256;" in notes(
        [1.7e18 + 512, 1.7e18], pl.Float64)[0]


@pytest.mark.parametrize(("rule", "wanted"), [("first", ["x", "y"]), ("last", ["y", "x"])])
def test_duplicates_are_told_apart_within_a_second(tmp_path: Path, rule: Any, wanted: list[str],
                                                   ) -> None:
    log = "user,item,time\na,x,1700000000300\na,y,1700000000200\na,x,1700000000100\n"
    _, dataset = run(tmp_path, log, filters=Filters(duplicates=rule))
    assert history(dataset) == wanted


def test_a_finer_file_makes_all_as_fine(tmp_path: Path) -> None:
    for name, time in (("a", "1700000001"), ("b", "1700000000.5"), ("c", "1700000000.25")):
        (tmp_path / f"{name}.csv").write_text(f"user,item,time\nu,{name},{time}\nu,{name}2,\n")
    report = prepare(PrepareConfig(source=str(tmp_path / "*.csv"), out=str(tmp_path / "made"),
                                   columns=TIMED, max_bad_share=0.5))
    dataset = Dataset.open(report.out)
    assert history(dataset) == ["c", "b", "a"]
    assert (report.first_time, report.last_time, report.time_unit) == (
        "2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:21Z", "s")
    assert report.bad_reasons == {"no time": 3}


def test_a_time_split_cuts_within_a_second(tmp_path: Path) -> None:
    log = "user,item,time\n" + "".join(
        f"{user},i{n},{1_700_000_000_000 + n}\n" for user in "ab" for n in range(10))
    _, dataset = run(tmp_path, log, split=SplitConfig("time", 0.5, 0.7))
    assert (dataset.train_end - dataset.offsets[:-1]).tolist() == [5, 5]
    assert (dataset.valid_end - dataset.offsets[:-1]).tolist() == [7, 7]
    assert dataset.meta["split"] == {"kind": "time", "valid_time": 1_700_000_000.005,
                                     "test_time": 1_700_000_000.007}


@pytest.mark.parametrize(("split", "part"), [
    (SplitConfig("time", valid_time=0, test_time=5), "train"),
    (SplitConfig("time", valid_time=5, test_time=5), "valid"),
    (SplitConfig("time", valid_time=5, test_time=500), "test"),
    (SplitConfig("time", valid_time=50, test_time=500), "valid and test"),
    (SplitConfig("time", 0.81, 0.85), "valid")])
def test_a_time_split_with_an_empty_part_is_refused(tmp_path: Path, split: SplitConfig, part: str,
                                                    ) -> None:
    log = "user,item,time\n" + "".join(f"u,i{n},{n}\n" for n in range(1, 11))
    with pytest.raises(InputError, match=f"leaves {part} empty: .* from 1970-01-01T00:00:01Z"):
        run(tmp_path, log, split=split)
    assert not (tmp_path / "made").exists()


def test_the_report_shows_the_first_and_the_last_instant(tmp_path: Path) -> None:
    report, dataset = run(tmp_path, "user,item,time\na,x,1700000000000\na,y,1600000000000\n")
    assert (report.first_time, report.last_time, report.time_unit) == (
        "2020-09-13T12:26:40Z", "2023-11-14T22:13:20Z", "ms")
    assert dataset.meta["times"] == {"first": report.first_time, "last": report.last_time,
                                     "unit": "ms"}


@pytest.mark.parametrize(("header", "row", "column"), [
    ("user,item,ts", "a,x,1700000000", "'ts'"), ("user,item,created_at", "a,x,7", "'created_at'"),
    ("user,item,eventTime:float", "a,x,7", "'eventTime'"),
    ("user,item,added", "a,x,2024-01-31 10:00:00", "'added'"),
    ("user,item,added,time", "a,x,2024-01-31,5", "'added' and 'time'")])
def test_a_time_column_that_is_not_used_is_named(tmp_path: Path, header: str, row: str,
                                                 column: str) -> None:
    report, _ = run(tmp_path, f"{header}\n{row}\n", Columns("user", "item"))
    assert len(report.notes) == 1
    assert f"although {column} in log.csv look" in report.notes[0]


def test_other_columns_are_no_times(tmp_path: Path) -> None:
    log = "user,item,price,price,times_seen,category,update\na,x,1.5,2,3,b,c\n"
    assert run(tmp_path, log, Columns("user", "item"))[0].notes == ()
    assert run(tmp_path, "user,item,time\na,x,1\n")[0].notes == ()


def test_repeats_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{i}", t) for t, (u, i) in enumerate(
        zip(random.integers(0, 40, 900), random.integers(0, 30, 900), strict=True))]
    log = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    monkeypatch.setattr("rec_jax.data.arrays.CHUNK_ROWS", 17)
    monkeypatch.setattr("rec_jax.data.repeats._PART_ROWS", 5)
    report, dataset = run(tmp_path, log)
    again = len(rows) - len({row[:2] for row in rows})
    assert dataset.meta["repeat_share"] == report.repeat_share == again / len(rows)
    for which in ("valid", "test"):
        users, items, ends = dataset.targets(which)  # type: ignore[arg-type]
        met = [item in dataset.items[dataset.offsets[user]:end]
               for user, item, end in zip(users, items, ends, strict=True)]
        assert 0 < np.mean(met) < 1
        assert dataset.meta["repeat_targets"][which] == np.mean(met)
    _, dataset = run(tmp_path, log, filters=Filters(duplicates="first"))
    assert dataset.meta["repeat_share"] == 0.0
    assert dataset.meta["repeat_targets"] == {"valid": 0.0, "test": 0.0}


IDS = {
    "UInt64": (pl.Series([2**63 + 5, 3, 2**64 - 1], dtype=pl.UInt64),
               [str(2**63 + 5), "3", str(2**64 - 1)]),
    "small UInt64": (pl.Series([5, 3, 4], dtype=pl.UInt64), ["5", "3", "4"]),
    "Int128": (pl.Series([2**70, -3, 4], dtype=pl.Int128), [str(2**70), "-3", "4"]),
    "Decimal": (pl.Series([Decimal(10**30), Decimal(2), Decimal(3)], dtype=pl.Decimal(38, 0)),
                [str(10**30), "2", "3"]),
    "Decimal of whole numbers": (pl.Series([Decimal("1.00"), Decimal("2.00"), Decimal("3.00")]),
                                 ["1", "2", "3"]),
    "Categorical": (pl.Series(["b", "a", "c"], dtype=pl.Categorical), ["b", "a", "c"]),
    "Enum": (pl.Series(["b", "a", "c"], dtype=pl.Enum(["a", "b", "c"])), ["b", "a", "c"]),
    "text with spaces": (pl.Series([" b", "b ", "b"]), [" b", "b ", "b"]),
    "words for nothing": (pl.Series(["null", "NA", "nan"]), ["null", "NA", "nan"]),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("role", ["user", "item"])
def test_ids_of_many_types(tmp_path: Path, kind: str, role: str) -> None:
    values, wanted = IDS[kind]
    other = "item" if role == "user" else "user"
    _, dataset = run(tmp_path, pl.DataFrame({role: values, other: ["o"] * 3, "time": [1, 2, 3]}))
    found = dataset.user_ids() if role == "user" else dataset.item_ids()
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(("dtype", "most"), [(pl.Float32, 2**24 - 1), (pl.Float64, 2**53 - 1)])
def test_floats_are_ids_as_far_as_they_are_told_apart(tmp_path: Path, dtype: Any, most: int,
                                                      ) -> None:
    frame = pl.DataFrame({"user": 1, "item": pl.Series([float(most), None, float("nan"), 12.0],
                                                       dtype=dtype), "time": [1, 2, 3, 4]})
    report, dataset = run(tmp_path, frame, max_bad_share=0.5)
    assert history(dataset) == [str(most), "12"]
    assert report.bad_reasons == {"no item": 2}


def test_dictionaries_of_arrow_are_ids(tmp_path: Path) -> None:
    table = pa.table({"user": pa.array([7, 8, 7]).dictionary_encode(),
                      "item": pa.array(["a", "b", "a"]).dictionary_encode(),
                      "time": pa.array([3, 2, 1], pa.timestamp("ns", "UTC"))})
    _, dataset = run(tmp_path, table)
    assert (dataset.user_ids().to_list(), history(dataset)) == (["7", "8"], ["a", "a"])


def test_small_and_huge_numbers_of_two_files_are_one_vocabulary(tmp_path: Path) -> None:
    for name, ids in (("a", [3, 4]), ("b", [2**63 + 1, 3]), ("c", [4, 2**63 + 1])):
        pl.DataFrame({"user": [1, 1], "item": pl.Series(ids, dtype=pl.UInt64)}).write_parquet(
            tmp_path / f"{name}.parquet")
    report = prepare(PrepareConfig(source=str(tmp_path / "*.parquet"), out=str(tmp_path / "made"),
                                   columns=Columns("user", "item")))
    assert history(Dataset.open(report.out)) == [
        "3", "4", str(2**63 + 1), "3", "4", str(2**63 + 1)]


@pytest.mark.parametrize("values", [
    [b"a"], [["a"]], [True], [1.5], [2.0**60], [2.0**53], [Decimal("1.5")], [{"a": 1}],
    pl.Series([2**127 + 5], dtype=pl.UInt128), pl.Series([2.0**24], dtype=pl.Float32)])
@pytest.mark.parametrize("role", ["user", "item"])
def test_other_types_are_no_ids(tmp_path: Path, values: list[Any], role: str) -> None:
    other = "item" if role == "user" else "user"
    with pytest.raises(InputError, match=rf"log.parquet: {role} ids (have type|are) .*expected"):
        run(tmp_path, pl.DataFrame({role: values, other: ["o"], "time": [1]}))


@pytest.mark.parametrize("user", ['""', ""])
def test_an_empty_id_is_none(tmp_path: Path, user: str) -> None:
    report, dataset = run(tmp_path, f'user,item,time\n{user},x,1\n{user},y,2\nb,z,3\n',
                          max_bad_share=0.9)
    assert dataset.user_ids().to_list() == ["b"]
    assert report.bad_reasons == {"no user": 2}
    frame = pl.DataFrame({"user": ["", None, "b"], "item": ["x", "y", "z"], "time": [1, 2, 3]})
    report, dataset = run(tmp_path, frame, max_bad_share=0.9)
    assert (report.bad_reasons, dataset.user_ids().to_list()) == ({"no user": 2}, ["b"])


@pytest.mark.parametrize("ratings", [
    pl.Series(["4", "3"], dtype=pl.Categorical), pl.Series([Decimal("4"), Decimal("3")]),
    pl.Series([4, 3], dtype=pl.UInt8), pl.Series(["4", " 3 "])])
def test_ratings_of_many_types(tmp_path: Path, ratings: pl.Series) -> None:
    log = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "stars": ratings})
    _, dataset = run(tmp_path, log, Columns("user", "item", rating="stars"))
    assert list(dataset.rating_values) == [3.0, 4.0]


@pytest.mark.parametrize("ratings", [[[4]], [b"4"], [{"a": 1}]])
def test_other_types_are_no_ratings(tmp_path: Path, ratings: list[Any]) -> None:
    log = pl.DataFrame({"user": ["a"], "item": ["x"], "stars": ratings})
    with pytest.raises(InputError, match=r"log.parquet: stars has type .*; expected numbers"):
        run(tmp_path, log, Columns("user", "item", rating="stars"))


def test_ratings_that_are_no_numbers_are_bad(tmp_path: Path) -> None:
    report, _ = run(tmp_path, "user,item,stars\na,x,4\na,y,inf\na,z,nan\na,w,NA\n",
                    Columns("user", "item", rating="stars"), max_bad_share=0.9)
    assert report.bad_reasons == {"stars is not a number": 3}


def test_an_unreadable_time_is_shown_with_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"time is '31/01/2024' there.*columns.time_format"):
        run(tmp_path, "user,item,time\na,x,31/01/2024\n")


def test_rows_far_apart_with_escaped_quotes_are_all_read(tmp_path: Path) -> None:
    titles = {1_000: '"7\\" single"', 5_000: '"12\\" maxi"'}
    log = "user,item,time,title\n" + "".join(
        f"u{n % 50},i{n % 30},{n},{titles.get(n, 'plain')}\n" for n in range(6_000))
    report, _ = run(tmp_path, log)
    assert (report.rows, report.interactions, report.bad) == (6_000, 6_000, 0)
    broken = log.replace('\\" single"', " single")  # never closed
    report, _ = run(tmp_path, broken)
    assert (report.rows, report.interactions, report.bad) == (6_000, 5_999, 1)
    assert report.bad_lines == ("log.csv:1002: a quote is not closed, or not doubled",)


def test_bad_lines_tell_parts_of_one_name_apart(tmp_path: Path) -> None:
    for day, user in (("1", "a"), ("2", "")):
        (tmp_path / "log" / f"day={day}").mkdir(parents=True)
        (tmp_path / "log" / f"day={day}" / "part-0.csv").write_text(f"user,item\n{user},x\n")
    report = prepare(PrepareConfig(source=str(tmp_path / "log"), out=str(tmp_path / "made"),
                                   columns=Columns("user", "item"), max_bad_share=0.5))
    assert report.bad_lines == ("day=2/part-0.csv:2: no user",)


def test_the_file_whose_ids_are_of_another_type_is_named(tmp_path: Path) -> None:
    for name, item in (("a", 12), ("b", "12")):
        pl.DataFrame({"user": ["u"], "item": [item]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"item ids are Int64 in one file and String in b\.parq"):
        prepare(PrepareConfig(source=str(tmp_path / "*.parquet"), out=str(tmp_path / "made"),
                              columns=Columns("user", "item")))
