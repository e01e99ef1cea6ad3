"""A run starts from another one's rows though items came and went."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import InputError
from rec_jax.inference.cold_rule import ColdRule, Known, cold_vectors
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.growing import Start, match_items, start_from
from rec_jax.train.state import TrainState, to_items


class Told(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_items_are_matched_by_id_not_by_place() -> None:
    found = match_items(pl.Series(["a", "b", "c", "d"]), pl.Series(["x", "d", "a", "y", "z"]))
    assert found.new_of_old.tolist() == [2, -1, -1, 1]
    assert found.retired == ["b", "c"] and found.added == 3


@pytest.fixture(scope="module")
def old(tiny_mapping: Callable[..., dict[str, Any]],
        tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainState]:
    """A run with one checkpoint, every value of it different, and that state."""
    settings = config.build(RunConfig, tiny_mapping())
    built = build(settings)
    state = jax.tree.map(lambda leaf: jax.device_put(
        (np.arange(leaf.size).reshape(leaf.shape) % 1000 + 1).astype(leaf.dtype), leaf.sharding),
        built.state)
    run = Run(tmp_path_factory.mktemp("old") / "run")
    run.create(settings)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(9, to_items(state), {"dataset": built.dataset.split_hash,
                                              "tables": sorted(state.tables)})
    return run, state


@pytest.fixture(scope="module")
def grown(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with 900 new items, without three of the old ones: another padded size."""
    folder = tmp_path_factory.mktemp("grown")
    lines = [line for line in tiny_csv.read_text().splitlines()
             if line.split(",")[1] not in ("0003", "0007", "0041")]
    lines += [f"new{item // 9},n{item:04d},{2_000_000 + item}" for item in range(900)]
    (folder / "grown.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "grown.csv"), out=str(folder / "dataset"),
                          columns=Columns(time="time")))
    return folder / "dataset"


@pytest.mark.parametrize(("items", "keep_state"), [(1, True), (4, True), (2, False)])
def test_old_rows_keep_values_and_state_and_new_ones_start_anew(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path, items: int, keep_state: bool,
        old: tuple[Run, TrainState], grown: Path) -> None:
    run, before = old
    settings = config.build(RunConfig, tiny_mapping(f"data.path='{grown}'", f"mesh.items={items}"))
    fresh, built = build(settings).state, build(settings)
    told = Told()
    target = Run(tmp_path / "new")
    target.create(settings)
    state = start_from(Start(run, keep_state=keep_state), built, target, told)
    new_ids = built.dataset.item_ids().to_list()
    old_ids = build(run.config()).dataset.item_ids().to_list()
    assert state.items.rows.shape[0] > before.items.rows.shape[0]
    assert not state.items.rows.is_fully_replicated or items == 1
    rows, old_rows = np.asarray(state.items.rows), np.asarray(before.items.rows)
    moments = [np.asarray(leaf) for leaf in jax.tree.leaves(state.optimizer)
               if leaf.shape == state.items.rows.shape]
    assert len(moments) == 2
    kept = 0
    for place, name in enumerate(new_ids):
        if name in old_ids:
            expected = old_rows[old_ids.index(name)]
            assert rows[place].tobytes() == expected.tobytes()
            kept += 1
            if keep_state:
                assert all(np.array_equal(moment[place], expected) for moment in moments)
        else:
            assert rows[place].tobytes() == np.asarray(fresh.items.rows)[place].tobytes()
    if not keep_state:
        assert not any(moment.any() for moment in moments)
    assert int(state.step) == (1 if keep_state else 0)
    for name, leaf in state.encoder.items():
        assert np.asarray(leaf).tobytes() == np.asarray(before.encoder[name]).tobytes()
    assert f"{kept} items kept, 900 new, 3 retired" in told.said[-1]
    assert sorted((target.folder / "retired_items.txt").read_text().split()) == [
        "0003", "0007", "0041"]


