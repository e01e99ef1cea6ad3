"""Files that describe items, read as text; ids are read as those of the interactions are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from rec_jax.data.file_layout import BLANK, Layout
from rec_jax.data.ids import id_text
from rec_jax.data.prepare_config import ItemFile
from rec_jax.data.readers import guess_format, read
from rec_jax.data.source_files import source_files
from rec_jax.errors import InputError


class Faults:
    """Lines of item files that are no rows, counted while these are read."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, frame: pl.DataFrame, name: str) -> None:
        if "fault" not in frame.columns:
            return
        bad = frame.filter(pl.col("fault").is_not_null() & (pl.col("fault") != BLANK))
        if len(bad) and not self.first:
            self.first = f"{name}:{bad['line'][0]}: {bad['fault'][0]}"
        self.count += len(bad)

    def notes(self, source: ItemFile) -> list[str]:
        """A line, where there were any."""
        return [f"{self.count} rows of {Path(source.path).name} are bad and left out: the first "
                f"is {self.first}"] if self.count else []


def read_items(source: ItemFile, roles: Mapping[str, str],
               ) -> tuple[Iterator[pl.DataFrame], Faults]:
    """Frames of the roles (`id` among them) as text, and the faults, complete at the end.

    Raises:
      InputError: a file is missing or lacks a column, or ids are of a type that none have.
    """
    faults = Faults()

    def frames() -> Iterator[pl.DataFrame]:
        for file in source_files(source.path):
            form = guess_format(file.path, default="tsv" if source.separator else None)
            layout = Layout(roles, source.separator, source.quote, source.encoding, source.names,
                            source.escape, file.constants)
            for frame in read(file.path, form, layout):
                faults.add(frame, file.name)
                yield as_text(good_rows(frame), [role for role in roles if role != "id"],
                              file.name).select(*roles)

    return frames(), faults


def read_table(path: Path | str, roles: Mapping[str, str]) -> pl.DataFrame:
    """All rows of a CSV, TSV or Parquet file: columns of the roles (`id` among them) as text.

    Raises:
      InputError: as `read_items`, or a row cannot be read.
    """
    frames, faults = read_items(ItemFile(str(path)), roles)
    found = pl.concat([pl.DataFrame(schema=dict.fromkeys(roles, pl.String)), *frames])
    if faults.count:
        raise InputError(f"{path} has {faults.count} rows that cannot be read: the first is "
                         f"{faults.first}")
    return found


def good_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the lines that are no rows."""
    return frame.filter(pl.col("fault").is_null()) if "fault" in frame.columns else frame


def as_text(frame: pl.DataFrame, columns: Sequence[str], name: str) -> pl.DataFrame:
    """`id` and `columns` as text.

    Raises:
      InputError: a column is of a type that has no text.
    """
    try:
        return frame.with_columns(id_text(frame["id"], name).alias("id"),
                                  *(pl.col(column).cast(pl.String) for column in columns))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{name} has columns that are neither text nor numbers: "
                         f"{str(error).splitlines()[0]}") from None
