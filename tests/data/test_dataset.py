"""Opening a dataset: what is damaged is named, ids are looked up with a hint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "copy"))


def test_a_folder_without_meta_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a dataset folder: it has no meta\.json"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["items", "offsets", "times", "train_end", "valid_end"])
def test_truncated_and_missing_arrays_are_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=rf"{name}\.npy is missing or truncated"):
        Dataset.open(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}\.npy is missing or truncated"):
        Dataset.open(folder)


def test_arrays_of_another_dataset_are_named(folder: Path) -> None:
    np.save(folder / "items.npy", np.zeros(3, np.int32))
    with pytest.raises(InputError, match=r"items\.npy holds int32 \[3\], expected int32 \["):
        Dataset.open(folder)
    np.save(folder / "offsets.npy", np.arange(201))
    with pytest.raises(InputError, match=r"offsets\.npy ends at 200, but meta\.json counts"):
        Dataset.open(folder)


@pytest.mark.parametrize("name", ["item_vocab", "user_vocab"])
def test_damaged_vocabularies_are_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.parquet"
    frame = pl.read_parquet(path)
    frame.head(3).write_parquet(path)
    with pytest.raises(InputError, match=rf"{name}\.parquet has 3 rows, expected {frame.height}"):
        Dataset.open(folder)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"{name}\.parquet is missing or truncated"):
        Dataset.open(folder)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is damaged"), ("{}", "is damaged"), ("[1]", "is damaged")])
def test_a_damaged_meta_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "meta.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Dataset.open(folder)


def test_another_format_version_is_refused(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text()) | {"format_version": 99}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="has format version 99, expected 1"):
        Dataset.open(folder)


@pytest.mark.parametrize("missing", ["", "z", "zz", 9])
def test_an_unknown_id_of_few_characters_is_one_line(dataset: Dataset, missing: object) -> None:
    for look_up, kind in ((dataset.item_index, "item"), (dataset.user_index, "user")):
        with pytest.raises(InputError, match=f"{kind} id '{missing}' is not in the voc") as it:
            look_up([missing])
        assert "\n" not in str(it.value)


def test_unknown_ids_are_named_with_the_nearest(dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"item id 'i4x' is not in the vocabulary.*nearest: 'i4"):
        dataset.item_index(["i1", "i4x"])
    with pytest.raises(InputError, match="user id '12345678901234567890' is not in"):
        dataset.user_index(["12345678901234567890"])


def test_ids_and_indices_are_inverse(dataset: Dataset) -> None:
    np.testing.assert_array_equal(dataset.item_index(dataset.item_ids()),
                                  np.arange(dataset.num_items))
    np.testing.assert_array_equal(dataset.user_index(dataset.user_ids()),
                                  np.arange(dataset.num_users))
    assert dataset.item_index("i7").shape == (1,)


def test_popularity_counts_the_training_part(dataset: Dataset) -> None:
    counts = np.zeros(dataset.num_items, np.int64)
    for user in range(dataset.num_users):
        for item in dataset.items[dataset.offsets[user]:dataset.train_end[user]]:
            counts[item] += 1
    np.testing.assert_array_equal(dataset.popularity(), counts)
    assert (np.diff(counts) <= 0).all()


def test_a_user_outside_and_an_unknown_period_are_named(dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"user index 200 is outside 0\.\.199"):
        dataset.history(200)
    with pytest.raises(InputError, match="period 'train' is not one of"):
        dataset.targets("train")  # type: ignore[arg-type]


def test_a_dataset_without_titles_says_none(dataset: Dataset) -> None:
    assert dataset.titles() is None
