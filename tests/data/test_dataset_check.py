"""A dataset is as it was written, or opening it says which file is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax.data import dataset_check
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_files import checksum, file_names, read_meta
from rec_jax.data.prepare import Columns, ItemFeature, PrepareConfig, prepare
from rec_jax.data.verify import verify
from rec_jax.errors import InputError
from rec_jax.files import file_hash


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with everything that one can have."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(1)
    lines = [f"u{user},i{item},{100 + place},{item % 4 + 1},k{item % 3}" for user in range(30)
             for place, item in enumerate(random.integers(0, 20, 6))]
    (folder / "log.csv").write_text("user,item,time,rating,kind\n" + "\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "dataset"),
                          columns=Columns("user", "item", "time", "rating"),
                          item_features=(ItemFeature("kind"),)))
    return folder / "dataset"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("REC_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def names_of(made: Path) -> list[str]:
    return file_names(read_meta(made))


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def edit_meta(folder: Path, *, fitting: bool, **changes: Any) -> None:
    """Change meta.json; fitting: with checksums made to fit, as somebody hostile would."""
    meta = json.loads((folder / "meta.json").read_text()) | changes
    if fitting:
        for name, about in meta["files"].items():
            about.update(bytes=(folder / name).stat().st_size, sha256=file_hash(folder / name))
        meta["checksum"] = checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def make_old(folder: Path) -> None:
    """A folder of before there were checksums of files."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"], meta["checksum"]
    (folder / "meta.json").write_text(json.dumps(meta))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Dataset.open(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_flipped_bit_anywhere_is_refused(folder: Path) -> None:
    Dataset.open(folder)
    random = np.random.default_rng(2)
    for name in [*names_of(folder), "meta.json"]:
        size = (folder / name).stat().st_size
        for place in random.integers(0, size, 8).tolist():
            bit = int(random.integers(8))
            flip(folder / name, place, bit)
            assert name in refusal(folder), (name, place)
            flip(folder / name, place, bit)
    Dataset.open(folder)


def test_300_changed_items_are_refused(folder: Path) -> None:
    array = np.load(folder / "items.npy", mmap_mode="r+")
    array[:100] = 0
    array.flush()
    assert "items.npy is damaged: its bytes are not those that were written" in refusal(folder)


@pytest.mark.parametrize("name", ["times", "ratings", "item_features/kind"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    for end in (".npy", ".parquet") if "/" in name else (".npy",):
        (folder / f"{name}{end}").rename(folder / "away")
        assert f"{name}{end} is missing or truncated" in refusal(folder)
        (folder / "away").rename(folder / f"{name}{end}")


def test_an_archive_under_the_name_of_an_array_is_refused(folder: Path) -> None:
    np.savez(folder / "items.npz", np.zeros(3))
    (folder / "items.npz").rename(folder / "items.npy")
    assert "items.npy holds no array" in refusal(folder)


# Values, where checksums were made to fit.


def rewrite(folder: Path, name: str, change: Any) -> None:
    array = np.load(folder / f"{name}.npy")
    change(array)
    np.save(folder / f"{name}.npy", array)
    edit_meta(folder, fitting=True)


def set_at(place: int, value: int) -> Any:
    def change(array: Any) -> None:
        array[place] = value
    return change


@pytest.mark.parametrize(("name", "place", "value", "message"), [
    ("offsets", 3, 100, "offsets.npy falls"),
    ("items", 7, 20, "items.npy has values from 0 to 20, expected 0 to 19"),
    ("items", 7, -1, "items.npy has values from -1 to"),
    ("train_end", 0, 0, None),
    ("train_end", 2, 3, "train_end.npy and valid_end.npy leave"),
    ("valid_end", 2, 10**6, "train_end.npy and valid_end.npy leave"),
    ("ratings", 0, 9, "ratings.npy has values from 1 to 9, expected 0 to 4"),
    ("times", 1, 0, "times.npy falls within a user"),
    ("times", 6, 0, None),
    ("item_features/kind", 0, 4, "item_features/kind.npy has values from 1 to 4"),
])
def test_values_outside_their_bounds_are_refused(folder: Path, name: str, place: int, value: int,
                                                 message: str | None) -> None:
    rewrite(folder, name, set_at(place, value))
    if message is None:
        Dataset.open(folder)
    else:
        assert message in refusal(folder)


def test_a_vocabulary_of_other_columns_is_refused(folder: Path) -> None:
    path = folder / "item_vocab.parquet"
    whole = pl.read_parquet(path)
    for frame, message in ((whole.drop("id"), "has no column 'id' of text"),
                           (whole.with_columns(pl.col("index").alias("id")), "'id' of text"),
                           (whole.with_columns(train_count=pl.lit("x")),
                            "has no column 'train_count' of integers"),
                           (whole.with_columns(id=pl.lit(None, pl.String)), "ids that are null")):
        frame.write_parquet(path)
        edit_meta(folder, fitting=True)
        assert message in refusal(folder)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\0b", "", "a b", ".."])
def test_names_of_features_never_become_paths(folder: Path, name: str) -> None:
    about = read_meta(folder)["item_features"]["kind"]
    for fitting in (True, False):
        edit_meta(folder, fitting=fitting, item_features={name: about})
        assert "meta.json is damaged" in refusal(folder)


@pytest.mark.parametrize("changes", [
    {"ratings": [1, "x"]}, {"ratings": [float("nan")]}, {"num_users": True}, {"num_users": -1},
    {"num_items": 2**70}, {"item_columns": [1]}, {"item_features": []}, {"files": {"x": 1}},
    {"files": []}, {"hashes": []}, {"format_version": "1"}, {"split_hash": None}])
def test_values_of_another_type_in_the_meta_file_are_refused(folder: Path,
                                                             changes: dict[str, Any]) -> None:
    meta = json.loads((folder / "meta.json").read_text()) | changes
    meta["checksum"] = checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    assert "meta.json is damaged" in refusal(folder)


# What is remembered.


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose checksum is computed from now on."""
    seen: list[str] = []

    def watch(path: Path) -> str:
        seen.append(path.name)
        return file_hash(path)

    monkeypatch.setattr(dataset_check, "file_hash", watch)
    return seen


def age(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files were written a while ago."""
    monkeypatch.setattr(dataset_check, "_SETTLED", -1)


def test_a_second_opening_reads_nothing_until_a_file_changes(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(folder, monkeypatch)
    seen = read_files(monkeypatch)
    Dataset.open(folder)
    assert "items.npy" in seen
    seen.clear()
    Dataset.open(folder)
    assert seen == []
    before = (folder / "items.npy").stat()
    flip(folder / "items.npy", 200)
    os.utime(folder / "items.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "items.npy is damaged" in refusal(folder)


def test_files_that_were_just_written_are_read_again(folder: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_check, "_SETTLED", 10**15)
    seen = read_files(monkeypatch)
    Dataset.open(folder)
    first = len(seen)
    Dataset.open(folder)
    assert len(seen) == 2 * first


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_place_to_remember_every_opening_reads_all(
        folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    age(folder, monkeypatch)
    (tmp_path / "file").write_text("")
    if place == "a file":
        monkeypatch.setenv("REC_JAX_CACHE", str(tmp_path / "file" / "below"))
    else:
        monkeypatch.delenv("REC_JAX_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "")
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    seen = read_files(monkeypatch)
    Dataset.open(folder)
    Dataset.open(folder)
    assert seen.count("items.npy") == 2
    assert sorted(map(str, tmp_path.rglob("*"))) == before


# `verify`, and folders of before there were checksums.


def test_verify_reads_all_and_names_every_damaged_file(folder: Path) -> None:
    found = verify(folder)
    assert found["checksums"] == "files" and found["problems"] == []
    assert [entry["name"] for entry in found["files"]] == names_of(folder)
    assert not any(entry["problem"] for entry in found["files"])
    flip(folder / "items.npy", 300)
    (folder / "item_features" / "kind.parquet").unlink()
    problems = [entry["problem"] for entry in verify(folder)["files"] if entry["problem"]]
    assert len(problems) == 2
    assert problems[0].startswith("items.npy: its bytes") and "missing" in problems[1]


def test_an_old_dataset_opens_and_its_values_are_still_checked(folder: Path) -> None:
    make_old(folder)
    Dataset.open(folder)
    found = verify(folder)
    assert found["checksums"] == "values"
    assert not any(entry["problem"] for entry in found["files"])
    array = np.load(folder / "items.npy", mmap_mode="r+")
    array[:2] = array[1::-1]
    array[0] = (array[0] + 1) % 20
    array.flush()
    assert "items.npy is damaged: its values are not those" in refusal(folder)


def test_an_old_dataset_without_any_hash_opens_and_says_so(folder: Path) -> None:
    make_old(folder)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["hashes"], meta["item_features"]["kind"]["hash"]
    (folder / "meta.json").write_text(json.dumps(meta))
    Dataset.open(folder)
    found = verify(folder)
    assert found["checksums"] == "none"
    assert not any(entry["covered"] for entry in found["files"])
