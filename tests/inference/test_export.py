"""Embeddings leave with the ids of the source, whole or not at all, and come back as they were."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax import load_embeddings
from rec_jax.errors import InputError
from rec_jax.inference.export import WRITERS, export
from rec_jax.inference.served import Served, load_served
from rec_jax.run import Run

exporting = importlib.import_module("rec_jax.inference.export")
FORMATS = sorted(WRITERS)


@pytest.fixture(scope="module")
def trained(tiny_run: Path) -> Served:
    return load_served(Run(tiny_run))


@pytest.fixture(scope="module")
def exports(trained: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Items in every format, and users as npy."""
    folder = tmp_path_factory.mktemp("exports")
    made = {name: export(trained, folder / name, format=name) for name in FORMATS}
    return {**made, "users": export(trained, folder / "users", what="users")}


@pytest.mark.parametrize("form", FORMATS)
def test_items_come_back_bit_for_bit_with_their_ids(
        trained: Served, exports: dict[str, Path], form: str) -> None:
    found = load_embeddings(exports[form])
    rows = np.asarray(trained.rows)[:trained.dataset.num_items]
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, rows)
    assert found.ids.to_list() == trained.dataset.item_ids().to_list()
    assert all(len(name) == 4 and name.isdigit() for name in found.ids)  # leading zeros stay
    assert (found.about["what"], found.about["format"]) == ("items", form)
    assert found.about["count"] == len(rows) and found.about["dim"] == 16
    assert found.about["step"] == trained.step
    assert found.about["dataset"] == trained.dataset.split_hash


def test_other_tools_can_read_the_formats(trained: Served, exports: dict[str, Path]) -> None:
    from safetensors.numpy import load_file

    rows = np.asarray(trained.rows)[:trained.dataset.num_items]
    np.testing.assert_array_equal(np.load(exports["npy"] / "embeddings.npy"), rows)
    tensors = load_file(exports["safetensors"] / "embeddings.safetensors")
    np.testing.assert_array_equal(tensors["embeddings"], rows)
    frame = pl.read_parquet(exports["parquet"] / "embeddings.parquet")
    np.testing.assert_array_equal(np.array(frame["embedding"].to_list(), np.float32), rows)
    assert frame["id"].to_list() == trained.dataset.item_ids().to_list()


def test_scores_of_users_and_items_recommend_what_the_model_does(
        trained: Served, exports: dict[str, Path]) -> None:
    from rec_jax.inference.retrieve import recommend

    items, users = load_embeddings(exports["npy"]), load_embeddings(exports["users"])
    assert users.ids.to_list() == trained.dataset.user_ids().to_list()
    for user in (5, 17, 39):
        scores = items.vectors @ users.vectors[users.ids.to_list().index(f"u{user}")]
        best = recommend(trained, user=f"u{user}", k=3, filter_seen=False)
        order = np.argsort(-scores)[:3]
        assert [entry.item for entry in best] == [items.ids[int(place)] for place in order]
        np.testing.assert_allclose([entry.score for entry in best], scores[order], rtol=1e-4)


def test_blocks_do_not_show(trained: Served, exports: dict[str, Path], tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "BLOCK", 7)
    for form in FORMATS:
        again = load_embeddings(export(trained, tmp_path / form, format=form))
        np.testing.assert_array_equal(again.vectors, load_embeddings(exports[form]).vectors)
        assert again.ids.equals(load_embeddings(exports[form]).ids)


def test_a_folder_that_exists_is_refused_and_left_alone(trained: Served, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        export(trained, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note"]


@pytest.mark.parametrize("wrong", [{"format": "csv"}, {"what": "user"}])
def test_an_unknown_choice_is_refused(trained: Served, tmp_path: Path,
                                      wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        export(trained, tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_left_behind_after_a_failure(trained: Served, tmp_path: Path, form: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(served: Served, what: str) -> Iterator[np.ndarray]:
        yield np.zeros((3, 16), np.float32)
        raise OSError("the disk is full")

    monkeypatch.setattr(exporting, "item_blocks", broken)
    with pytest.raises(OSError, match="disk is full"):
        export(trained, tmp_path / "out", format=form)
    assert list(tmp_path.iterdir()) == []


def edit(about: Path, **changes: Any) -> None:
    about.write_text(json.dumps({**json.loads(about.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


VECTORS = {"npy": "embeddings.npy", "safetensors": "embeddings.safetensors",
           "parquet": "embeddings.parquet", "zarr": "embeddings.zarr/c/0/0"}
DAMAGE: dict[str, Callable[[Path, str], object]] = {
    "vectors cut": lambda folder, form: cut(folder / VECTORS[form]),
    "vectors emptied": lambda folder, form: (folder / VECTORS[form]).write_bytes(b""),
    "vectors deleted": lambda folder, form: (folder / VECTORS[form]).unlink(),
    "json deleted": lambda folder, form: (folder / "export.json").unlink(),
    "json cut": lambda folder, form: cut(folder / "export.json"),
    "json is a list": lambda folder, form: (folder / "export.json").write_text("[]"),
    "another count": lambda folder, form: edit(folder / "export.json", count=3),
    "another format": lambda folder, form: edit(folder / "export.json", format="csv"),
}
ID_DAMAGE: dict[str, Callable[[Path, str], object]] = {
    "ids cut": lambda folder, form: cut(folder / "ids.parquet"),
    "ids deleted": lambda folder, form: (folder / "ids.parquet").unlink(),
    "ids shorter": lambda folder, form: pl.DataFrame({"id": ["a"]}).write_parquet(
        folder / "ids.parquet"),
}
CASES = [(form, name) for form in FORMATS for name in DAMAGE] + [
    (form, name) for form in FORMATS if form != "parquet" for name in ID_DAMAGE]


@pytest.mark.parametrize(("form", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_damaged_export_is_one_line_of_error(exports: dict[str, Path], tmp_path: Path,
                                               form: str, name: str) -> None:
    folder = shutil.copytree(exports[form], tmp_path / "damaged")
    load_embeddings(folder)  # the copy itself is whole
    (DAMAGE | ID_DAMAGE)[name](folder, form)
    with pytest.raises(InputError) as caught:
        load_embeddings(folder)
    assert ("damaged" if name != "json deleted" else "is not an export") in str(caught.value)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_no_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not an export: export.json is missing"):
        load_embeddings(tmp_path)
