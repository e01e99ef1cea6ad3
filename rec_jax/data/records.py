"""Text with quotes -> blocks of whole, well-formed records, and the lines that are neither.

The dialect is that of RFC 4180: a field that begins with a quote ends at the next single quote,
and a quote inside it is doubled; a quote inside an unquoted field is an ordinary character. Where
a file escapes quotes by a backslash instead (as Spark does), these are made doubled ones.

A block is checked as a whole with a few array operations. Only where something is wrong in it
are its records matched one by one: a line at whose quotes no record can be read is set aside, and
reading goes on at the next line. So a quote that is never closed costs one line, not all that
follow. What is yielded has one meaning only, for any parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError

MOST_LINES = 10_000
"""Lines that one record may have."""
_LONGEST_RECORD = 8  # in blocks
OPEN_QUOTE = "a quote is not closed, or not doubled"
_TRIAL = 1 << 20  # bytes
_SAMPLE = 1_000  # lines of a record that are looked at
_QUOTE, _LINE = 34, 10
_ESCAPED, _PAIR = b"\xff\xff", b"\xff\xfe"
"""What stand for an escaped quote and an escaped escape meanwhile: bytes that no UTF-8 has."""
_BACKSLASH = b"\\"
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Some records. data: text in which each record is whole; records: how many there are.

    lines: int64 [records], the line at which each begins. faults: lines that are no records, and
    why.
    """

    data: bytes
    records: int
    lines: Int64s
    faults: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Dialect:
    """How fields are delimited. separator: one byte.

    quote: fields may be quoted. escape: what stands before a quote inside a quoted field; empty:
      quotes are doubled; none: a backslash if the file cannot be read otherwise.
    """

    separator: bytes
    quote: bool = True
    escape: bytes | None = None


