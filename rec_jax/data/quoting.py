"""Where quotes and line ends stand in a text, and where its records begin and end.

`RecordPattern` matches one record by regular expressions. The functions below it check a whole
block with a few array operations.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

MAX_LINES = 10_000
"""Lines that one record may have."""
ESCAPED_QUOTE = b"\xff\xff"
"""Stands for an escaped quote while a block is parsed: bytes that UTF-8 does not have."""
_SAMPLE_LINES = 1_000  # lines of a record that are looked at
_QUOTE, _LINE_END = 34, 10
Int64s = npt.NDArray[np.int64]


class RecordPattern:
    """Regular expressions for the records of one separator."""

    def __init__(self, separator: bytes, quote: bool) -> None:
        mark = re.escape(separator)
        quoted = rb'"[^"]*+(?:""[^"]*+)*+"(?=[\n' + mark + rb"]|\Z)|" if quote else b""
        plain = rb'[^"\n' + mark + rb"][^\n" + mark + rb"]*+|" if quote else (
            rb"(?:[^\\\n" + mark + rb"]|\\[\s\S])++|")
        field = b"(?:" + quoted + plain + b")"
        self.separator = separator
        self.quote = quote
        self._record = re.compile(field + b"(?:" + mark + field + b")*+(?=\n|\\Z)")
        self._open = re.compile(b"(?:" + field + mark + b')*+"[^"]*+(?:""[^"]*+)*+"?\\Z')
        self._field = re.compile(field)
        self._special = re.compile(b'"|\xff\xff' if quote else rb'"|\\')
        bare = b"(?:" + quoted + b'[^"\xff\n' + mark + b"]*+)"
        self._clean = re.compile(bare + b"(?:" + mark + bare + b")*+")

    def escaped_lines(self, escape: bytes | None, data: bytes) -> bool:
        """Whether separators or line ends can be escaped here (only where nothing is quoted)."""
        return bool(not self.quote and escape and (escape in data or b'"' in data))

    def next_special(self, data: bytes, at: int) -> int:
        """Where the first character that needs care stands, from `at` on; -1: nowhere."""
        found = self._special.search(data, at)
        return found.start() if found else -1

    def first(self, data: bytes) -> int | None:
        """Where the first record ends, its line end included; None if it does not end here."""
        found = self._record.match(data)
        if found is None or found.end() == len(data):
            return None
        return found.end() + 1

    def record(self, data: bytes, at: int) -> tuple[bytes | None, bool]:
        """The record at `at`, if there is one, and whether its line end is there too."""
        found = self._record.match(data, at)
        if found is None:
            return None, False
        return found.group(), found.end() < len(data)

    def is_open(self, data: bytes, at: int) -> bool:
        """Whether a quote that is not closed before the end of `data` may be closed after it."""
        return self._open.match(data, at) is not None

    def canonical(self, record: bytes) -> bytes:
        """`record` with every field that has a quote in it quoted, and each of these doubled."""
        if self.quote and self._clean.fullmatch(record):
            return record.replace(ESCAPED_QUOTE, b'""')
        fields, at = [], 0
        while at <= len(record):
            found = self._field.match(record, at)
            assert found is not None  # an empty field always matches
            field, at = found.group(), found.end() + 1
            if not self.quote:
                field = re.sub(rb"\\([\s\S])", rb"\1", field)
                if re.search(b'["\n' + re.escape(self.separator) + b"]", field):
                    field = b'"' + field.replace(b'"', b'""') + b'"'
            elif not field.startswith(b'"') and (b'"' in field or ESCAPED_QUOTE in field):
                field = b'"' + field.replace(b'"', b'""') + b'"'
            fields.append(field.replace(ESCAPED_QUOTE, b'""'))
        return self.separator.join(fields)


def find_quotes(data: bytes, separator: bytes) -> tuple[Int64s, bool]:
    """Where quotes stand, and whether each one opens or closes a field or is doubled.

    Every second one opens a field: it stands at the field's beginning, or right behind the quote
    that seemed to close one, which makes the two a doubled quote. So by induction.
    """
    if b'"' not in data:
        return np.zeros(0, np.int64), True
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    allowed = np.zeros(256, bool)
    allowed[[separator[0], _QUOTE, _LINE_END]] = True
    opening, closing = quotes[0::2], quotes[1::2]
    if opening[0] == 0:
        opening = opening[1:]
    if len(closing) and closing[-1] == len(data) - 1:
        closing = closing[:-1]
    return quotes, bool(allowed[text[opening - 1]].all() and allowed[text[closing + 1]].all())


def has_escaped_outside(data: bytes, quotes: Int64s) -> bool:
    """Whether a marked quote stands in a field that is not quoted."""
    if ESCAPED_QUOTE not in data:
        return False
    marks = np.flatnonzero(np.frombuffer(data, np.uint8) == ESCAPED_QUOTE[0])
    return bool((np.searchsorted(quotes, marks) % 2 == 0).any())


def last_record_end(data: bytes, quotes: Int64s) -> int:
    """Where the last whole record ends: after a line end that is not inside quotes; 0 if none."""
    end = data.rfind(b"\n")
    while end >= 0:
        before = int(np.searchsorted(quotes, end))
        if before % 2 == 0:
            break
        end = data.rfind(b"\n", 0, int(quotes[before - 1]))
    return end + 1


def line_ends(data: bytes, quotes: Int64s) -> tuple[Int64s | None, Int64s]:
    """Where the line ends stand, and the line (from 0) at which each record begins.

    The first is None where each line is a record.
    """
    empty = np.zeros(0, np.int64)
    if not len(quotes):
        return None, empty
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_END)
    outer = np.searchsorted(quotes, ends) % 2 == 0
    if outer.all():
        return None, empty
    starts = np.flatnonzero(outer) + 1
    if data.endswith(b"\n"):
        starts = starts[:-1]
    return ends, np.concatenate([[0], starts]).astype(np.int64)


def has_joined_records(data: bytes, ends: Int64s, pattern: RecordPattern, fields: int,
            numbers: tuple[int, ...]) -> bool:
    """Whether a record of several lines is likely to be several records; see `is_joined`."""
    text = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(text == pattern.separator[0])
    bounds = np.concatenate([[0], ends, [len(data)]])
    row_like = np.diff(np.searchsorted(marks, bounds)) == fields - 1
    quotes = np.flatnonzero(text == _QUOTE)
    inner = np.searchsorted(quotes, ends) % 2 == 1
    # Both sides of an inner line end look like rows: only these records are read here.
    for index in np.flatnonzero(inner & row_like[:-1] & row_like[1:]):
        at = int(np.searchsorted(quotes, ends[index]))
        opened = data.rfind(b"\n", 0, int(quotes[at - 1])) + 1
        closed = data.find(b"\n", int(quotes[at])) if at < len(quotes) else -1
        lines = data[opened:closed if closed >= 0 else len(data)].split(b"\n")
        if is_joined(lines, pattern.separator, fields, numbers):
            return True
    return bool(_longest(inner) > MAX_LINES)


def _longest(inner: npt.NDArray[np.bool_]) -> int:
    """The longest run of true values."""
    outside = np.flatnonzero(~np.concatenate([[False], inner, [False]]))
    return int(np.diff(outside).max()) - 1


def is_joined(lines: list[bytes], separator: bytes, fields: int,
               numbers: tuple[int, ...]) -> bool:
    """Whether the lines of one record look as if each were one: an open quote joined them.

    A line looks like a record if it has as many fields, and numbers where there are numbers.
    Without these, three such lines are asked for, since text can have separators too.
    """
    if len(lines) < 2 or not fields:
        return False
    if len(lines) > MAX_LINES:
        return True
    sample = lines[:_SAMPLE_LINES]
    similar = 0
    for line in sample:
        parts = line.split(separator)
        similar += len(parts) == fields and all(
            parts[number].strip(b'" ')[:1] in b"0123456789-" and parts[number].strip(b'" ')
            for number in numbers)
    return similar >= (2 if numbers else 3) and 2 * similar >= len(sample)
