"""What is appended to a dataset gives what one preparation of all files gives, but for numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, one_object, refused

from rec_jax import config
from rec_jax.data.appended import settings_of
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import (
    Columns,
    Filters,
    ItemFile,
    PrepareConfig,
    SplitConfig,
    Withheld,
    prepare,
)
from rec_jax.errors import InputError

Row = tuple[str, str, int, int]
HEAD = "user_id,item_id,time,rating"


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("\n".join([HEAD, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def told(dataset: Dataset) -> dict[str, Any]:
    """All that a dataset says, by ids."""
    users, ids = dataset.user_ids().to_list(), dataset.item_ids().to_list()
    codes = dataset.rating_values
    found: dict[str, Any] = {}
    for number, user in enumerate(users):
        first, last = dataset.offsets[number:number + 2]
        found[user] = (
            [ids[item] for item in dataset.items[first:last]],
            None if dataset.times is None else dataset.times[first:last].tolist(),
            None if dataset.ratings is None else [
                codes[code - 1] for code in dataset.ratings[first:last]],
            int(dataset.train_end[number] - first), int(dataset.valid_end[number] - first))
    counts = dict(zip(ids, dataset.popularity().tolist(), strict=True))
    same = ("num_valid", "num_test", "repeat_share", "repeat_targets", "ratings", "has_times")
    return {"users": found, "counts": counts, **{name: dataset.meta[name] for name in same}}


def random_logs(random: np.random.Generator, late: float) -> list[list[Row]]:
    """Two or three periods with growing sets of users and items; many times are the same."""
    kind = random.choice(["", "u"])
    periods = []
    for period in range(int(random.integers(2, 4))):
        rows = []
        for _ in range(int(random.integers(1, 60)) + 40 * (period == 0)):
            begin = period if random.random() >= late else random.integers(period + 1)
            rows.append((f"{kind}{random.integers(4 + 4 * period)}",
                         f"{kind}{random.integers(6 + 5 * period)}",
                         int(60 * begin + random.integers(60)), int(random.integers(1, 6))))
        periods.append(rows)
    return periods


@pytest.mark.parametrize("seed", range(12))
def test_periods_appended_are_one_preparation_of_all(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    late = float(random.choice([0.0, 0.3]))
    periods = random_logs(random, late)
    timed, rated = random.random() < 0.8, random.random() < 0.6
    kind: Any = "time" if timed and random.random() < 0.5 else "leave_one_out"
    split = SplitConfig(kind, valid_quantile=0.5, test_quantile=0.8)
    how: dict[str, Any] = {
        "columns": Columns(time="time" if timed else None, rating="rating" if rated else None),
        "filters": Filters(min_rating=2.0 if rated and random.random() < 0.5 else None,
                           duplicates=str(random.choice(["all", "first", "last"]))),
        "split": split, "memory_rows": int(random.integers(5, 50))}
    files = [write(tmp_path / f"{number}.csv", rows) for number, rows in enumerate(periods)]
    prepare(PrepareConfig(source=tuple(map(str, files)), out=str(tmp_path / "all"), **how))
    prepare(PrepareConfig(source=str(files[0]), out=str(tmp_path / "d0"), **how))
    for number, file in enumerate(files[1:], 1):
        before = Dataset.open(tmp_path / f"d{number - 1}")
        report = prepare(PrepareConfig(source=str(file), out=str(tmp_path / f"d{number}"),
                                       append=str(before.folder), **how))
        after = Dataset.open(tmp_path / f"d{number}")
        for ids in (Dataset.user_ids, Dataset.item_ids):
            assert ids(after).to_list()[:len(ids(before))] == ids(before).to_list()
        if how["filters"].duplicates == "all" and not report.appended_late:
            check_marks(before, after)
        assert report.appended == after.num_interactions - before.num_interactions or (
            how["filters"].duplicates != "all")
        assert not report.appended_late or (timed and late)
    assert told(after) == told(Dataset.open(tmp_path / "all"))
    fresh = after.popularity()[before.num_items:]
    assert (np.diff(fresh) <= 0).all()


def check_marks(before: Dataset, after: Dataset) -> None:
    """Where nothing is late, old interactions are in front of new ones."""
    assert after.old_end is not None and after.old_train_end is not None
    assert after.meta["appended"]["to"] == before.split_hash
    for user in range(after.num_users):
        first = after.offsets[user]
        if user >= before.num_users:
            assert after.old_end[user] == after.old_train_end[user] == first
            continue
        begin, end = before.offsets[user:user + 2]
        assert after.old_end[user] - first == end - begin
        assert after.old_train_end[user] - first == before.train_end[user] - begin
        assert after.items[first:after.old_end[user]].tolist() == before.items[begin:end].tolist()


def test_marks_of_a_log_without_late_ones_are_where_it_ended(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", [("a", "x", 1, 1), ("a", "y", 2, 1), ("a", "z", 3, 1),
                                     ("b", "x", 5, 1)])
    two = write(tmp_path / "b.csv", [("c", "w", 9, 1), ("a", "w", 8, 1), ("a", "x", 7, 1),
                                     ("b", "y", 4, 1)])
    prepare(PrepareConfig(source=str(one), out=str(tmp_path / "d"), columns=Columns(time="time")))
    job = config.build(PrepareConfig, {**settings_of(tmp_path / "d"), "source": str(two),
                                       "out": str(tmp_path / "e"), "append": str(tmp_path / "d")})
    report = prepare(job)
    found = Dataset.open(tmp_path / "e")
    assert found.user_ids().to_list() == ["a", "b", "c"] and report.appended == 4
    assert report.appended_late == 1  # b's y at 4, before its x at 5
    assert (found.old_end - found.offsets[:-1]).tolist() == [3, 2, 0]
    assert (found.old_train_end - found.offsets[:-1]).tolist() == [1, 2, 0]
    assert len(found.meta["sources"]) == 2


def test_a_core_keeps_what_is_there_and_counts_the_new_with_it(tmp_path: Path) -> None:
    old = [(user, item, 1, 1) for user in "ab" for item in "xy"]
    one = write(tmp_path / "a.csv", [*old, ("c", "x", 1, 1)])  # c is below the core
    two = write(tmp_path / "b.csv", [("c", "y", 2, 1), ("d", "x", 2, 1), ("d", "y", 3, 1),
                                     ("a", "z", 4, 1)])
    how: dict[str, Any] = {"columns": Columns(time="time"),
                           "filters": Filters(user_core=2, item_core=2)}
    prepare(PrepareConfig(source=str(one), out=str(tmp_path / "d"), **how))
    prepare(PrepareConfig(source=str(two), out=str(tmp_path / "e"), append=str(tmp_path / "d"),
                          **how))
    found = Dataset.open(tmp_path / "e")
    # c's first interaction was dropped, and one is too few; d has two with items of before.
    assert found.user_ids().to_list() == ["a", "b", "d"]
    assert sorted(found.item_ids()) == ["x", "y"]


def test_titles_stay_and_new_ones_come(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", [("a", "x", 1, 1), ("a", "y", 2, 1)])
    two = write(tmp_path / "b.csv", [("a", "z", 3, 1), ("b", "w", 3, 1)])
    (tmp_path / "t.csv").write_text("item_id,title\nx,Ex\ny,Why\n")
    (tmp_path / "u.csv").write_text("item_id,title\nz,Zed\ny,Ypsilon\n")
    prepare(PrepareConfig(source=str(one), out=str(tmp_path / "d"),
                          item_file=ItemFile(str(tmp_path / "t.csv"), title="title")))
    for item_file, titles in ((None, ["Ex", "Why", None, None]),
                              (ItemFile(str(tmp_path / "u.csv"), title="title"),
                               ["Ex", "Ypsilon", None, "Zed"])):
        prepare(PrepareConfig(source=str(two), out=str(tmp_path / "e"), overwrite=True,
                              append=str(tmp_path / "d"), item_file=item_file))
        found = Dataset.open(tmp_path / "e")
        assert found.item_ids().to_list() == ["x", "y", "w", "z"]  # z is held out
        assert found.titles() is not None and found.titles().to_list() == titles  # type: ignore[union-attr]


@pytest.mark.parametrize(("old", "new", "line"), [
    ({}, {"filters": Filters(duplicates="last")}, r"filters.duplicates is 'last', and .* 'all'"),
    ({"columns": Columns(time="time")}, {"columns": Columns()}, r"keeps times, and columns.time"),
    ({}, {"columns": Columns(time="time")}, r"keeps no times; expected no columns.time"),
    ({"columns": Columns(rating="rating")}, {"columns": Columns()}, r"keeps ratings"),
    ({"withheld": Withheld(0.5)}, {"withheld": Withheld()}, r"withheld items cannot be appended"),
    ({}, {"split": SplitConfig("random")}, r"a split by chance cannot"),
    ({}, {"source": "none.csv"}, r"none.csv")])
def test_what_does_not_go_together_is_refused(tmp_path: Path, old: dict[str, Any],
                                              new: dict[str, Any], line: str) -> None:
    one = write(tmp_path / "a.csv", [(user, item, 1, 1) for user in "ab" for item in "vwxyz"])
    prepare(PrepareConfig(source=str(one), out=str(tmp_path / "d"), **old))
    given = {"source": str(one), "append": str(tmp_path / "d"), "out": str(tmp_path / "e"),
             **old, **new}
    with pytest.raises(InputError, match=line):
        prepare(PrepareConfig(**given))
    assert not (tmp_path / "e").exists()


def test_the_verb_takes_columns_and_filters_of_the_dataset(tmp_path: Path,
                                                           rec_jax: Command) -> None:
    one = tmp_path / "a.csv"
    one.write_text("who,what,at\na,x,1\na,y,2\na,y,3\n")
    rec_jax("prepare", str(one), "--out", str(tmp_path / "d"), "--user", "who", "--item", "what",
            "--time", "at", "--duplicates", "first")
    done = rec_jax("prepare", str(one), "--append", str(tmp_path / "d"), "--out",
                   str(tmp_path / "e"), "--json")
    assert one_object(done)["appended"] == 0
    done = rec_jax("prepare", str(one), "--append", str(tmp_path / "d"), "--out",
                   str(tmp_path / "f"), "--duplicates", "all")
    assert "--duplicates is 'all'" in refused(done)