class Records:
    """The records of a text, in order. `escape` is known once it was needed."""

    def __init__(self, text: Iterator[bytes], dialect: Dialect, size: int,
                 name: str = "text") -> None:
        """text: blocks of UTF-8, of about `size` bytes. name: of the file, for messages."""
        self.dialect = dialect
        self.escape = dialect.escape if dialect.quote or dialect.escape else b""
        self._text = text
        self._size = size
        self._name = name
        self._rest = b""
        self._line = 1
        self._final = False
        self._match = _Matcher(dialect.separator, dialect.quote)

    def header(self) -> bytes:
        """The first line (with quotes: the first record) that is not blank, taken off; empty if
        there is none."""
        while True:
            text = self._rest.lstrip(b"\n")  # blank lines before it
            self._line += len(self._rest) - len(text)
            self._rest = text
            data = self._normal(text)
            end = self._match.first(data)
            if end is None and not self._final and (
                    b"\n" not in data or self._match.is_open(data, 0)) and (
                    len(data) <= _LONGEST_RECORD * self._size):
                self._more()
                continue
            if end is None:
                end = data.find(b"\n") + 1 or len(data)
            self._line += data.count(b"\n", 0, end)
            self._rest = self._rest[end:]
            return self._match.canonical(data[:end].rstrip(b"\n"))

    def blocks(self, fields: int, numbers: tuple[int, ...]) -> Iterator[Block]:
        """All further records, each of `fields` fields, of which those at `numbers` are numbers or
        dates: by these, lines that an open quote joined are told from text of many lines."""
        while self._rest or not self._final:
            if not self._final:
                self._more()
            self._settle_escape()
            block, used = self._block(fields, numbers)
            self._rest = self._rest[used:]
            if len(self._rest) > (_LONGEST_RECORD + 1) * self._size:
                raise InputError(f"{self._name}:{self._line}: a line of more than "
                                 f"{len(self._rest)} bytes; expected text with line ends")
            if block.records or block.faults:
                yield block

    def _more(self) -> None:
        fresh = next(self._text, None)
        if fresh is None:
            self._final = True
        else:
            self._rest = self._rest + fresh if self._rest else fresh

    def _block(self, fields: int, numbers: tuple[int, ...]) -> tuple[Block, int]:
        data = self._normal(self._rest)
        if not self.dialect.quote and not self.escape:
            cut = len(data) if self._final else data.rfind(b"\n") + 1
            return self._plain(data[:cut], None), cut
        quotes, clean = _quotes(data, self.dialect.separator)
        if self.escape and (self._match.escaped_lines(self.escape, data)
                            or _escaped_outside(data, quotes)):
            clean = False
        if clean and not (self._final and len(quotes) % 2):
            cut = len(data) if self._final else _last_end(data, quotes)
            open_lines = data.count(b"\n", cut)
            if open_lines <= MOST_LINES and len(data) - cut <= _LONGEST_RECORD * self._size:
                whole = data[:cut]
                ends, lines = _ends(whole, quotes)
                if ends is None:
                    return self._plain(whole, None), cut
                if not _joined(whole, ends, self._match, fields, numbers):
                    return self._plain(whole, lines), cut
        return self._one_by_one(data, fields, numbers)

    def _plain(self, data: bytes, lines: Int64s | None) -> Block:
        """A block without faults. lines: counted from 0, where they are not one a record."""
        count = data.count(b"\n") + bool(data and not data.endswith(b"\n"))
        lines = np.arange(count) if lines is None else lines
        data = data.replace(_ESCAPED, b'""') if self.escape else data
        block = Block(data, len(lines), lines + self._line)
        self._line += count
        return block

    def _one_by_one(self, data: bytes, fields: int, numbers: tuple[int, ...],
                    ) -> tuple[Block, int]:
        """Match record by record; lines without quotes are taken as they are."""
        taken: list[bytes] = []
        lines: list[Int64s] = []
        faults: list[tuple[int, str]] = []
        at, line = 0, self._line
        while at < len(data):
            special = self._match.special(data, at)
            start = len(data) if special < 0 else data.rfind(b"\n", at, special) + 1 or at
            if special < 0 and not self._final:
                start = data.rfind(b"\n", at) + 1 or at
            if start > at:
                run = data[at:start]
                count = run.count(b"\n") + (not run.endswith(b"\n"))
                taken.append(run if run.endswith(b"\n") else run + b"\n")
                lines.append(np.arange(line, line + count))
                at, line = start, line + count
            if special < 0:
                break
            record, complete = self._match.record(data, at)
            if record is not None and not complete and not self._final:
                break  # its end is not here yet
            if record is None and not self._final and self._is_short(data, at):
                break
            if record is not None and not (b"\n" in record and self.dialect.quote and _is_joined(
                    record.split(b"\n"), self.dialect.separator, fields, numbers)):
                taken.append(self._match.canonical(record) + b"\n")
                lines.append(np.array([line], np.int64))
                line += record.count(b"\n") + 1
                at += len(record) + 1
            else:
                faults.append((line, OPEN_QUOTE))
                line += 1
                at = data.find(b"\n", at) + 1 or len(data)
        self._line = line
        where = np.concatenate(lines) if lines else np.zeros(0, np.int64)
        return Block(b"".join(taken), len(where), where, tuple(faults)), min(at, len(data))

    def _is_short(self, data: bytes, at: int) -> bool:
        """Whether an open quote at `at` may still be closed by what comes."""
        return (self._match.is_open(data, at) and len(data) - at <= _LONGEST_RECORD * self._size
                and data.count(b"\n", at) <= MOST_LINES)

    def _normal(self, data: bytes) -> bytes:
        """`data` with escaped quotes marked, byte for byte."""
        if not self.escape or not self.dialect.quote or self.escape not in data:
            return data
        pair = self.escape * 2
        return data.replace(pair, _PAIR).replace(self.escape + b'"', _ESCAPED).replace(_PAIR, pair)

    def _settle_escape(self) -> None:
        """Decide whether backslashes escape quotes, where the text says so for the first time."""
        rest = self._rest
        if self.escape is not None or b'"' not in rest or b'\\"' not in rest:
            return
        doubled, escaped = self._trial(b""), self._trial(_BACKSLASH)
        if doubled._is_clean():
            return
        if escaped._is_clean() or escaped._count_faults() < doubled._count_faults():
            self.escape = _BACKSLASH

    def _trial(self, escape: bytes) -> Records:
        """The same text, if `escape` is what stands before a quote."""
        trial = Records(iter(()), Dialect(self.dialect.separator, True, escape), self._size)
        trial._rest, trial._final = self._rest, self._final
        return trial

    def _is_clean(self) -> bool:
        """Whether all quotes are where they should be."""
        quotes, clean = _quotes(self._normal(self._rest), self.dialect.separator)
        return clean and not (self._final and len(quotes) % 2)

    def _count_faults(self) -> int:
        """Lines that cannot be read, up to a while after the first backslash before a quote."""
        data = self._rest[:self._rest.find(b'\\"') + _TRIAL]
        block, _ = self._one_by_one(self._normal(data), 0, ())
        return len(block.faults)


