"""Source files -> frames of raw rows, block by block, in file order.

Every reader yields frames with the columns `line` (int64, counted from 1) and the roles asked
for (`user`, `item`, and `time`, `rating` where mapped), as text or as the file's own type. Text
readers add `extra`: not null where a line has more fields than its header. Text is cut into
blocks at line ends here, not by the parser: memory stays bounded for compressed files too, and
a row's line number is known. (In a file whose quoted fields contain line breaks, the numbers
count records.)

Another ingest format is one more function and one more line in `READERS`.
"""

from __future__ import annotations

import difflib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from rec_jax.errors import InputError

BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 2_000_000
_LONGEST_RECORD = 8  # in blocks
_UNIT = "\x1f"  # stands for a separator of several bytes, such as "::"


@dataclass(frozen=True)
class Layout:
    """How to read one file. roles: role -> column name; the rest as in `PrepareConfig`."""

    roles: Mapping[str, str]
    separator: str | None = None
    quote: bool | None = None
    encoding: str = "utf-8"
    names: Sequence[str] = ()


def guess_format(path: Path | str, default: str | None = None) -> str:
    """The format by suffix, else `default`; `.inter`, `.item`, `.user` are RecBole's TSV files.

    Raises:
      InputError: the suffix says nothing (`.txt` can be pairs or lists), nor does `default`.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
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
        raise InputError(f"{path} does not exist; expected a file of interactions")
    form = guess_format(path) if form == "auto" else form
    try:
        yield from READERS[form](path, layout)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, UnicodeError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as {form}: {cause}") from None


def _read_csv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, separator=",", quote=True)


def _read_tsv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, separator="\t", quote=False)


def _read_delimited(path: Path, layout: Layout, separator: str, quote: bool,
                    ) -> Iterator[pl.DataFrame]:
    separator = layout.separator or separator
    quote = quote if layout.quote is None else layout.quote
    names, line = list(layout.names), 0
    for block in _blocks(path, layout.encoding, quote):
        if len(separator.encode()) > 1:
            block = block.replace(separator.encode(), _UNIT.encode())
        mark = _UNIT if len(separator.encode()) > 1 else separator
        if not names:
            header, _, block = block.partition(b"\n")
            names = _header(header.decode().removeprefix("\ufeff"), mark, quote)
            line = 1
        picked = {role: find_column(name, names, path) for role, name in layout.roles.items()}
        columns = [f"c{index}" for index in range(len(names))]
        frame = _parse(block, [*columns, "extra"], mark, quote)
        yield frame.select(
            (pl.col("line").cast(pl.Int64) + line + 1).alias("line"),
            *(pl.col(columns[names.index(name)]).alias(role) for role, name in picked.items()),
            "extra",
        )
        line += frame.height


def _read_pairs(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    line = 0
    for block in _blocks(path, layout.encoding, quote=False):
        frame = _parse(_single_spaces(block), ["user", "item", "extra"], " ", quote=False)
        yield frame.with_columns(pl.col("line").cast(pl.Int64) + line + 1)
        line += frame.height


def _read_lists(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    line = 0
    for block in _blocks(path, layout.encoding, quote=False, size=BLOCK_BYTES // 4):
        frame = _parse(_single_spaces(block), ["text"], _UNIT, quote=False)
        fields = pl.col("text").str.split(" ")
        yield frame.select(
            (pl.col("line").cast(pl.Int64) + line + 1).alias("line"),
            fields.list.first().alias("user"),
            fields.list.slice(1).alias("item"),
            pl.lit(None, pl.String).alias("extra"),
        ).explode("item", empty_as_null=True)
        line += frame.height


def _read_parquet(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    scan = pl.scan_parquet(path, glob=False)  # brackets in a path are no pattern
    names = scan.collect_schema().names()
    picked = {role: find_column(name, names, path) for role, name in layout.roles.items()}
    selected = scan.select(pl.col(name).alias(role) for role, name in picked.items())
    line = 1
    for frame in selected.collect_batches(chunk_size=BLOCK_ROWS, engine="streaming"):
        yield frame.with_columns(pl.int_range(line, line + frame.height, dtype=pl.Int64)
                                 .alias("line"))
        line += frame.height


READERS: Mapping[str, Callable[[Path, Layout], Iterator[pl.DataFrame]]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "pairs": _read_pairs,
    "lists": _read_lists,
}


def find_column(name: str, names: Sequence[str], path: Path) -> str:
    """`name`, where the file has it.

    Raises:
      InputError: naming the columns that exist and the nearest one.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(repr, names))}{hint}")


def _header(text: str, separator: str, quote: bool) -> list[str]:
    names = text.rstrip("\r").split(separator)
    if quote:
        names = [name.strip().strip('"') for name in names]
    return [name.partition(":")[0] for name in names]


def _parse(block: bytes, names: list[str], separator: str, quote: bool) -> pl.DataFrame:
    """One block as text columns `names`, after `line` (from 0); an empty field is null."""
    schema = dict.fromkeys(names, pl.String())
    if not block:
        return pl.DataFrame(schema={"line": pl.UInt32(), **schema})
    return pl.read_csv(block, has_header=False, schema=schema, separator=separator,
                       quote_char='"' if quote else None, row_index_name="line",
                       truncate_ragged_lines=True, missing_columns="insert",
                       extra_columns="ignore")


def _blocks(path: Path, encoding: str, quote: bool, size: int | None = None) -> Iterator[bytes]:
    """The file in blocks of whole lines, as UTF-8; nothing is yielded for an empty file."""
    size = size or BLOCK_BYTES
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    rest = b""
    with _open(path) as file:
        while fresh := file.read(size):
            rest += fresh
            cut = _last_line_end(rest, quote)
            block, rest = rest[:cut], rest[cut:]
            if len(rest) > _LONGEST_RECORD * size:
                raise InputError(f"{path}: a record of more than {len(rest)} bytes; if quotes do "
                                 "not enclose fields in this file, set quote = false")
            if block:
                yield block if utf8 else block.decode(encoding).encode()
    if rest:
        yield rest if utf8 else rest.decode(encoding).encode()


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def _last_line_end(data: bytes, quote: bool) -> int:
    """Where the last whole record ends: after a line end that is not inside quotes; 0 if none."""
    cut = data.rfind(b"\n") + 1
    if quote:
        quotes = data.count(b'"', 0, cut)
        while cut and quotes % 2:
            before = data.rfind(b"\n", 0, cut - 1) + 1
            quotes -= data.count(b'"', before, cut)
            cut = before
    return cut


def _single_spaces(block: bytes) -> bytes:
    """Fields of a whitespace-separated block with one space between and none at the ends."""
    block = block.replace(b"\r", b"").replace(b"\t", b" ")
    while b"  " in block:
        block = block.replace(b"  ", b" ")
    return block.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")