def test_encoder_arrays_as_long_as_the_table_are_taken_as_they_are(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path, grown: Path) -> None:
    lines = ("table.dim=48", "encoder.hidden=32", "train.ema=0.5")
    old = build(settings := config.build(RunConfig, tiny_mapping(*lines)))
    state = jax.tree.map(lambda leaf: jax.device_put(
        (np.arange(leaf.size).reshape(leaf.shape) % 1000 + 1).astype(leaf.dtype), leaf.sharding),
        old.state)
    run, target = Run(tmp_path / "old"), Run(tmp_path / "new")
    run.create(settings)
    target.folder.mkdir()
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(9, to_items(state), {"dataset": old.dataset.split_hash,
                                              "tables": sorted(state.tables)})
    new = build(config.build(RunConfig, tiny_mapping(*lines, f"data.path='{grown}'")))
    total = new.state.items.rows.shape[0]
    assert total in {leaf.shape[0] for leaf in new.state.encoder.values()}
    found = start_from(Start(run, keep_state=True), new, target, Silent())
    assert found.average is not None and found.items.rows.shape[0] == total
    for encoder in (found.encoder, found.average.encoder):
        for name, leaf in encoder.items():
            np.testing.assert_array_equal(leaf, state.encoder[name], err_msg=name)


def test_another_encoder_is_refused_in_one_line(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path,
        old: tuple[Run, TrainState]) -> None:
    settings = config.build(RunConfig, tiny_mapping("encoder.layers=2"))
    with pytest.raises(InputError, match=r"does not fit: .* encoder and optimizer must be"):
        start_from(Start(old[0]), build(settings), Run(tmp_path), Told())


@pytest.mark.parametrize(("items", "lines"), [
    (2, ("train.ema=0.5",)),
    pytest.param(4, ('table.update="sparse"', 'objective.kind="sampled_softmax"',
                     "objective.count=32"), marks=pytest.mark.slow)])
def test_new_items_start_from_their_content(
        items: int, lines: tuple[str, ...], tiny_mapping: Callable[..., dict[str, Any]],
        tiny_dataset: Path, grown: Path, tmp_path: Path) -> None:
    random, folders, vectors = np.random.default_rng(2), [], []
    for name, source in (("before", tiny_dataset), ("after", grown)):
        folder = shutil.copytree(source, tmp_path / name)
        ids = Dataset.open(folder).item_ids()
        np.save(tmp_path / "v.npy", random.standard_normal((len(ids), 3)).astype(np.float32))
        (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
        api.embed(folder, name="text", vectors=tmp_path / "v.npy", ids=tmp_path / "ids.txt")
        folders.append(folder)
        vectors.append(np.load(folder / "item_vectors" / "text.npy"))

    def settings(folder: Path) -> RunConfig:
        mapping = tiny_mapping(f"data.path='{folder}'", f"mesh.items={items}", *lines)
        return config.build(RunConfig, {**mapping, "content": [{"name": "text"}]})

    first = build(settings(folders[0]))
    run, target = Run(tmp_path / "old"), Run(tmp_path / "new")
    run.create(settings(folders[0]))
    target.folder.mkdir()
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(9, to_items(first.state), {
            "dataset": first.dataset.split_hash, "tables": ["items"],
            "row_map": first.state.items.row_map.to_json()})
    built = build(settings(folders[1]))
    state = start_from(Start(run), built, target, Silent())
    old_ids, ids = (each.dataset.item_ids().to_list() for each in (first, built))
    kept = np.array([name in old_ids for name in ids])
    matrix = np.asarray(state.encoder["content/text"])
    alone = vectors[1] @ matrix
    tables = [state.items.rows] if state.average is None else [
        state.items.rows, state.average.tables["items"]]
    assert len(tables) == 1 + ("train.ema=0.5" in lines)
    for rows in tables:
        stored = np.asarray(rows)[state.items.row_map.rows(np.arange(len(ids)))]
        found = stored[:, :16] + alone
        wanted = cold_vectors(ColdRule(), Known(found[kept], alone[kept], vectors[1][kept]),
                              alone[~kept], vectors[1][~kept])
        np.testing.assert_allclose(found[~kept], wanted, atol=1e-5)
        before = np.asarray(first.state.items.rows)[first.state.items.row_map.rows(
            np.array([old_ids.index(name) for name in ids if name in old_ids]))]
        np.testing.assert_array_equal(stored[kept, :16], before[:, :16])
    np.testing.assert_array_equal(np.asarray(state.items.rows)[
        state.items.row_map.rows(np.arange(len(ids)))][:, 16:], vectors[1])
