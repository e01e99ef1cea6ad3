"""Files of interactions as periods of a stream: their order, their cuts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax import config
from rec_jax.data.periods import Period, PeriodsConfig, periods_of
from rec_jax.data.source_files import files_of
from rec_jax.errors import InputError


def read(path: Path, **settings: Any) -> list[Period]:
    (file,) = files_of([str(path)])
    return list(periods_of(config.build(PeriodsConfig, settings), file))


def test_a_file_is_read_in_the_order_of_its_times_and_cut_where_days_begin(tmp_path: Path) -> None:
    path, day, random = tmp_path / "log.parquet", 86_400, np.random.default_rng(0)
    times = 10 * day + random.integers(0, 4 * day, 60) // 7_000 * 7_000  # some are equal
    times = times[(times < 12 * day) | (times >= 13 * day)]  # a day without any
    pl.DataFrame({"user_id": np.arange(len(times)) % 5, "item_id": np.arange(len(times)),
                  "timestamp": times * 1_000}).write_parquet(path)
    order = np.argsort(times, kind="stable")
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp", "time_unit": "ms"}
    (whole,) = read(path, columns=columns)
    assert whole.items.to_list() == [str(one) for one in order]
    assert whole.users.to_list() == [str(one % 5) for one in order]
    assert (whole.times == times[order]).all() and whole.name == "log.parquet"
    parts = read(path, columns=columns, seconds=day)
    assert [part.name for part in parts] == [f"log.parquet 1970-01-{n}" for n in (11, 12, 14)]
    assert [part.part for part in parts] == [0, 1, 2]
    assert pl.concat([part.items for part in parts]).equals(whole.items)
    for part, number in zip(parts, (10, 11, 13), strict=True):
        assert len(part) == len(part.users) and set(part.times // day) == {number}


def test_rows_that_are_none_are_skipped_and_ratings_may_be_too_low(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text("who,what,when,stars\n007,b a,1970-01-01T00:00:09.5Z,4\n7,c,soon,5\n"
                    "8,,3,5\n9,d,2.25,3\n9,d,2.125,5\n")
    columns = {"user": "who", "item": "what", "time": "when"}
    rated = {**columns, "rating": "stars"}
    (period,) = read(path, columns=rated, min_rating=4, max_bad_share=0.4)
    assert period.users.to_list() == ["9", "007"] and period.items.to_list() == ["d", "b a"]
    assert period.times.tolist() == [2, 9] and period.times.dtype == np.int64
    (period,) = read(path, columns=columns, max_bad_share=0.4)
    assert period.users.to_list() == ["9", "9", "007"]
    (tmp_path / "none.csv").write_text("user_id,item_id,timestamp\n")
    assert read(tmp_path / "none.csv", seconds=5) == [] and len(read(tmp_path / "none.csv")[0]) == 0
    for settings, message in (
            ({"columns": columns}, r"2 of 5 rows are bad \(40.0%; max_bad_share is 1.0%\): day"),
            ({}, "no column 'user_id'"),
            ({"columns": {"user": "who", "item": "what"}}, "data.columns.time is missing; expec"),
            ({"columns": rated}, "data.min_rating and data.columns.rating belong together"),
            ({"columns": {**columns, "event": "stars"}}, "data.columns.event: a stream has no ty"),
            ({"seconds": 0}, "data.seconds is 0; expected at least 1"),
            ({"format": "xml"}, "'xml' is not one of 'auto', 'csv'"),
            ({"escape": "x"}, "escape is 'x'; expected a backslash")):
        with pytest.raises(InputError, match=message):
            read(path, **settings)
