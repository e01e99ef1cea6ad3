"""Typed ids: an id that exists is itself; commas separate where that says one thing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.typed import read_ids, read_lines, read_times, seconds_of


@dataclasses.dataclass(frozen=True)
class Named(Dataset):
    """A dataset of which only the ids of its items matter."""

    def item_ids(self) -> pl.Series:
        return pl.Series(self.meta["ids"], dtype=pl.String)


def named(*ids: str) -> Named:
    none = np.zeros(0, np.int64)
    return Named(Path("named"), {"ids": list(ids)}, none.astype(np.int32), none, none, none)


ODD = named("a", "b", "c", "a,b", "head, large", " lead", "lead", 'say "so"', "x,y,z")


@pytest.mark.parametrize(("texts", "ids"), [
    (["a"], ["a"]),
    (["a", "c"], ["a", "c"]),
    (["a, c"], ["a", "c"]),
    ([" a ,, c ,"], ["a", "c"]),
    (["a,b"], ["a,b"]),  # an id that exists wins
    (["a", "b"], ["a", "b"]),
    (["head, large"], ["head, large"]),
    (["head, large,c"], ["head, large", "c"]),
    (["c, head, large"], ["c", "head, large"]),
    ([" lead"], [" lead"]),
    (["lead"], ["lead"]),
    (["c, lead"], ["c", " lead"]),  # the id as it stands wins over the one without blanks
    (["x,y,z,c"], ["x,y,z", "c"]),
    (['"a,b",c'], ["a,b", "c"]),
    (['"a", "b"'], ["a", "b"]),
    (['say "so"'], ['say "so"']),
    (['c,say "so"'], ["c", 'say "so"']),
    ([""], []),
    ([], []),
])
def test_texts_are_ids(texts: list[str], ids: list[str]) -> None:
    assert read_ids(ODD, texts) == ids


def test_what_can_be_cut_in_two_ways_is_refused() -> None:
    with pytest.raises(InputError, match=r"give each id by itself") as refusal:
        read_ids(ODD, ["c,a,b"])
    assert "['c', 'a,b']" in str(refusal.value) and "['c', 'a', 'b']" in str(refusal.value)


@pytest.mark.parametrize(("text", "named_part"), [
    ("z", "'z'"), ("c,z", "'z'"), ("x,y", "'x'"), ('"c', "'\"c'"), ("head,large", "'head'"),
    ("head, large,z,c", "'z'")])
def test_an_unknown_part_is_named(text: str, named_part: str) -> None:
    with pytest.raises(InputError, match="is not in the vocabulary") as refusal:
        read_ids(ODD, [text])
    assert f"item id {named_part}" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["\udcff", "c,\udcff\udcfe", "\udce4,a"])
def test_bytes_that_are_no_text_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"item id '\\udc.*' is not Unicode"):
        read_ids(ODD, [text])


words = st.text(st.sampled_from('ab, "'), min_size=1, max_size=4)


@given(st.lists(words, min_size=1, max_size=6, unique=True), st.data())
def test_every_id_can_be_given_by_itself(ids: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(ids), max_size=5))
    assert read_ids(named(*ids), chosen) == chosen


def test_a_long_list_is_cut_in_no_time() -> None:
    ids = [f"i{number}" for number in range(3000)]
    assert read_ids(named(*ids), [",".join(ids)]) == ids


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0), ("1700000000", 1_700_000_000), ("1700000000.9", 1_700_000_000), ("-0.5", -1),
    ("1970-01-02", 86_400), ("1970-01-01T00:01:00", 60), ("1970-01-01 00:01:00Z", 60),
    ("1970-01-01T02:00:00+02:00", 0), (" 1970-01-01T00:00:01.999 ", 1),
    (f"{2**62 - 2**9}", 2**62 - 2**9), (f"-{2**62 - 2**9}", 2**9 - 2**62)])
def test_times_are_seconds_or_dates(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", [
    "", "noon", "nan", "inf", "1e30", f"{2**62}", f"-{2**62}", "1970-13-01"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="neither seconds since 1970 nor a date"):
        seconds_of(text)


def test_times_are_separated_by_commas_or_repeated() -> None:
    assert read_times(["1, 2", "1970-01-01T00:00:03"]) == [1, 2, 3]


def test_lines_of_a_file_are_taken_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbf lead\r\nhead, large\n\nlast")
    assert read_lines(path) == [" lead", "head, large", "last"]
    path.write_bytes(b"ok\n\xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_lines(path)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_lines(tmp_path)
