"""A copy that serves gets what changed: bit by bit in f32, whole or not at all, in order only."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
from command import Command, one_object, refused
from marks import slow_but

from rec_jax.errors import InputError
from rec_jax.inference import deltas
from rec_jax.inference.deltas import apply_deltas, write_deltas
from rec_jax.inference.export import export, load_embeddings
from rec_jax.inference.export_formats import WRITERS
from rec_jax.inference.served import StoredRows
from rec_jax.tables import RowMap

DIM = 5


@dataclass
class Held:
    """Rows in memory as a checkpoint has them."""

    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    block = 3

    def read(self, first: int, last: int) -> np.ndarray:
        return self.rows[first:last]


def stored(name: str, rows: np.ndarray, bias: np.ndarray | None = None,
           ids: list[str] | None = None) -> StoredRows:
    """What `open_rows` gives of a run of this name."""
    names = pl.Series("id", ids or [f"i{number}" for number in range(len(rows))])
    data: Any = SimpleNamespace(item_ids=lambda: names, num_items=len(names), split_hash=name)
    config: Any = SimpleNamespace(table=SimpleNamespace(dim=DIM))
    return StoredRows(SimpleNamespace(folder=Path(name)), config, data,  # type: ignore[arg-type]
                      Held(rows), 7, None, RowMap(len(rows)), bias=bias)  # type: ignore[arg-type]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, StoredRows]:
    """Runs by name, which the verb finds in folders of that name."""
    known: dict[str, StoredRows] = {}

    def open_rows(run: Any, **how: Any) -> StoredRows:
        return known[run.folder.name]

    monkeypatch.setattr(deltas, "open_rows", open_rows)
    monkeypatch.setattr(deltas, "BLOCK", 4)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").touch()
    return known


def floats(random: np.random.Generator, count: int) -> np.ndarray:
    rows = random.standard_normal((count, DIM)).astype(np.float32)
    rows[random.random((count, DIM)) < 0.1] = random.choice([0.0, -0.0, np.nan])
    return rows


def rounded(rows: np.ndarray) -> np.ndarray:
    return rows.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("form", slow_but("npy", sorted(WRITERS)))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_three_periods_of_changes_give_the_trainers_export(
        runs: dict[str, StoredRows], tmp_path: Path, form: str, biased: bool, dtype: Any) -> None:
    random = np.random.default_rng(len(form) + 2 * biased)
    rows, copy = floats(random, 9), tmp_path / "copy"

    def bias_of(rows: np.ndarray) -> np.ndarray | None:
        return random.standard_normal(len(rows)).astype(np.float32) if biased else None

    runs["a"] = stored("a", rows, bias_of(rows))
    export(runs["a"], copy, format=form)
    expected, base = rows.copy(), tmp_path / "a"
    for period in range(3):
        rows = np.concatenate([rows, floats(random, 3 * (period % 2))])
        moved = random.random(len(rows)) < 0.3
        rows[moved] = floats(random, int(moved.sum()))
        name = "bca"[period]
        runs[name] = stored(name, rows, bias_of(rows))
        wanted = load_embeddings(export(runs[name], tmp_path / f"wanted{period}"))
        base = base if dtype == "f32" and period == 1 else copy  # a run will do as well
        about = write_deltas(tmp_path / name, base, tmp_path / f"delta{period}", dtype=dtype)
        if not biased:
            new = len(rows) - len(expected)
            assert about["added"] == new
            assert new <= about["count"] <= int(moved[:len(expected)].sum()) + new
        assert apply_deltas(tmp_path / f"delta{period}", copy)["applied"]
        found = load_embeddings(copy)
        assert found.ids.equals(wanted.ids) and found.about["format"] == form
        assert found.about["version"] == about["result"] and found.about["run"] == name
        if dtype == "f32":
            assert found.vectors.tobytes() == wanted.vectors.tobytes()
        else:
            last = np.concatenate([expected, np.zeros((len(rows) - len(expected), DIM))])
            same = (found.vectors == last) | (np.isnan(found.vectors) & np.isnan(last))
            exact = (found.vectors == rounded(rows)) | np.isnan(rounded(rows))
            assert (same | exact).all() and exact[moved].all()
            expected = np.array(found.vectors)
        assert (found.item_bias is None) == (not biased)
        if biased:
            np.testing.assert_array_equal(found.item_bias, wanted.item_bias)
        base, expected = tmp_path / name, np.array(found.vectors)
    assert not apply_deltas(tmp_path / "delta2", copy)["applied"]


@pytest.fixture
def pair(runs: dict[str, StoredRows], tmp_path: Path) -> tuple[Path, Path]:
    """An export and a delta for it."""
    rows = np.arange(8 * DIM, dtype=np.float32).reshape(8, DIM)
    runs["a"], runs["b"] = stored("a", rows), stored("b", np.concatenate([rows + 1, rows[:1]]))
    write_deltas(tmp_path / "b", export(runs["a"], tmp_path / "copy"), tmp_path / "delta")
    return tmp_path / "copy", tmp_path / "delta"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_does_not_fit_leaves_the_copy_as_it_is(
        runs: dict[str, StoredRows], pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy, delta = pair
    apply_deltas(delta, copy)
    runs["c"] = stored("c", np.ones((12, DIM), np.float32))
    write_deltas(tmp_path / "c", copy, tmp_path / "next")
    export(runs["a"], tmp_path / "fresh")
    before = everything(tmp_path / "fresh")
    with pytest.raises(InputError, match=r"applies to version \w{12} .*fresh is \w{12}"):
        apply_deltas(tmp_path / "next", tmp_path / "fresh")  # the one between is missing
    for name in ("rows.npy", "ids.parquet", "delta.json"):
        content = (delta / name).read_bytes()
        (delta / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(InputError, match="is damaged"):
            apply_deltas(delta, tmp_path / "fresh")
        (delta / name).write_bytes(content)
    for folder, line in ((tmp_path / "none", "export.json is missing"), (delta, "is not an export"),
                         (tmp_path / "a", "is not an export")):
        with pytest.raises(InputError, match=line):
            apply_deltas(delta, folder)
    assert everything(tmp_path / "fresh") == before and not (tmp_path / "none").exists()
    (tmp_path / "fresh" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine.txt is not of the export"):
        apply_deltas(delta, tmp_path / "fresh")
    assert not list(tmp_path.glob(".*"))


def test_an_end_in_the_middle_leaves_the_copy_as_it_is(
        pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    copy, delta = pair
    before = everything(copy)

    def fails(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    for name, put in (("npy", fails), ("npy", WRITERS["npy"])):
        monkeypatch.setitem(WRITERS, name, put)
        if put is fails:
            with pytest.raises(OSError, match="No space"):
                apply_deltas(delta, copy)
            assert everything(copy) == before
    apply_deltas(delta, copy)
    assert everything(copy) != before


def test_a_reader_sees_one_version(runs: dict[str, StoredRows], tmp_path: Path) -> None:
    copy, rows = tmp_path / "copy", np.zeros((64, DIM), np.float32)
    runs["a"] = stored("a", rows)
    export(runs["a"], copy)
    for number in range(8):
        runs["b"] = stored("b", rows + number + 1)
        base = copy if not number else tmp_path / "a"
        write_deltas(tmp_path / "b", base, tmp_path / f"delta{number}")
        runs["a"] = runs["b"]
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            found = load_embeddings(copy)
            seen.append((float(found.vectors.min()), float(found.vectors.max())))

    reader = threading.Thread(target=read)
    reader.start()
    opened = load_embeddings(copy)
    for number in range(8):
        apply_deltas(tmp_path / f"delta{number}", copy)
    done.set()
    reader.join()
    assert all(low == high for low, high in seen)
    assert float(load_embeddings(copy).vectors.max()) == 8 and opened.vectors.max() == 0


def test_another_catalogue_or_width_is_refused(runs: dict[str, StoredRows],
                                               tmp_path: Path) -> None:
    rows = np.ones((4, DIM), np.float32)
    runs["a"] = stored("a", rows)
    runs["b"] = stored("b", rows, ids=["i1", "i0", "i2", "i3"])
    runs["c"] = stored("c", rows, bias=np.zeros(4, np.float32))
    with pytest.raises(InputError, match="are not the first ones of run"):
        write_deltas(tmp_path / "b", tmp_path / "a", tmp_path / "d")
    with pytest.raises(InputError, match=r"no bias, run .* a bias"):
        write_deltas(tmp_path / "c", tmp_path / "a", tmp_path / "d")
    with pytest.raises(InputError, match="neither an export nor a run"):
        write_deltas(tmp_path / "c", tmp_path, tmp_path / "d")
    with pytest.raises(InputError, match="dtype is 'int8'"):
        write_deltas(tmp_path / "b", tmp_path / "a", tmp_path / "d", dtype="int8")  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_the_verbs(pair: tuple[Path, Path], rec_jax: Command, tmp_path: Path) -> None:
    copy, delta = pair
    about = one_object(rec_jax("deltas", "write", tmp_path / "b", "--base", copy, "--out",
                               tmp_path / "e", "--json"))
    assert about["count"] == 9 and about["added"] == 1
    assert about == json.loads((delta / "delta.json").read_text())
    assert rec_jax("deltas", "apply", delta, "--to", copy).code == 0
    os.rename(tmp_path / "e", tmp_path / "f")
    assert one_object(rec_jax("deltas", "apply", tmp_path / "f", "--to", copy,
                              "--json"))["applied"] is False
    assert "is not a delta" in refused(rec_jax("deltas", "apply", copy, "--to", copy))