class _Matcher:
    """Regular expressions of one separator."""

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

    def special(self, data: bytes, at: int) -> int:
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
            return record.replace(_ESCAPED, b'""')
        fields, at = [], 0
        while at <= len(record):
            found = self._field.match(record, at)
            assert found is not None  # an empty field always matches
            field, at = found.group(), found.end() + 1
            if not self.quote:
                field = re.sub(rb"\\([\s\S])", rb"\1", field)
                if re.search(b'["\n' + re.escape(self.separator) + b"]", field):
                    field = b'"' + field.replace(b'"', b'""') + b'"'
            elif not field.startswith(b'"') and (b'"' in field or _ESCAPED in field):
                field = b'"' + field.replace(b'"', b'""') + b'"'
            fields.append(field.replace(_ESCAPED, b'""'))
        return self.separator.join(fields)


def _quotes(data: bytes, separator: bytes) -> tuple[Int64s, bool]:
    """Where quotes stand, and whether each one opens or closes a field or is doubled.

    Every second one opens a field: it stands at the field's beginning, or right behind the quote
    that seemed to close one, which makes the two a doubled quote. So by induction.
    """
    if b'"' not in data:
        return np.zeros(0, np.int64), True
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    allowed = np.zeros(256, bool)
    allowed[[separator[0], _QUOTE, _LINE]] = True
    opening, closing = quotes[0::2], quotes[1::2]
    if opening[0] == 0:
        opening = opening[1:]
    if len(closing) and closing[-1] == len(data) - 1:
        closing = closing[:-1]
    return quotes, bool(allowed[text[opening - 1]].all() and allowed[text[closing + 1]].all())


def _escaped_outside(data: bytes, quotes: Int64s) -> bool:
    """Whether a marked quote stands in a field that is not quoted."""
    if _ESCAPED not in data:
        return False
    marks = np.flatnonzero(np.frombuffer(data, np.uint8) == _ESCAPED[0])
    return bool((np.searchsorted(quotes, marks) % 2 == 0).any())


def _last_end(data: bytes, quotes: Int64s) -> int:
    """Where the last whole record ends: after a line end that is not inside quotes; 0 if none."""
    end = data.rfind(b"\n")
    while end >= 0:
        before = int(np.searchsorted(quotes, end))
        if before % 2 == 0:
            break
        end = data.rfind(b"\n", 0, int(quotes[before - 1]))
    return end + 1


def _ends(data: bytes, quotes: Int64s) -> tuple[Int64s | None, Int64s]:
    """Where the line ends stand, and the line (from 0) at which each record begins.

    The first is None where each line is a record.
    """
    empty = np.zeros(0, np.int64)
    if not len(quotes):
        return None, empty
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE)
    outer = np.searchsorted(quotes, ends) % 2 == 0
    if outer.all():
        return None, empty
    starts = np.flatnonzero(outer) + 1
    if data.endswith(b"\n"):
        starts = starts[:-1]
    return ends, np.concatenate([[0], starts]).astype(np.int64)


def _joined(data: bytes, ends: Int64s, match: _Matcher, fields: int,
            numbers: tuple[int, ...]) -> bool:
    """Whether a record of several lines is likely to be several records; see `_is_joined`."""
    text = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(text == match.separator[0])
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
        if _is_joined(lines, match.separator, fields, numbers):
            return True
    return bool(_longest(inner) > MOST_LINES)


def _longest(inner: npt.NDArray[np.bool_]) -> int:
    """The longest run of true values."""
    outside = np.flatnonzero(~np.concatenate([[False], inner, [False]]))
    return int(np.diff(outside).max()) - 1


def _is_joined(lines: list[bytes], separator: bytes, fields: int,
               numbers: tuple[int, ...]) -> bool:
    """Whether the lines of one record look as if each were one: an open quote joined them.

    A line looks like a record if it has as many fields, and numbers where there are numbers.
    Without these, three such lines are asked for, since text can have separators too.
    """
    if len(lines) < 2 or not fields:
        return False
    if len(lines) > MOST_LINES:
        return True
    sample = lines[:_SAMPLE]
    alike = 0
    for line in sample:
        parts = line.split(separator)
        alike += len(parts) == fields and all(
            parts[number].strip(b'" ')[:1] in b"0123456789-" and parts[number].strip(b'" ')
            for number in numbers)
    return alike >= (2 if numbers else 3) and 2 * alike >= len(sample)
