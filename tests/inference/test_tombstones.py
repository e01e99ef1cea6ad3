"""Deltas from one export to another in which items are gone, and rows have another order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax.errors import InputError
from rec_jax.inference.deltas import apply_deltas, write_deltas
from rec_jax.inference.export import ABOUT, load_embeddings
from rec_jax.inference.export_formats import WRITERS

DIM = 3


def export(folder: Path, vectors: dict[str, Any], form: str = "npy", bias: bool = False) -> Path:
    folder.mkdir()
    ids, rows = pl.Series("id", list(vectors), pl.String), np.array(
        list(vectors.values()), np.float32).reshape(-1, DIM)
    WRITERS[form](folder, ids, iter([rows]), DIM, rows.sum(axis=1) if bias else None)
    (folder / ABOUT).write_text(json.dumps({
        "what": "items", "format": form, "count": len(ids), "dim": DIM, "dtype": "f32",
        "run": "run", "step": 1, "dataset": "d", **({"item_bias": True} if bias else {})}))
    return folder


def read(folder: Path) -> dict[str, list[float]]:
    found = load_embeddings(folder)
    return dict(zip(found.ids.to_list(), np.asarray(found.vectors).tolist(), strict=True))


@pytest.mark.parametrize(("form", "bias"), [("npy", False), ("parquet", True)])
def test_a_copy_follows_versions_whose_items_come_and_go(tmp_path: Path, form: str, bias: bool
                                                         ) -> None:
    random = np.random.default_rng(len(form))
    now = {str(one): random.normal(size=DIM).round(2).tolist() for one in range(40)}
    copy = export(tmp_path / "copy", now, form, bias)
    for version in range(1, 4):
        gone = [one for one in now if random.random() < 0.2]
        now = {one: vector for one, vector in now.items() if one not in gone}
        changed = [one for one in now if random.random() < 0.3]
        now |= {one: random.normal(size=DIM).round(2).tolist() for one in changed}
        now |= {f"n{version}-{one}": [1.0, version, one] for one in range(9)}
        ids = list(now)
        random.shuffle(ids)  # the trainer's rows change hands
        trained = export(tmp_path / f"v{version}", {one: now[one] for one in ids}, form, bias)
        before = list(read(copy))
        delta = tmp_path / f"d{version}"
        about = write_deltas(trained, copy, delta)
        assert (about["gone"], about["added"]) == (len(gone), 9)
        assert about["count"] == len(changed) + 9
        assert apply_deltas(delta, copy)["applied"] and not apply_deltas(delta, copy)["applied"]
        found = read(copy)
        assert found == read(trained) and not set(gone) & set(found)
        assert list(found)[:-9] == [one for one in before if one not in gone]
        if bias:
            held = load_embeddings(copy)
            assert np.array_equal(held.item_bias, np.asarray(held.vectors).sum(axis=1))


def test_where_nothing_is_gone_the_format_is_the_old_one(tmp_path: Path) -> None:
    one = export(tmp_path / "one", {"a": [1, 2, 3], "b": [4, 5, 6]})
    two = export(tmp_path / "two", {"b": [4, 5, 7], "a": [1, 2, 3]})
    three = export(tmp_path / "three", {"b": [4, 5, 7]})
    about = write_deltas(two, one, tmp_path / "d")
    assert about["format_version"] == 1 and not (tmp_path / "d" / "gone.parquet").exists()
    assert about["count"] == 1
    assert write_deltas(three, one, tmp_path / "e")["format_version"] == 2
    with pytest.raises(InputError, match="applies to version"):
        apply_deltas(tmp_path / "e", three.rename(tmp_path / "four") and two)


def test_a_delta_that_lost_its_tombstones_is_refused(tmp_path: Path) -> None:
    one = export(tmp_path / "one", {"a": [1, 2, 3], "b": [4, 5, 6]})
    two = export(tmp_path / "two", {"b": [4, 5, 6]})
    write_deltas(two, one, tmp_path / "d")
    for change in (lambda f: f.unlink(), lambda f: f.write_bytes(b"x"),
                   lambda f: pl.DataFrame({"id": ["b"]}).write_parquet(f)):
        shutil.copytree(tmp_path / "d", tmp_path / "bad")
        change(tmp_path / "bad" / "gone.parquet")
        with pytest.raises(InputError, match="is damaged"):
            apply_deltas(tmp_path / "bad", one)
        shutil.rmtree(tmp_path / "bad")
    assert list(read(one)) == ["a", "b"]
