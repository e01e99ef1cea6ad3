"""Text with quotes -> blocks of complete, well-formed records, and the lines that are no records.

The dialect is that of RFC 4180: a field that begins with a quote ends at the next single quote,
and a quote inside it is doubled; a quote inside an unquoted field is an ordinary character. Where
a file escapes quotes by a backslash instead (as Spark does), these are made doubled ones.

A block is checked as a whole with a few array operations. Only where something is wrong in it
are its records matched one by one: a line at whose quotes no record can be read is set aside, and
reading goes on at the next line. So a quote that is never closed costs one line, not all that
follow. What is yielded has one meaning only, for any parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rec_jax.data.quoting import (
    ESCAPED_QUOTE,
    MAX_LINES,
    Int64s,
    RecordPattern,
    find_quotes,
    has_escaped_outside,
    has_joined_records,
    is_joined,
    last_record_end,
    line_ends,
)
from rec_jax.errors import InputError

_LONGEST_RECORD = 8  # in blocks
OPEN_QUOTE = "a quote is not closed, or not doubled"
_TRIAL_BYTES = 1 << 20
_ESCAPED_ESCAPE = b"\xff\xfe"
"""Stands for an escaped escape while a block is parsed: bytes that UTF-8 does not have."""
_BACKSLASH = b"\\"


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
        self._pattern = RecordPattern(dialect.separator, dialect.quote)

    def header(self) -> bytes:
        """The first line (with quotes: the first record) that is not blank, taken off; empty if
        there is none."""
        while True:
            text = self._rest.lstrip(b"\n")  # blank lines before it
            self._line += len(self._rest) - len(text)
            self._rest = text
            data = self._mark_escapes(text)
            end = self._pattern.first(data)
            if end is None and not self._final and (
                    b"\n" not in data or self._pattern.is_open(data, 0)) and (
                    len(data) <= _LONGEST_RECORD * self._size):
                self._more()
                continue
            if end is None:
                end = data.find(b"\n") + 1 or len(data)
            self._line += data.count(b"\n", 0, end)
            self._rest = self._rest[end:]
            return self._pattern.canonical(data[:end].rstrip(b"\n"))

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
        data = self._mark_escapes(self._rest)
        if not self.dialect.quote and not self.escape:
            cut = len(data) if self._final else data.rfind(b"\n") + 1
            return self._plain(data[:cut], None), cut
        quotes, clean = find_quotes(data, self.dialect.separator)
        if self.escape and (self._pattern.escaped_lines(self.escape, data)
                            or has_escaped_outside(data, quotes)):
            clean = False
        if clean and not (self._final and len(quotes) % 2):
            cut = len(data) if self._final else last_record_end(data, quotes)
            open_lines = data.count(b"\n", cut)
            if open_lines <= MAX_LINES and len(data) - cut <= _LONGEST_RECORD * self._size:
                complete = data[:cut]
                ends, lines = line_ends(complete, quotes)
                if ends is None:
                    return self._plain(complete, None), cut
                if not has_joined_records(complete, ends, self._pattern, fields, numbers):
                    return self._plain(complete, lines), cut
        return self._one_by_one(data, fields, numbers)

    def _plain(self, data: bytes, lines: Int64s | None) -> Block:
        """A block without faults. lines: counted from 0, where they are not one a record."""
        count = data.count(b"\n") + bool(data and not data.endswith(b"\n"))
        lines = np.arange(count) if lines is None else lines
        data = data.replace(ESCAPED_QUOTE, b'""') if self.escape else data
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
            special = self._pattern.next_special(data, at)
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
            record, complete = self._pattern.record(data, at)
            if record is not None and not complete and not self._final:
                break  # its end is not here yet
            if record is None and not self._final and self._is_short(data, at):
                break
            if record is not None and not (b"\n" in record and self.dialect.quote and is_joined(
                    record.split(b"\n"), self.dialect.separator, fields, numbers)):
                taken.append(self._pattern.canonical(record) + b"\n")
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
        return (self._pattern.is_open(data, at) and len(data) - at <= _LONGEST_RECORD * self._size
                and data.count(b"\n", at) <= MAX_LINES)

    def _mark_escapes(self, data: bytes) -> bytes:
        """`data` with escaped quotes marked, byte for byte."""
        if not self.escape or not self.dialect.quote or self.escape not in data:
            return data
        pair = self.escape * 2
        data = data.replace(pair, _ESCAPED_ESCAPE)
        data = data.replace(self.escape + b'"', ESCAPED_QUOTE)
        return data.replace(_ESCAPED_ESCAPE, pair)

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
        quotes, clean = find_quotes(self._mark_escapes(self._rest), self.dialect.separator)
        return clean and not (self._final and len(quotes) % 2)

    def _count_faults(self) -> int:
        """Lines that cannot be read, up to a while after the first backslash before a quote."""
        data = self._rest[:self._rest.find(b'\\"') + _TRIAL_BYTES]
        block, _ = self._one_by_one(self._mark_escapes(data), 0, ())
        return len(block.faults)
