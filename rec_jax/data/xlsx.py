"""The first sheet of an Excel file as CSV, with the standard library alone.

Enough for tables that are published as `.xlsx`: text, numbers, and dates (cells whose style is a
date format), one header row. Office Open XML, ECMA-376 part 1, section 18.
"""

from __future__ import annotations

import csv
import datetime
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from rec_jax.errors import InputError

_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_BUILT_IN_DATES = {*range(14, 23), *range(45, 48)}
PART_LIMIT = 2 << 30  # bytes of one unpacked part of the file, and of the CSV file
TEXTS_LIMIT = 256 << 20  # bytes of the parts that are read into memory
_EPOCH = datetime.datetime(1899, 12, 30)


def sheet_to_csv(source: Path, target: Path) -> None:
    """Write the first sheet of `source` to CSV file `target`; dates become ISO 8601.

    Raises:
      InputError: no Excel file.
    """
    try:
        with zipfile.ZipFile(source) as book, target.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for row in _rows(book):
                writer.writerow(row)
                if file.tell() > PART_LIMIT:
                    raise ValueError(f"the table is larger than {PART_LIMIT} bytes")
    except (KeyError, IndexError, ValueError, OverflowError, EOFError, zlib.error,
            NotImplementedError, RuntimeError, zipfile.BadZipFile,
            ElementTree.ParseError) as error:
        raise InputError(f"{source} cannot be read as an Excel file: {error}") from None


def _rows(book: zipfile.ZipFile) -> Iterator[list[str]]:
    texts, dates = _texts(book), _date_styles(book)
    with _part(book, "xl/worksheets/sheet1.xml", PART_LIMIT) as sheet:
        for _, element in ElementTree.iterparse(sheet):
            if element.tag == f"{_SPACE}row":
                yield _row(element, texts, dates)
                element.clear()


def _part(book: zipfile.ZipFile, name: str, limit: int) -> IO[bytes]:
    """A part of the file; `zipfile` reads no more of it than the size that is stated there."""
    size = book.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"{name} has {size} bytes, expected at most {limit}")
    return book.open(name)


def _row(element: ElementTree.Element, texts: list[str], dates: set[int]) -> list[str]:
    values: list[str] = []
    for cell in element.iter(f"{_SPACE}c"):
        column = _column(cell.get("r", ""), len(values))
        values.extend([""] * (column - len(values)))
        values.append(_value(cell, texts, dates))
    return values


def _value(cell: ElementTree.Element, texts: list[str], dates: set[int]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(part.text or "" for part in cell.iter(f"{_SPACE}t"))
    raw = cell.findtext(f"{_SPACE}v")
    if raw is None:
        return ""
    if kind == "s":
        return texts[int(raw)]
    if kind != "n":
        return raw
    if int(cell.get("s", "0")) in dates:
        moment = _EPOCH + datetime.timedelta(seconds=round(float(raw) * 86_400))
        return moment.isoformat(sep=" ")
    return str(int(float(raw))) if float(raw).is_integer() else raw


def _texts(book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    with _part(book, "xl/sharedStrings.xml", TEXTS_LIMIT) as file:
        return ["".join(part.text or "" for part in entry.iter(f"{_SPACE}t"))
                for _, entry in ElementTree.iterparse(file) if entry.tag == f"{_SPACE}si"]


def _date_styles(book: zipfile.ZipFile) -> set[int]:
    """Numbers of the cell styles that show a date."""
    if "xl/styles.xml" not in book.namelist():
        return set()
    with _part(book, "xl/styles.xml", TEXTS_LIMIT) as file:
        root = ElementTree.parse(file).getroot()
    formats = set(_BUILT_IN_DATES)
    for entry in root.iter(f"{_SPACE}numFmt"):
        code = re.sub(r'"[^"]*"|\[[^\]]*\]', "", entry.get("formatCode", ""))
        if re.search(r"[ymdhs]", code, re.IGNORECASE):
            formats.add(int(entry.get("numFmtId", "0")))
    styles = root.find(f"{_SPACE}cellXfs")
    cells = [] if styles is None else styles.findall(f"{_SPACE}xf")
    return {index for index, cell in enumerate(cells) if int(cell.get("numFmtId", "0")) in formats}


def _column(reference: str, following: int) -> int:
    """Zero-based column of a cell reference such as "AB12"."""
    letters = re.match(r"[A-Z]{1,3}", reference)
    if letters is None:
        return following
    number = 0
    for letter in letters.group():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1
