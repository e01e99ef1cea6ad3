"""Text files of rows: CSV and TSV, pairs ("user item") and lists ("user item item ...").

Text is cut into blocks of complete records by `rec_jax.data.records`, and polars splits the fields:
memory is bounded for compressed files too, and the line number of each row is known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from rec_jax.data.file_layout import BLANK, Layout, locate_columns
from rec_jax.data.records import Block, Dialect, Records
from rec_jax.data.text import text_blocks
from rec_jax.errors import InputError

BLOCK_BYTES = 64 << 20
_HEADER_BYTES = 1 << 16
_SURPLUS = 3  # fields after the last column that are looked at; empty ones are allowed
_UNIT = "\x1f"  # stands for a separator of several bytes, such as "::"
_SEPARATORS = (",", "\t", ";", "|")


DELIMITED_DEFAULTS = {"csv": (",", True), "tsv": ("\t", False)}


def read_csv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, *DELIMITED_DEFAULTS["csv"])


def read_tsv(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    return _read_delimited(path, layout, *DELIMITED_DEFAULTS["tsv"])


def _read_delimited(path: Path, layout: Layout, separator: str, quote: bool,
                    ) -> Iterator[pl.DataFrame]:
    names, separator = (header_columns(path, layout, separator, quote) if not layout.names
                        else (list(layout.names), layout.separator or separator))
    if not names:
        return  # an empty file
    _check_cut(names, layout, separator, path)
    picked, constants = locate_columns(layout, names, path)
    records = _records(path, layout, separator, quote, BLOCK_BYTES)
    if not layout.names:
        records.header()
    numbers = tuple(picked[role] for role in ("time", "rating") if role in picked)
    mark = records.dialect.separator.decode()
    for block in records.blocks(len(names), numbers):
        frame = _parse(block, len(names), picked, mark, _quote_char(records), path)
        yield _restored(frame, list(picked), separator, records, block).with_columns(
            pl.lit(value, pl.String).alias(role) for role, value in constants.items())


def read_pairs(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    records = _records(path, layout, " ", False, BLOCK_BYTES)
    for block in records.blocks(2, ()):
        block = Block(_single_spaces(block.data), block.records, block.lines)
        yield _parse(block, 2, {"user": 0, "item": 1}, " ", None, path)


def read_lists(path: Path, layout: Layout) -> Iterator[pl.DataFrame]:
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


def _records(path: Path, layout: Layout, separator: str, quote: bool, size: int) -> Records:
    quote = quote if layout.quote is None else layout.quote
    escape = None if layout.escape is None else layout.escape.strip('"').encode()
    blocks = text_blocks(path, layout.encoding, size)
    wide = len(separator.encode()) > 1
    if wide:
        blocks = _one_byte_separator(blocks, separator.encode(), path)
    mark = _UNIT if wide else separator
    return Records(blocks, Dialect(mark.encode(), quote, escape), size, path.name)


def header_columns(path: Path, layout: Layout, separator: str,
                   quote: bool) -> tuple[list[str], str]:
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


def _one_byte_separator(blocks: Iterator[bytes], separator: bytes, path: Path) -> Iterator[bytes]:
    """One byte in place of a separator of several."""
    pending = b""
    for block in blocks:
        if _UNIT.encode() in block:
            raise InputError(f"{path} has bytes 0x1f, which stand for the separator "
                             f"{separator.decode()!r} here; expected text without them")
        block = (pending + block).replace(separator, _UNIT.encode())
        pending = next((separator[:size] for size in range(len(separator) - 1, 0, -1)
                     if block.endswith(separator[:size])), b"")
        yield block.removesuffix(pending)
    yield pending


def _single_spaces(block: bytes) -> bytes:
    """Fields of a whitespace-separated block with one space between and none at the ends."""
    block = block.replace(b"\r", b"").replace(b"\t", b" ")
    while b"  " in block:
        block = block.replace(b"  ", b" ")
    return block.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")
