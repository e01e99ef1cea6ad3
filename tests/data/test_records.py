"""Text in any dialect is cut into records, and no line of it is lost without a word."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rec_jax.data import delimited
from rec_jax.data.file_layout import BLANK, Layout
from rec_jax.data.quoting import MAX_LINES
from rec_jax.data.readers import read
from rec_jax.data.records import OPEN_QUOTE, Dialect, Records

NAMES = ("user", "item", "time", "note")
SEPARATORS = (",", ";", "\t", "|", "::")
PLAIN = st.text("ab 0\\'é\x00", min_size=1, max_size=4)
WILD = st.text('ab",;|\t:\n\\ 0é', max_size=9)


def written(rows: list[list[str]], separator: str, escape: bool, line_end: str) -> str:
    """What the standard library makes of rows in a dialect."""
    file = io.StringIO(newline="")
    mark = separator[0] if len(separator) == 1 else "\x1e"
    writer = csv.writer(file, delimiter=mark, lineterminator=line_end, doublequote=not escape,
                        escapechar="\\" if escape else None,
                        quoting=csv.QUOTE_MINIMAL if mark == separator else csv.QUOTE_ALL)
    writer.writerows(rows)
    return file.getvalue().replace(mark, separator)


def rows_read(path: Path, **layout: object) -> tuple[list[tuple[str, ...]], int, int]:
    """Good rows, number of blank lines, number of bad ones."""
    roles = {name: name for name in NAMES}
    good, blank, bad = [], 0, 0
    for frame in read(path, "csv", Layout(roles, **layout)):  # type: ignore[arg-type]
        for row in frame.select(*NAMES, "fault").iter_rows():
            blank += row[-1] == BLANK
            bad += row[-1] not in (None, BLANK)
            if row[-1] is None:
                good.append(tuple(value or "" for value in row[:-1]))
    return good, blank, bad


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "log.csv"


@settings(deadline=None, max_examples=120)
@given(rows=st.lists(st.tuples(PLAIN, PLAIN, st.integers(0, 9).map(str), WILD).map(list),
                     max_size=12),
       separator=st.sampled_from(SEPARATORS), escape=st.booleans(),
       line_end=st.sampled_from(["\n", "\r\n"]), last=st.booleans(),
       size=st.sampled_from([1 << 20, 64, 200]), blanks=st.integers(0, 2))
@example(rows=[["a", "b", "1", '""\n"']] * 3, separator=",", escape=False, line_end="\n",
         last=False, size=64, blanks=0)
def test_what_was_written_in_a_dialect_is_read(
        path: Path, rows: list[list[str]], separator: str, escape: bool, line_end: str,
        last: bool, size: int, blanks: int) -> None:
    # A quoted line that looks like a row is taken as a sign of an open quote, see `is_joined`.
    assume(not any(line.count(separator) == len(NAMES) - 1
                   for row in rows for line in row[-1].split("\n")[1:]))
    text = written([list(NAMES), *rows], separator, escape, line_end)
    text += line_end * blanks
    if last and not blanks:
        text = text.removesuffix(line_end)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK_BYTES", size)
        good, blank, bad = rows_read(path, separator=separator, quote=True,
                                     escape="\\" if escape else "")
    assert (len(good), blank, bad) == (len(rows), blanks, 0)
    assert good == [tuple(row) for row in rows]


@settings(deadline=None, max_examples=150)
@given(lines=st.lists(st.text('ab",\\ 0', max_size=12), max_size=14),
       size=st.sampled_from([1 << 20, 64]), escape=st.sampled_from([None, "", "\\"]))
def test_every_line_of_any_text_is_a_row_or_bad_or_blank(
        path: Path, lines: list[str], size: int, escape: str | None) -> None:
    path.write_text("".join(f"{line}\n" for line in [",".join(NAMES), *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK_BYTES", size)
        frames = list(read(path, "csv", Layout({name: name for name in NAMES}, escape=escape)))
    blocks = list(Records(iter([path.read_bytes()]), Dialect(
        b",", escape=None if escape is None else escape.encode()), 1 << 20).blocks(4, (2,)))
    assert len(lines) + 1 == sum(block.data.count(b"\n") + len(block.faults) for block in blocks)
    at = [line for frame in frames for line in frame["line"]]
    assert at == sorted(set(at))
    if size > 64 and escape is not None:  # else a dialect is found out from other blocks
        assert len(at) + 1 == sum(block.records + len(block.faults) for block in blocks)


@given(lines=st.lists(st.text("ab,0 é", max_size=9), max_size=20), size=st.integers(3, 40))
def test_text_without_quotes_is_cut_at_its_lines(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    blocks = Records(iter(data[start:start + size] for start in range(0, len(data), size)),
                     Dialect(b","), 1 << 20).blocks(2, ())
    found = list(blocks)
    assert b"".join(block.data for block in found) == data
    assert [line for block in found for line in block.lines] == list(range(1, len(lines) + 1))


def cut(text: str, fields: int = 4, numbers: tuple[int, ...] = (2,), size: int = 1 << 20,
        escape: bytes | None = None) -> tuple[list[list[str]], list[tuple[int, str]]]:
    records = Records(iter([text.encode()]), Dialect(b",", escape=escape), size)
    rows, faults = [], []
    for block in records.blocks(fields, numbers):
        found = list(csv.reader(io.StringIO(block.data.decode(), newline="")))
        assert len(found) == block.records == len(block.lines)
        rows += found
        faults += block.faults
    return rows, faults


def test_an_unclosed_quote_costs_its_line_only() -> None:
    text = "".join(f"u{n},i{n},{n},plain\n" for n in range(9)) + 'u,i,9,"open\n'
    rows, faults = cut(text + text + 'u,i,9,"closed"\n' + text)
    assert len(rows) == 28
    assert faults == [(10, OPEN_QUOTE), (20, OPEN_QUOTE), (31, OPEN_QUOTE)]


def test_an_open_quote_and_a_stray_one_do_not_swallow_the_rows_between() -> None:
    between = "".join(f"u{n},i{n},{n},plain\n" for n in range(40))
    for lines in ("", between):
        rows, faults = cut(f'u,i,1,"open\n{lines}u,i,3,stray"\n')
        assert faults == [(1, OPEN_QUOTE)]
        assert rows[-1] == ["u", "i", "3", 'stray"']
        assert len(rows) == lines.count("\n") + 1


def test_text_of_many_lines_is_one_field() -> None:
    text = "u,i,1,\"good\nnice, cheap, soft, ok\n\n\nand more\"\nu,i,2,x\n"
    rows, faults = cut(text)
    assert faults == []
    assert rows == [["u", "i", "1", "good\nnice, cheap, soft, ok\n\n\nand more"],
                    ["u", "i", "2", "x"]]


def test_a_field_of_endless_lines_is_an_open_quote() -> None:
    text = 'u,i,1,"' + "x\n" * (MAX_LINES + 5) + '"\n'
    _, faults = cut(text)
    assert faults[0] == (1, OPEN_QUOTE)


@pytest.mark.parametrize(("text", "wanted"), [
    ('u,i,1,"a \\"b\\" c"\n', 'a "b" c'),  # Spark
    ('u,i,1,"12\\""\nu,i,2,"x"\n', '12"'),
    ('u,i,1,"a ""b"" c"\n', 'a "b" c'),
    ('u,i,1,"C:\\"\n', "C:\\"),
    ('u,i,1,5\\" disk\n', '5" disk'),
    ('u,i,1,\\"x\\"\n', '"x"')])
def test_backslashes_before_quotes_are_understood(text: str, wanted: str) -> None:
    rows, faults = cut(text)
    assert faults == []
    assert rows[0] == ["u", "i", "1", wanted]
    assert len(rows) == text.count("\n")
