"""Ready vectors come to the items that their ids name, from every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.data.vector_files import Matched, VectorFile, read_vectors
from rec_jax.errors import InputError

IDS = ["7", "3", "99", "12", "3"]
VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3) / 8


@pytest.fixture
def items(write_histories: Callable[..., Dataset]) -> Dataset:
    """Items 3, 5, 7, 12."""
    return write_histories([[7, 3, 12, 5], [3, 7, 5, 12], [3, 5, 7, 7]])


def by_id(dataset: Dataset, found: Matched) -> dict[str, list[float] | None]:
    return {item: vector if has else None for item, vector, has in
            zip(dataset.item_ids(), found.vectors.tolist(), found.has.tolist(), strict=True)}


WANTED = {"7": VECTORS[0].tolist(), "3": VECTORS[1].tolist(), "12": VECTORS[3].tolist(), "5": None}


def write_ids(path: Path) -> None:
    numbers = [int(each) for each in IDS]
    if path.suffix == ".npy":
        np.save(path, np.array(numbers if "numbers" in path.name else IDS))
    elif path.suffix == ".txt":
        path.write_text("\n".join(IDS) + "\n")
    elif path.suffix == ".csv":
        path.write_text("n,item_id\n" + "".join(f"1,{each}\n" for each in IDS))
    else:
        pl.DataFrame({"id": numbers}).write_parquet(path)


@pytest.mark.parametrize("name", ["ids.txt", "ids.csv", "ids.parquet", "ids.npy", "numbers.npy"])
def test_rows_of_npy_have_the_ids_of_a_file(name: str, items: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    write_ids(tmp_path / name)
    found = read_vectors(VectorFile(str(tmp_path / "v.npy"), str(tmp_path / name)), items)
    assert by_id(items, found) == WANTED
    assert (found.rows, found.unknown, found.repeated) == (5, 1, 1)
    assert (found.vectors[~found.has] == 0).all() and found.vectors.dtype == np.float32


def test_lines_of_ids_end_as_lines_of_files_do(tmp_path: Path) -> None:
    """A mark of UTF-8 is no part of the first id, and what only Python ends lines at stays."""
    ids = ["a", "b\x85c", "d\u2028", " e"]
    pl.DataFrame({"user": 1, "item": ids}).write_parquet(tmp_path / "log.parquet")
    found = Dataset.open(prepare(PrepareConfig(
        str(tmp_path / "log.parquet"), str(tmp_path / "d"), columns=Columns("user", "item"))).out)
    np.save(tmp_path / "v.npy", np.arange(8.0).reshape(4, 2))
    (tmp_path / "ids.txt").write_bytes("\r\n".join(ids).encode("utf-8-sig"))
    matched = read_vectors(VectorFile(str(tmp_path / "v.npy"), str(tmp_path / "ids.txt")), found)
    assert by_id(found, matched) == {
        each: [2.0 * place, 2.0 * place + 1] for place, each in enumerate(ids)}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_other_types_of_numbers_are_read(dtype: Any, items: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", (VECTORS * 8).astype(dtype))
    write_ids(tmp_path / "ids.txt")
    found = read_vectors(VectorFile(str(tmp_path / "v.npy"), str(tmp_path / "ids.txt")), items)
    assert by_id(items, found)["12"] == (VECTORS[3] * 8).tolist()


@pytest.mark.parametrize("kind", ["list", "array", "columns", "chosen"])
@pytest.mark.parametrize("text", [True, False])
def test_parquet_has_ids_and_lists_or_columns(kind: str, text: bool, items: Dataset,
                                              tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": IDS if text else [int(each) for each in IDS]})
    chosen: tuple[str, ...] = ()
    if kind in ("list", "array"):
        vectors = pl.Series("v", VECTORS.tolist(), pl.List(pl.Float32))
        frame = frame.with_columns(vectors.cast(pl.Array(pl.Float32, 3)) if kind == "array"
                                   else vectors, other=pl.lit(1.0))
    else:
        frame = frame.with_columns(*(pl.Series(f"x{place}", VECTORS[:, place])
                                     for place in range(3)))
        if kind == "chosen":
            frame = frame.with_columns(noise=pl.lit(9.0))
            chosen = ("x0", "x1", "x2")
    frame.write_parquet(tmp_path / "v.parquet", row_group_size=2)
    found = read_vectors(VectorFile(str(tmp_path / "v.parquet"), columns=chosen), items)
    assert by_id(items, found) == WANTED


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_safetensors_have_ids_or_a_file_of_them(with_ids: bool, dtype: Any, items: Dataset,
                                                tmp_path: Path) -> None:
    more = {"ids": np.array([int(each) for each in IDS])} if with_ids else {}
    save_file({"embeddings": VECTORS.astype(dtype), **more}, tmp_path / "v.safetensors")
    write_ids(tmp_path / "ids.txt")
    found = read_vectors(VectorFile(str(tmp_path / "v.safetensors"), None if with_ids else
                                    str(tmp_path / "ids.txt")), items)
    assert by_id(items, found) == WANTED


def test_an_item_whose_list_is_null_has_no_vector(items: Dataset, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["7", "3"], "v": [None, [1.0, 2.0]]}).write_parquet(tmp_path / "v.parquet")
    found = read_vectors(VectorFile(str(tmp_path / "v.parquet")), items)
    assert by_id(items, found) == {"7": None, "3": [1.0, 2.0], "12": None, "5": None}


def test_a_null_in_a_vector_is_seen_as_no_number(items: Dataset, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["7"], "v": [[1.0, None]]}).write_parquet(tmp_path / "v.parquet")
    assert np.isnan(read_vectors(VectorFile(str(tmp_path / "v.parquet")), items).vectors).any()


def refused(items: Dataset, path: Path, ids: Path | None = None, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_vectors(VectorFile(str(path), None if ids is None else str(ids), **more), items)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_files_are_one_line(items: Dataset, tmp_path: Path) -> None:
    vectors, ids = tmp_path / "v.npy", tmp_path / "ids.txt"
    write_ids(ids)
    assert "is no file of vectors; expected one of .npy" in refused(items, tmp_path / "v.csv")
    assert "does not exist" in refused(items, vectors, ids)
    np.save(vectors, VECTORS)
    assert "has no ids; expected a file of ids" in refused(items, vectors)
    assert "none.txt does not exist" in refused(items, vectors, tmp_path / "none.txt")
    np.save(vectors, VECTORS[:4])
    assert "has 5 ids for 4 vectors; expected one each" in refused(items, vectors, ids)
    np.save(vectors, VECTORS[0])
    assert "ids for 3 vectors" in refused(items, vectors, ids)
    np.save(vectors, np.arange(5.0))
    assert "holds float64 [5]; expected numbers [items, width]" in refused(items, vectors, ids)
    np.save(vectors, np.array([["a"]] * 5))
    assert "expected numbers" in refused(items, vectors, ids)
    np.save(vectors, np.zeros((5, 0)))
    assert "vectors of no numbers" in refused(items, vectors, ids)
    np.save(vectors, np.array([None, 1]), allow_pickle=True)
    assert "cannot be read as vectors" in refused(items, vectors, ids)
    vectors.write_bytes(b"no array")
    assert "cannot be read as vectors" in refused(items, vectors, ids)
    np.save(vectors, VECTORS)
    ids.write_text("a\nb\nc\nd\ne\n")
    assert ("0 of 4 items have a vector in v.npy: such as 'a' there, '3' here"
            in refused(items, vectors, ids))
    ids.write_bytes(b"\xff\n" * 5)
    assert "is not utf-8" in refused(items, vectors, ids)
    np.save(tmp_path / "ids.npy", np.zeros((5, 1)))
    assert "holds no ids" in refused(items, vectors, tmp_path / "ids.npy")
    (tmp_path / "ids.csv").write_text("other\n" + "3\n" * 5)
    assert "no column 'item_id'" in refused(items, vectors, tmp_path / "ids.csv")


def test_wrong_parquet_files_are_one_line(items: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    path.write_bytes(b"nothing")
    assert "cannot be read as vectors" in refused(items, path)
    pl.DataFrame({"id": ["3"], "name": ["x"]}).write_parquet(path)
    assert "0 columns of lists and 0 of floats" in refused(items, path)
    assert "column 'name' has" in refused(items, path, columns=("name",))
    assert "no column 'nome'" in refused(items, path, columns=("nome",))
    assert "no column 'key'" in refused(items, path, id="key", columns=("name",))
    pl.DataFrame({"id": ["3", "7"], "v": [[1.0], [1.0, 2.0]]}).write_parquet(path)
    assert "the list of row 1 in 'v' has another length than 1" in refused(items, path)
    pl.DataFrame({"id": ["3", "7"], "v": [["a"], ["b"]]}).write_parquet(path)
    assert "expected numbers" in refused(items, path)
    pl.DataFrame({"id": ["3"], "v": [None]}, schema={"id": pl.String, "v": pl.List(pl.Float32)}
                 ).write_parquet(path)
    assert "has no list; expected vectors" in refused(items, path)
    pl.DataFrame({"id": ["3"], "v": [[1.0]]}).write_parquet(path)
    assert "expected no file of ids" in refused(items, path, tmp_path / "ids.txt")


def test_wrong_safetensors_are_one_line(items: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"nothing at all")
    assert "cannot be read as safetensors" in refused(items, path)
    save_file({"a": VECTORS, "b": VECTORS}, path)
    assert "has the tensors 'a', 'b'; expected one of vectors" in refused(items, path)
    save_file({"a": VECTORS}, path)
    assert "has no tensor `ids` of whole numbers" in refused(items, path)
    save_file({"a": VECTORS, "ids": np.arange(4)}, path)
    assert "has 4 ids for 5 vectors" in refused(items, path)
