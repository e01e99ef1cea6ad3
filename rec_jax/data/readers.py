"""Source files -> frames of raw rows, block by block, in file order.

Every reader yields frames with the columns `line` (int64, counted from 1) and the roles asked
for (`user`, `item`, and `time`, `rating` where mapped), as text or as the file's own type. Text
readers add `fault`: why a row is none (`BLANK`: because nothing stands there), else null. Text is
cut into blocks of whole records by `rec_jax.data.records`, and polars takes the fields apart:
memory stays bounded for compressed files too, and a row's line number is known.

Another ingest format is one more function and one more line in `READERS`.
"""

from __future__ import annotations

import csv
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from rec_jax.data.records import Block, Dialect, Records
from rec_jax.data.text import COMPRESSED, text_blocks
from rec_jax.errors import InputError, did_you_mean, first_line

BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 2_000_000
BLANK = "blank"
_HEADER_BYTES = 1 << 16
_SURPLUS = 3  # fields after the last column that are looked at; empty ones are let pass
_UNIT = "\x1f"  # stands for a separator of several bytes, such as "::"
_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Layout:
    """How to read one file. roles: role -> column name; the rest as in `PrepareConfig`.

    constants: columns that the file lacks, with the one value that they have in all its rows.
    """

    roles: Mapping[str, str]
    separator: str | None = None
    quote: bool | None = None
    encoding: str = "utf-8"
    names: Sequence[str] = ()
    escape: str | None = None
    constants: Mapping[str, str | None] = field(default_factory=dict)


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
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, lzma.LZMAError,
            UnicodeError) as error:
        cause = first_line(error)
        raise InputError(f"{path} cannot be read as {form}: {cause}") from None


def column_types(path: Path, form: str, layout: Layout) -> dict[str, pl.DataType]:
    """Names of the columns that a file has once, and their types; of text, all are strings."""
    try:
        if form == "parquet":
            return dict(pl.scan_parquet(path, glob=False, hive_partitioning=False
                                        ).collect_schema())
        if form in ("csv", "tsv"):
            names = layout.names or _columns(path, layout, *_DEFAULTS[form])[0]
            short = Counter(name.partition(":")[0] for name in names)
            return {name: pl.String() for name, times in short.items() if times == 1}
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, lzma.LZMAError,
            UnicodeError):
        pass  # `read` tells it
    return {}


_DEFAULTS = {"csv": (",", True), "tsv": ("\t", False)}


def _read_csv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, *_DEFAULTS["csv"])


def _read_tsv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, *_DEFAULTS["tsv"])


def _read_delimited(path: Path, layout: Layout, separator: str, quote: bool,
                    ) -> Iterator[pl.DataFrame]:
    names, separator = (_columns(path, layout, separator, quote) if not layout.names
                        else (list(layout.names), layout.separator or separator))
    if not names:
        return  # an empty file
    _check_cut(names, layout, separator, path)
    picked, constants = _locate(layout, names, path)
    records = _records(path, layout, separator, quote, BLOCK_BYTES)
    if not layout.names:
        records.header()
    numbers = tuple(picked[role] for role in ("time", "rating") if role in picked)
    mark = records.dialect.separator.decode()
    for block in records.blocks(len(names), numbers):
        frame = _parse(block, len(names), picked, mark, _quote_char(records), path)
        yield _restored(frame, list(picked), separator, records, block).with_columns(
            pl.lit(value, pl.String).alias(role) for role, value in constants.items())


def _records(path: Path, layout: Layout, separator: str, quote: bool, size: int) -> Records:
    quote = quote if layout.quote is None else layout.quote
    escape = None if layout.escape is None else layout.escape.strip('"').encode()
    blocks = text_blocks(path, layout.encoding, size)
    wide = len(separator.encode()) > 1
    if wide:
        blocks = _narrow(blocks, separator.encode(), path)
    mark = _UNIT if wide else separator
    return Records(blocks, Dialect(mark.encode(), quote, escape), size, path.name)


