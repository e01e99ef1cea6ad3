"""Files read by tasks, and ranges of users sorted by tasks, make the very same dataset."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax import tasks
from rec_jax.data.prepare import Columns, Filters, PrepareConfig, Report, SplitConfig, prepare
from rec_jax.data.source_files import source_files
from rec_jax.errors import InputError

COLUMNS = Columns("user", "item", "time", "rating")


class Elsewhere:
    """Does tasks as a worker would: what goes in and comes out is a copy."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
        found = [pickle.dumps(tasks._caught(*pickle.loads(pickle.dumps((function, argument)))))
                 for argument in arguments]
        self.done += [function.__name__] * len(found)
        yield from (tasks._result(pickle.loads(one)) for one in found)


def write_logs(folder: Path, seed: int, ids: str = "int", files: int = 4) -> Path:
    """Files in which times become finer, ids grow beyond int64, and some rows are bad."""
    draw = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(files):
        count = int(draw.integers(1, 60))
        users, items = draw.integers(0, 12, count), draw.integers(0, 9, count)
        if ids == "huge" and number == 2:
            items = [int(item) + 2**70 for item in items]
        name = "u" if ids == "text" else ""
        per_second = (1, 1, 1_000, 1_000_000)[number % 4]
        times = draw.integers(1_600_000_000, 1_600_000_050, count) * per_second + number
        lines = [f"{name}{user},{name}{item},{time},{rating}" for user, item, time, rating in
                 zip(users, items, times, draw.integers(1, 6, count), strict=True)]
        if number == 1:
            lines.insert(len(lines) // 2, "7,3,whenever,4")
        (folder / f"part-{number}.csv").write_text("user,item,time,rating\n"
                                                   + "\n".join(lines) + "\n")
    return folder


def made(source: Path, out: Path, by: tasks.Tasks | None, **settings: Any,
         ) -> tuple[Report, dict[str, bytes]]:
    report = prepare(PrepareConfig(source=str(source), out=str(out), **settings), tasks=by)
    return report, {path.relative_to(out).as_posix(): path.read_bytes()
                    for path in sorted(out.rglob("*")) if path.is_file()}


def alike(one: Report, other: Report) -> bool:
    left, right = one.to_dict(), other.to_dict()
    return {**left, "out": "", "seconds": 0} == {**right, "out": "", "seconds": 0}


@pytest.mark.parametrize(("ids", "settings"), [
    ("int", {}),
    ("huge", {"filters": Filters(duplicates="last", user_core=2, item_core=2)}),
    ("text", {"filters": Filters(duplicates="first", min_rating=2.0), "memory_rows": 25}),
    ("int", {"memory_rows": 7, "split": SplitConfig(kind="random")}),
])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_folder_is_the_same_bit_for_bit(tmp_path: Path, ids: str, settings: dict[str, Any],
                                            seed: int) -> None:
    source = write_logs(tmp_path / "log", seed, ids)
    settings = {"columns": COLUMNS, "max_bad_share": 0.5, **settings}
    alone, wanted = made(source, tmp_path / "alone", None, **settings)
    by = Elsewhere()
    report, files = made(source, tmp_path / "parts", by, **settings)
    assert files == wanted and alike(report, alone)
    assert report.bad == 1 and report.bad_lines == alone.bad_lines
    assert by.done.count("read_part") == 4
    assert ("_write_ordered" in by.done) == (settings.get("memory_rows", 9999) < report.rows)


def test_types_of_events_have_the_same_numbers(tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.mkdir()
    for number, types in enumerate((["view", "cart"], ["buy", "view"], ["cart", "wish"])):
        rows = [f"{user},{item},{types[(user + item) % 2]}" for user in range(3)
                for item in range(4)]
        (source / f"{number}.csv").write_text("user,item,event\n" + "\n".join(rows) + "\n")
    settings: dict[str, Any] = {"columns": Columns("user", "item", event="event")}
    _, wanted = made(source, tmp_path / "alone", None, **settings)
    _, files = made(source, tmp_path / "parts", Elsewhere(), **settings)
    assert files == wanted and "events.npy" in files


def test_a_day_is_appended_by_tasks_too(tmp_path: Path) -> None:
    old, new = write_logs(tmp_path / "old", 3), write_logs(tmp_path / "new", 4)
    prepare(PrepareConfig(source=str(old), out=str(tmp_path / "first"), columns=COLUMNS,
                          max_bad_share=0.5))
    settings = {"columns": COLUMNS, "max_bad_share": 0.5, "append": str(tmp_path / "first")}
    _, wanted = made(new, tmp_path / "alone", None, **settings)
    _, files = made(new, tmp_path / "parts", Elsewhere(), **settings)
    assert files == wanted


def test_bad_rows_are_judged_over_all_files(tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.mkdir()
    (source / "a.csv").write_text("user,item\n" + ",x\n" * 3)
    (source / "b.csv").write_text("user,item\n" + "ann,x\nann,y\nann,z\n" * 20)
    settings: dict[str, Any] = {"columns": Columns("user", "item"), "max_bad_share": 0.1}
    assert made(source, tmp_path / "parts", Elsewhere(), **settings)[0].bad == 3
    for by in (None, Elsewhere()):
        with pytest.raises(InputError, match="3 of 63 rows are bad"):
            made(source, tmp_path / "more", by, **settings | {"max_bad_share": 0.01})
    assert not (tmp_path / "more").exists()


def test_ids_of_two_types_are_refused_with_the_file(tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.mkdir()
    pl.DataFrame({"user": ["ann"], "item": [1]}).write_parquet(source / "a.parquet")
    pl.DataFrame({"user": ["ann"], "item": ["b"]}).write_parquet(source / "b.parquet")
    with pytest.raises(InputError, match=r"ids are Int64 in one file and String in b\.parquet"):
        made(source, tmp_path / "out", Elsewhere(), columns=Columns("user", "item"))


def test_a_refusal_of_a_worker_is_that_of_the_job(tmp_path: Path) -> None:
    source = write_logs(tmp_path / "log", 0)
    (source / "part-2.csv").write_text("who,item,time,rating\n1,2,3,4\n")
    with pytest.raises(InputError, match=r"part-2.csv.*user"):
        made(source, tmp_path / "out", Elsewhere(), columns=COLUMNS)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    class Away(Elsewhere):
        def run(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
            return super().run(function, [dataclasses.replace(one, folder=Path("/nowhere/part"))
                                          for one in arguments])

    with pytest.raises(InputError, match="does not see /nowhere; expected"):
        made(write_logs(tmp_path / "log", 0), tmp_path / "out", Away(), columns=COLUMNS)


def test_years_that_no_common_unit_holds_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.mkdir()
    (source / "a.csv").write_text("user,item,time\n1,1,2020-01-01T00:00:00.000000001\n")
    (source / "b.csv").write_text("user,item,time\n1,2,1500-01-01\n1,3,2020-01-01\n")
    for one, other in (("a", "b"), ("b", "a")):
        logs = tmp_path / f"{one}{other}"
        logs.mkdir()
        (logs / "1.csv").write_text((source / f"{one}.csv").read_text())
        (logs / "2.csv").write_text((source / f"{other}.csv").read_text())
        with pytest.raises(InputError, match="outside the years 1678 to 2261"):
            made(logs, tmp_path / "out", Elsewhere(), columns=Columns("user", "item", "time"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_engines_keep_the_order_and_pass_refusals_on(tmp_path: Path, engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is an extra")
    logs = [str(write_logs(tmp_path / name, seed)) for seed, name in enumerate("cab")]
    with tasks.processes(2) if engine == "processes" else tasks.ray_cluster("local") as by:
        assert list(by.run(source_files, logs)) == [source_files(log) for log in logs]
        found = by.run(source_files, [logs[0], "missing", logs[1]])
        assert list(itertools.islice(found, 1)) == [source_files(logs[0])]
        with pytest.raises(InputError, match="missing does not exist"):
            next(found)
        settings: dict[str, Any] = {"columns": COLUMNS, "max_bad_share": 0.5, "memory_rows": 20}
        _, wanted = made(Path(logs[0]), tmp_path / "alone", None, **settings)
        assert made(Path(logs[0]), tmp_path / "parts", by, **settings)[1] == wanted
