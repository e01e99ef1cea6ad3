"""Source files -> frames of raw rows, block by block, in file order.

Every reader yields frames with the columns `line` (int64, counted from 1) and the roles asked
for (`user`, `item`, and `time`, `rating` where mapped), as text or as the file's own type. Text
readers add `fault`: why a line is no row (`BLANK`: nothing stands there), else null.

Another ingest format is one more function and one more line in `READERS`.
"""

from __future__ import annotations

import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import polars as pl

from rec_jax.data.delimited import (
    DELIMITED_DEFAULTS,
    header_columns,
    read_csv,
    read_lists,
    read_pairs,
    read_tsv,
)
from rec_jax.data.file_layout import Layout, locate_columns
from rec_jax.data.text import COMPRESSED
from rec_jax.errors import InputError, first_line

BLOCK_ROWS = 2_000_000
_READ_ERRORS = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, lzma.LZMAError,
                UnicodeError)


def guess_format(path: Path | str, default: str | None = None) -> str:
    """The format by suffix, else `default`; `.inter`, `.item`, `.user` are RecBole's TSV files.

    Raises:
      InputError: the suffix says nothing (`.txt` can be pairs or lists), nor does `default`.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes
                if suffix.lower() not in COMPRESSED]
    known = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet",
             ".inter": "tsv", ".item": "tsv", ".user": "tsv"}
    if suffixes and suffixes[-1] in known:
        return known[suffixes[-1]]
    if default:
        return default
    raise InputError(f"{path}: the suffix does not name a format; "
                     f"expected format to be one of {', '.join(READERS)}")


def read(path: Path | str, form: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Frames of raw rows of `path`, in file order.

    Raises:
      InputError: the file is missing, empty of rows or broken, or lacks a mapped column.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file of rows")
    form = guess_format(path) if form == "auto" else form
    try:
        yield from READERS[form](path, layout)
    except _READ_ERRORS as error:
        cause = first_line(error)
        raise InputError(f"{path} cannot be read as {form}: {cause}") from None


def column_types(path: Path, form: str, layout: Layout) -> dict[str, pl.DataType]:
    """Names of the columns that a file has once, and their types; of text, all are strings."""
    try:
        if form == "parquet":
            return dict(pl.scan_parquet(path, glob=False, hive_partitioning=False
                                        ).collect_schema())
        if form in ("csv", "tsv"):
            names = layout.names or header_columns(path, layout, *DELIMITED_DEFAULTS[form])[0]
            short = Counter(name.partition(":")[0] for name in names)
            return {name: pl.String() for name, times in short.items() if times == 1}
    except _READ_ERRORS:
        pass  # `read` reports it
    return {}


def _read_parquet(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)  # as the path says
    names = scan.collect_schema().names()
    picked, constants = locate_columns(layout, names, path)
    selected = scan.select(pl.col(names[place]).alias(role) for role, place in picked.items())
    line = 1
    for frame in selected.collect_batches(chunk_size=BLOCK_ROWS, engine="streaming"):
        yield frame.with_columns(
            pl.int_range(line, line + frame.height, dtype=pl.Int64).alias("line"),
            *(pl.lit(value, pl.String).alias(role) for role, value in constants.items()))
        line += frame.height


READERS: Mapping[str, Callable[[Path, Layout], Iterator[pl.DataFrame]]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": _read_parquet,
    "pairs": read_pairs,
    "lists": read_lists,
}