def _columns(path: Path, layout: Layout, separator: str, quote: bool) -> tuple[list[str], str]:
    """Names in the header, as they stand there, and the separator that is between them.

    Where none is given and the usual one does not give the mapped columns, but exactly one other
    does, it is that one.
    """
    usual = layout.separator or separator
    names = _header(path, layout, usual, quote)
    if layout.separator or _has_all(layout, names):
        return names, usual
    others = [(found, mark) for mark in _SEPARATORS if mark != usual
              if _has_all(layout, found := _header(path, layout, mark, quote))]
    return others[0] if len(others) == 1 else (names, usual)


def _header(path: Path, layout: Layout, separator: str, quote: bool) -> list[str]:
    records = _records(path, layout, separator, quote, min(_HEADER_BYTES, BLOCK_BYTES))
    text = records.header().decode()
    if "\x00" in text:
        raise InputError(f"{path} has NUL characters in its header; if it is UTF-16, set encoding "
                         'to "utf-16-le" or "utf-16-be"')
    mark = records.dialect.separator.decode()
    if not text:
        return []
    if not records.dialect.quote:
        return text.split(mark)
    row = next(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    return [name.strip() for name in row]


def _has_all(layout: Layout, names: Sequence[str]) -> bool:
    known = {*names, *(name.partition(":")[0] for name in names), *layout.constants}
    return all(name in known for name in layout.roles.values())


def _locate(layout: Layout, names: Sequence[str], path: Path,
            ) -> tuple[dict[str, int], dict[str, str | None]]:
    """Position of each role's column in the file, and the values of those that it has not."""
    short = [name.partition(":")[0] for name in names]
    picked: dict[str, int] = {}
    constants: dict[str, str | None] = {}
    for role, name in layout.roles.items():
        places = ([place for place, found in enumerate(names) if found == name]
                  or [place for place, found in enumerate(short) if found == name])
        if len(places) > 1:
            raise InputError(f"{path} has {len(places)} columns {name!r}; expected one")
        if places:
            picked[role] = places[0]
        elif name in layout.constants:
            constants[role] = layout.constants[name]
        else:
            find_column(name, [*short, *layout.constants], path)
    return picked, constants


_MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar", " ": "a space"}


def _check_cut(names: Sequence[str], layout: Layout, separator: str, path: Path) -> None:
    """Refuse a file whose first line is one column although more are wanted.

    Raises:
      InputError: saying what the line is, and what seems to stand between its fields.
    """
    wanted = [name for name in layout.roles.values() if name not in layout.constants]
    if len(names) != 1 or len(wanted) < 2 or layout.names:
        return
    counts = {mark: names[0].count(mark) for mark in _MARKS if mark != separator}
    likely = max(counts, key=lambda mark: counts[mark])
    hint = (f"it has {_MARKS[likely]} ({likely!r}) between its fields?"
            if counts[likely] else "is this the right file?")
    raise InputError(f"{path}: no separator {separator!r} is in the first line, which is "
                     f"{names[0][:120]!r}; {hint}")


def _read_pairs(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    records = _records(path, layout, " ", False, BLOCK_BYTES)
    for block in records.blocks(2, ()):
        block = Block(_single_spaces(block.data), block.records, block.lines)
        yield _parse(block, 2, {"user": 0, "item": 1}, " ", None, path)


def _read_lists(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    records = _records(path, layout, _UNIT, False, BLOCK_BYTES // 4)
    for block in records.blocks(1, ()):
        block = Block(_single_spaces(block.data), block.records, block.lines)
        fields = pl.col("text").str.split(" ")
        yield _parse(block, 1, {"text": 0}, _UNIT, None, path).select(
            "line",
            fields.list.first().alias("user"),
            fields.list.slice(1).alias("item"),
            "fault",
        ).explode("item", empty_as_null=True)


def _read_parquet(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)  # as the path says
    names = scan.collect_schema().names()
    picked, constants = _locate(layout, names, path)
    selected = scan.select(pl.col(names[place]).alias(role) for role, place in picked.items())
    line = 1
    for frame in selected.collect_batches(chunk_size=BLOCK_ROWS, engine="streaming"):
        yield frame.with_columns(
            pl.int_range(line, line + frame.height, dtype=pl.Int64).alias("line"),
            *(pl.lit(value, pl.String).alias(role) for role, value in constants.items()))
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
    hint = did_you_mean(name, names, cutoff=0.3)
    raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(repr, names))}{hint}")


def _parse(block: Block, width: int, picked: Mapping[str, int], separator: str,
           quote: str | None, path: Path) -> pl.DataFrame:
    """`line`, the picked fields as text, and `fault`; an empty field that is not quoted is null."""
    names = [f"c{index}" for index in range(width + _SURPLUS)]
    schema = dict.fromkeys(names, pl.String())
    places = sorted({*picked.values(), *range(width, width + _SURPLUS)})
    try:
        frame = pl.read_csv(
            block.data, has_header=False, schema=schema, separator=separator, quote_char=quote,
            columns=places, truncate_ragged_lines=True, missing_columns="insert",
            extra_columns="ignore") if block.data else pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError as error:
        raise _not_utf8(block) or error from None
    if frame.height != block.records:
        raise InputError(f"{path}: {block.records} records begin at line {block.lines[0]}, but "
                         f"{frame.height} could be read; is its separator {separator!r}?")
    fields = {role: pl.col(names[place]) for role, place in picked.items()}
    surplus = pl.any_horizontal(pl.col(names[width:]).is_not_null())
    nothing = pl.all_horizontal(value.is_null() for value in fields.values())
    fault = (pl.when(surplus).then(pl.lit("too many fields"))
             .when(nothing).then(pl.lit(BLANK)))
    result = frame.select(pl.Series("line", block.lines, pl.Int64),
                          *(value.alias(role) for role, value in fields.items()),
                          fault.alias("fault"))
    if not block.faults:
        return result
    bad = pl.DataFrame(block.faults, schema={"line": pl.Int64, "fault": pl.String}, orient="row")
    return pl.concat([result, bad], how="diagonal").sort("line", maintain_order=True)


def _not_utf8(block: Block) -> InputError | UnicodeError | None:
    """What is wrong, if it is the encoding."""
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = block.lines[0] + block.data.count(b"\n", 0, error.start)
        return UnicodeError(f"line {line} is not utf-8 (byte 0x{block.data[error.start]:02x}); "
                            "set encoding, such as latin-1")
    return None


def _quote_char(records: Records) -> str | None:
    return '"' if records.dialect.quote or records.escape else None


def _restored(frame: pl.DataFrame, roles: Sequence[str], separator: str, records: Records,
              block: Block) -> pl.DataFrame:
    """Fields as they were meant: what stood for a separator, or for a backslash, is undone."""
    changes = []
    if separator.encode() != records.dialect.separator and records.dialect.quote:
        changes.append((_UNIT, separator))
    escape = records.escape
    if escape and records.dialect.quote and escape * 2 in block.data:
        changes.append(((escape * 2).decode(), escape.decode()))
    for found, meant in changes:
        frame = frame.with_columns(pl.col(*roles).str.replace_all(found, meant, literal=True))
    return frame


def _narrow(blocks: Iterator[bytes], separator: bytes, path: Path) -> Iterator[bytes]:
    """One byte in place of a separator of several."""
    held = b""
    for block in blocks:
        if _UNIT.encode() in block:
            raise InputError(f"{path} has bytes 0x1f, which stand for the separator "
                             f"{separator.decode()!r} here; expected text without them")
        block = (held + block).replace(separator, _UNIT.encode())
        held = next((separator[:size] for size in range(len(separator) - 1, 0, -1)
                     if block.endswith(separator[:size])), b"")
        yield block.removesuffix(held)
    yield held


def _single_spaces(block: bytes) -> bytes:
    """Fields of a whitespace-separated block with one space between and none at the ends."""
    block = block.replace(b"\r", b"").replace(b"\t", b" ")
    while b"  " in block:
        block = block.replace(b"  ", b" ")
    return block.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")
