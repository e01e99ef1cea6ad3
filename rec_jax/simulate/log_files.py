"""A log -> its columns: a file of rows (CSV, TSV, Parquet, compressed, several parts), or columns
in memory.

A row that cannot be read is an error with its line. A log where rows were dropped silently would
be another sample than the one that its propensities belong to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rec_jax.data.file_layout import BLANK, Layout, find_column
from rec_jax.data.ids import parse_ids
from rec_jax.data.prepare_config import Columns
from rec_jax.data.readers import guess_format, read
from rec_jax.data.source_files import files_of
from rec_jax.data.times import TimeReader
from rec_jax.errors import InputError
from rec_jax.files import file_hash
from rec_jax.simulate.feedback import Floats, Int64s

LogSource = Path | str | Mapping[str, Any] | pl.DataFrame


@dataclass(frozen=True)
class LogColumns:
    """Names of the log's columns; None: the log has none.

    probability: of the logged action under the policy to evaluate; "probability" by default, and
      computed for a run's policy.
    expected_logged, expected_policy: what a reward model expects of the logged action, and of the
      policy to evaluate.
    position: place in a slate; group: rows of one group are not independent.
    item, user, history, time: for a run's policy: the logged item, and whose history it read: that
      of a user of the dataset, before `time` where that is given, or item ids of a list or with
      blanks between, oldest first. "item_id" and "user_id" by default.
    """

    reward: str = "reward"
    propensity: str = "propensity"
    probability: str | None = None
    expected_logged: str | None = None
    expected_policy: str | None = None
    position: str | None = None
    group: str | None = None
    item: str | None = None
    user: str | None = None
    history: str | None = None
    time: str | None = None

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column, of those that are there."""
        return {field.name: name for field in fields(self)
                if (name := getattr(self, field.name)) is not None}


@dataclass(frozen=True)
class Log:
    """frame: a column a role, as the source has them. lines: int64 `[n]`, where each row begins.

    files: how each file names its lines, and the row at which it begins. hash: sha256 of the only
    file, or of the hashes of several; None for columns in memory.
    """

    frame: pl.DataFrame
    lines: Int64s
    files: tuple[tuple[str, int], ...]
    hash: str | None

    def where(self, row: int) -> str:
        """Row `row` (from 0), for people."""
        name = next(name for name, first in reversed(self.files) if first <= row)
        return f"{name} {int(self.lines[row])}"

    def numbers(self, role: str) -> Floats:
        """f64 `[n]`.

        Raises:
          InputError: a value is missing, or no number.
        """
        column = self.frame[role]
        if column.dtype == pl.Boolean:
            column = column.cast(pl.UInt8)
        if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
            raise InputError(f"{role} is a column of {column.dtype}; expected numbers")
        text = column.str.strip_chars() if column.dtype == pl.String else column
        values = text.cast(pl.Float64, strict=False)
        if values.null_count():
            row = int(values.is_null().arg_max() or 0)
            found = column[row]
            said = "is missing" if found is None or found == "" else f"is {found!r}"
            raise InputError(f"{self.where(row)}: {role} {said}; expected a number")
        return values.to_numpy()

    def labels(self, role: str) -> pl.Series:
        """Text `[n]`; null where the log has nothing.

        Raises:
          InputError: values of a type that has no text.
        """
        try:
            return self.frame[role].cast(pl.String)
        except pl.exceptions.PolarsError:
            raise InputError(f"{role} is a column of {self.frame[role].dtype}; expected numbers or "
                             "text") from None

    def ids(self, role: str) -> pl.Series:
        """Ids of items or users as text `[n]`, equal to a dataset's where they are the same; null
        where the log has nothing.

        Raises:
          InputError: values of a type that no id has.
        """
        return parse_ids(self.frame[role], role, "the log").cast(pl.String)

    def seconds(self, role: str) -> Int64s:
        """Whole seconds since 1970, rounded down: int64 `[n]`."""
        reader = TimeReader(Columns(time=role))
        ticks = reader.read(self.frame[role], "the log")
        if ticks.null_count():
            row = int(ticks.is_null().arg_max() or 0)
            raise InputError(f"{self.where(row)}: {role} is {self.frame[role][row]!r}; expected "
                             "seconds since 1970 or a date such as 2026-01-31T12:00:00")
        return np.asarray(ticks.to_numpy() // reader.per_second)


def read_log(source: LogSource, columns: LogColumns) -> Log:
    """The columns of a file, a folder of parts or a glob, or of a mapping or frame in memory.

    Raises:
      InputError: no such file, no such column, no rows, or a row that cannot be read.
    """
    roles = columns.roles
    if not isinstance(source, Path | str):
        frame = pl.DataFrame(source)
        for name in roles.values():
            find_column(name, frame.columns, Path("the log"))
        return _whole([frame.select(pl.col(name).alias(role) for role, name in roles.items())],
                      [np.arange(frame.height)], (("row", 0),), "the log", [])
    frames: list[pl.DataFrame] = []
    lines: list[Int64s] = []
    begins: list[tuple[str, int]] = []
    hashes: list[str] = []
    rows = 0
    for file in files_of([str(source)]):
        begins.append((f"{file.name} line", rows))
        hashes.append(file_hash(file.path))
        form = guess_format(file.path, "csv")
        layout = Layout(roles, constants=file.constants)
        for frame in read(file.path, form, layout):
            if "fault" in frame.columns:
                frame = frame.filter(pl.col("fault").is_null() | (pl.col("fault") != BLANK))
                faults = frame.filter(pl.col("fault").is_not_null())
                if faults.height:
                    raise InputError(f"{file.name} line {faults['line'][0]}: {faults['fault'][0]}")
            frames.append(frame.select(*roles))
            lines.append(frame["line"].to_numpy())
            rows += frame.height
    return _whole(frames, lines, tuple(begins), str(source), hashes)


def _whole(frames: list[pl.DataFrame], lines: list[Int64s], begins: tuple[tuple[str, int], ...],
           name: str, hashes: list[str]) -> Log:
    rows = sum(frame.height for frame in frames)
    if not rows:
        raise InputError(f"{name} has no rows; expected at least one")
    try:
        frame = pl.concat(frames)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"the files of {name} do not fit together: "
                         f"{str(error).splitlines()[0]}") from None
    together = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Log(frame, np.concatenate(lines), begins,
               (hashes[0] if len(hashes) == 1 else together) if hashes else None)
