"""A text file, compressed or not, in any encoding -> its bytes as UTF-8, block by block.

What is left to readers is the text alone: no byte order mark, and `\\n` at the end of each line.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rec_jax.errors import InputError

_BOM = "\ufeff".encode()
_UTF8 = ("utf-8", "utf8", "utf-8-sig")
_NO_TEXT = {b"PK\x03\x04": "a zip archive or Excel file", b"PAR1": "a Parquet file"}
COMPRESSED = (".gz", ".bz2", ".zst", ".xz")
"""Suffixes of compressed files; their first bytes decide how they are read."""


def text_blocks(path: Path, encoding: str, size: int) -> Iterator[bytes]:
    """The text in blocks of about `size` bytes, cut anywhere between two characters.

    A file that begins with the mark of UTF-16 is read as such, whatever `encoding` says of it.

    Raises:
      InputError: the file is no text file.
      OSError, EOFError, UnicodeError: it is damaged, or in another encoding.
    """
    with _open(path) as file:
        first = file.read(size)
        for mark, kind in _NO_TEXT.items():
            if first.startswith(mark):
                raise InputError(f"{path} is {kind}; expected text")
        if encoding.lower().replace("_", "-") in _UTF8 and first.startswith(
                (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        yield from _plain_line_ends(_without_mark(_as_utf8(_rest(first, file, size), encoding)))


def _rest(first: bytes, file: IO[bytes], size: int) -> Iterator[bytes]:
    block = first
    while block:
        yield block
        block = file.read(size)


def _as_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    if encoding.lower().replace("_", "-") in _UTF8:
        yield from blocks
        return
    try:
        "0".encode(encoding)  # refused by what Python calls a codec, but is of bytes alone
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError):
        raise InputError(f"encoding {encoding!r} is unknown; expected a name such as 'utf-8', "
                         "'latin-1' or 'utf-16'") from None
    for block in blocks:
        yield decoder.decode(block).encode()
    yield decoder.decode(b"", final=True).encode()


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_BOM):
            yield start.removeprefix(_BOM)
            break
    else:
        yield start
    yield from blocks


def _plain_line_ends(blocks: Iterator[bytes]) -> Iterator[bytes]:
    pending, seen, alone = b"", False, False
    for block in blocks:
        block = pending + block if pending else block
        pending = b"\r" if block.endswith(b"\r") else b""
        block = block.removesuffix(pending)
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        seen = seen or b"\n" in block
        # Where no other line end comes first, a carriage return is one, as on old Macs.
        alone = alone or (not seen and b"\r" in block)
        yield block.replace(b"\r", b"\n") if alone else block
    if pending:  # half of the last line's end
        yield b"\n"


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        mark = file.read(6)
    if mark.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if mark.startswith(b"BZh"):
        return bz2.open(path, "rb")
    if mark.startswith(b"\xfd7zXZ\x00"):
        return lzma.open(path, "rb")
    # pzstd and others write a frame without data before the first one with data.
    if mark.startswith(b"\x28\xb5\x2f\xfd") or mark[1:4] == b"\x2a\x4d\x18":
        return pa.input_stream(str(path), compression="zstd", buffer_size=1 << 20)
    return path.open("rb")
