"""A source may be a file, a folder of parts or a glob, compressed and in any encoding."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, ItemFile, PrepareConfig, Report, prepare
from rec_jax.data.source_files import source_files
from rec_jax.errors import InputError


def run(tmp_path: Path, source: Path | tuple[str, ...], **settings: Any,
        ) -> tuple[Report, dict[str, list[str]]]:
    report = prepare(PrepareConfig(**{
        "source": source if isinstance(source, tuple) else str(source),
        "out": str(tmp_path / "made"), "overwrite": True,
        "columns": Columns("user", "item"), **settings}))
    dataset = Dataset.open(report.out)
    ids = dataset.item_ids().to_list()
    return report, {user: [ids[item] for item in dataset.history(index)]
                    for index, user in enumerate(dataset.user_ids())}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_folder_as_spark_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "log.parquet"
    folder.mkdir()
    for part in (0, 2, 10):
        frame = pl.DataFrame({"user": ["a", "b"], "item": [f"x{part}", f"y{part}"]})
        frame.write_parquet(folder / f"part-{part}-c000.snappy.parquet")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc", "_temporary/0/part-0.parquet"):
        write(folder / name, b"")
    report, found = run(tmp_path, folder)
    assert found == {"a": ["x0", "x2", "x10"], "b": ["y0", "y2", "y10"]}
    sources = Dataset.open(report.out).meta["sources"]
    assert [source["name"] for source in sources] == [
        f"part-{part}-c000.snappy.parquet" for part in (0, 2, 10)]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_folders_named_by_keys_are_columns(tmp_path: Path, kind: str) -> None:
    for day, item in (("2024-01-02", "late"), ("2024-01-01", "early")):
        path = tmp_path / "log" / f"day={day}" / f"part-0.{kind}"
        path.parent.mkdir(parents=True)
        frame = pl.DataFrame({"user": ["a"], "item": [item]})
        frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path)
    write(tmp_path / "log" / "day=__HIVE_DEFAULT_PARTITION__" / f"part-0.{kind}",
          (tmp_path / "log" / "day=2024-01-01" / f"part-0.{kind}").read_bytes())
    report, found = run(tmp_path, tmp_path / "log", columns=Columns("user", "item", "day"),
                        max_bad_share=0.5)
    assert found == {"a": ["early", "late"]}
    assert report.bad_reasons == {"no day": 1}
    assert (report.first_time, report.last_time) == ("2024-01-01T00:00:00Z",
                                                     "2024-01-02T00:00:00Z")


def test_globs_and_several_sources(tmp_path: Path) -> None:
    for name in ("log-2.csv", "log-1.csv", "other.csv"):
        write(tmp_path / name, f"user,item\na,{name}\n")
    _, found = run(tmp_path, tmp_path / "log-*.csv")
    assert found == {"a": ["log-1.csv", "log-2.csv"]}
    _, found = run(tmp_path, (str(tmp_path / "other.csv"), str(tmp_path / "log*")))
    assert found == {"a": ["other.csv", "log-1.csv", "log-2.csv"]}


def test_a_file_that_would_be_read_twice_is_named(tmp_path: Path) -> None:
    write(tmp_path / "log" / "a.csv", "user,item\na,x\n")
    write(tmp_path / "log" / "b.csv", "user,item\na,y\n")
    for again in ("log/a.csv", "log/../log/*.csv", "log"):
        with pytest.raises(InputError, match=r"a.csv is among the sources twice.*each file once"):
            run(tmp_path, (str(tmp_path / "log" / "*.csv"), str(tmp_path / again)))
    (tmp_path / "log" / "latest.csv").symlink_to("b.csv")
    with pytest.raises(InputError, match=r"latest.csv is .* twice, also as .*b.csv; expected"):
        run(tmp_path, tmp_path / "log")


def test_ids_that_look_like_a_missing_value_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "user,item\nNA,x\nNA,\\N\na,x\nNAN,NULLS\n")
    assert run(tmp_path, tmp_path / "log.csv")[0].notes == (
        "user 'NA' has 2 interactions: where that stands for a missing id, they are not those of "
        "one user",
        "item '\\\\N' has 1 interactions: where that stands for a missing id, they are not those "
        "of one item")


@pytest.mark.parametrize("source", ["nothing.csv", "no*thing.csv", "empty"])
def test_a_source_without_files_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "_SUCCESS", "")
    with pytest.raises(InputError, match=f"{source.replace('*', '.')}"):
        source_files(str(tmp_path / source))


def test_links_to_parts_are_followed_and_links_to_nothing_named(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    for path, item in ((folder / "2023" / "a.csv", "x"), (elsewhere / "b.csv", "y")):
        write(path, f"user,item\na,{item}\n")
    (folder / "2024").symlink_to(elsewhere)
    for again in ("latest", "newest"):  # of each folder once
        (folder / again).symlink_to("2023")
    (folder / "all").symlink_to(".")
    assert run(tmp_path, folder)[1] == {"a": ["x", "y"]}
    (folder / "c.csv").symlink_to(tmp_path / "gone.csv")
    for source in (folder, folder / "*.csv"):
        with pytest.raises(InputError, match=r"c.csv is a link to .*gone.csv, which does not"):
            source_files(str(source))


def test_a_pipe_is_named_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a device, a pipe or a socket; expected a file"):
        source_files(str(tmp_path / "pipe"))


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("suffix", "compress"), [
    ("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)])
def test_compressed_text(tmp_path: Path, suffix: str, compress: Any) -> None:
    text = b"user,item\n" + b"".join(b"u%d,i%d\n" % (n, n * 7919 % 1_000) for n in range(9_000))
    path = tmp_path / f"log.csv.{suffix}"
    write(path, compress(text))
    assert run(tmp_path, path)[0].rows == 9_000
    write(path, compress(text) + compress(text.partition(b"\n")[2]))  # two streams, one after
    assert run(tmp_path, path)[0].rows == 18_000
    if suffix == "zst":  # as pzstd writes it
        write(path, b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + compress(text))
        assert run(tmp_path, path)[0].rows == 9_000
    write(path, compress(text)[:-30])
    with pytest.raises(InputError, match=f"log.csv.{suffix} cannot be read as csv"):
        run(tmp_path, path)


@pytest.mark.parametrize(("encoding", "given"), [
    ("utf-8-sig", "utf-8"), ("utf-16", "utf-8"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"),
    ("latin-1", "latin-1"), ("cp1252", "cp1252"), ("shift_jis", "shift_jis")])
def test_encodings_and_marks(tmp_path: Path, encoding: str, given: str,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", 7)
    name = "ネコ" if encoding == "shift_jis" else "é"
    write(tmp_path / "log.csv", f"user,item\r\na,{name}\r\na,z".encode(encoding))
    assert run(tmp_path, tmp_path / "log.csv", encoding=given)[1] == {"a": [name, "z"]}
    write(tmp_path / "log.csv", f"a,{name}\r\na,z\r".encode(encoding))
    assert run(tmp_path, tmp_path / "log.csv", encoding=given,
               names=("user", "item"))[1] == {"a": [name, "z"]}


@pytest.mark.parametrize(("content", "message"), [
    (b"user,item\na,\xe9\n", "line 2 is not utf-8"),
    ("user,item\n".encode("utf-16-le"), "set encoding to \"utf-16-le\""),
    (b"PK\x03\x04...", "is a zip archive"), (b"PAR1....", "is a Parquet file")])
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path / "log.csv", content)
    with pytest.raises(InputError, match=message):
        run(tmp_path, tmp_path / "log.csv")


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "user,item\na,x\n")
    for encoding in ("klingon", "rot13", "bz2", "undefined"):
        with pytest.raises(InputError, match=f"encoding '{encoding}' is unknown"):
            run(tmp_path, tmp_path / "log.csv", encoding=encoding)


@pytest.mark.parametrize("text", [
    "user,item\ra,x\ra,y\r", "\n\nuser,item\na,x\na,y\n", "\r\nuser,item\r\na,x\r\na,y"])
def test_other_line_ends_and_blank_lines_before_the_header(
        tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1 << 20, 5):
        monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", size)
        write(tmp_path / "log.csv", text)
        assert run(tmp_path, tmp_path / "log.csv")[1] == {"a": ["x", "y"]}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_separator_is_found_where_only_one_gives_the_columns(tmp_path: Path, separator: str,
                                                              ) -> None:
    text = "item,user\nx,a\n".replace(",", separator)
    write(tmp_path / "log.csv", text)
    assert run(tmp_path, tmp_path / "log.csv")[1] == {"a": ["x"]}
    with pytest.raises(InputError, match="no separator ',' is in the first line"):
        run(tmp_path, tmp_path / "log.csv", separator=",")


@pytest.mark.parametrize(("header", "row", "wanted"), [
    ('"title, or name",user,item', "t,a,x", {"a": ["x"]}),
    ('"two\nlines",user,item', "t,a,x", {"a": ["x"]}),
    ('" user ","item"', "a,x", {"a": ["x"]}),
    ("user:token,item:token,title:token_seq", "a,x,t", {"a": ["x"]})])
def test_headers(tmp_path: Path, header: str, row: str, wanted: dict[str, list[str]]) -> None:
    write(tmp_path / "log.csv", f"{header}\n{row}\n")
    assert run(tmp_path, tmp_path / "log.csv")[1] == wanted


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "user,item,item\na,x,y\n")
    with pytest.raises(InputError, match="has 2 columns 'item'; expected one"):
        run(tmp_path, tmp_path / "log.csv")


def test_an_item_file_that_matches_nothing_says_so(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "user,item\na,12.0\na,13.0\n")
    write(tmp_path / "items.csv", 'item_id,title\n12,A\n13,"open\n14,C\n')
    report, _ = run(tmp_path, tmp_path / "log.csv",
                    item_file=ItemFile(str(tmp_path / "items.csv"), title="title"))
    assert report.titled_items == 0
    assert report.notes == (
        "1 rows of items.csv are bad and left out: the first is items.csv:3: a quote is not "
        "closed, or not doubled",
        "0 of 2 items have a title in items.csv: such as '12' there, '12.0' here")


def test_ids_of_the_item_file_are_read_like_those_of_the_log(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1, 1], "item": [12, 13]}).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame({"item_id": [12.0, 13.0, None], "title": ["A", "B", "C"]}).write_parquet(
        tmp_path / "items.parquet")
    report, _ = run(tmp_path, tmp_path / "log.parquet",
                    item_file=ItemFile(str(tmp_path / "items.parquet"), title="title"))
    assert (report.titled_items, report.notes) == (2, ())
