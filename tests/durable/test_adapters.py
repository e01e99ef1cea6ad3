"""Fine-tuned runs: what a checkpoint keeps, merged runs, and a start without rows."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command import Command, one_object, refused

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.growing import Start, start_from
from rec_jax.train.state import TrainState, to_items

Mapping = Callable[..., dict[str, Any]]
STEPS = ("train.steps=6", "train.checkpoint_every=3", "train.evaluate_every=1000.0")
LORA: dict[str, Any] = {"lora": [{"match": "blocks/*/kernel", "rank": 2}]}
TUNED: dict[str, Any] = {"tune": [{"match": "*"}, {"match": "lora/*", "rate": 1.0},
                                  {"match": "norm/*", "rate": 0.5}], **LORA}


def arrays(run: Path, step: int = 6) -> dict[str, np.ndarray]:
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return {f"{part}{path}": source.read(0, source.shape[0] if source.shape else 1)
                for part, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


@pytest.fixture(scope="module")
def settings(tiny_mapping: Mapping) -> RunConfig:
    return config.build(RunConfig, {**tiny_mapping(*STEPS), **TUNED})


@pytest.fixture(scope="module")
def run(settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapters and last norm have trained."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    summary = api.train(settings, run=folder)
    parameters = summary["parameters"]
    assert 0 < parameters["trained"] < parameters["frozen"]
    return folder


def test_a_checkpoint_has_state_of_what_trains_alone(run: Path, settings: RunConfig) -> None:
    found, fresh = arrays(run), build(settings).state
    moved = {path for path, leaf in fresh.encoder.items()
             if found[f"model['encoder']['{path}']"].tobytes() != np.asarray(leaf).tobytes()}
    assert {path for path in fresh.encoder if path.startswith(("lora/", "norm/"))} == moved
    rows = found["model['tables']['items']"]
    assert rows.tobytes() == np.asarray(fresh.items.rows).tobytes()
    state = {path.partition("['encoder']['")[2].rstrip("']") for path in found
             if path.startswith("training['optimizer']") and "['encoder']" in path}
    assert state == moved
    assert not any("['tables']" in path for path in found if path.startswith("training"))


@pytest.mark.slow
def test_an_adapted_run_goes_on_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step_6")
    api.train(resume=half)
    one, other = arrays(run), arrays(half)
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].tobytes() == other[path].tobytes(), path


def test_a_merged_run_is_an_ordinary_one_with_the_same_queries(
        run: Path, tmp_path: Path, rec_jax: Command) -> None:
    out = tmp_path / "merged"
    found = one_object(rec_jax("adapt", "merge", run, "--out", out, "--json"))
    assert found["step"] == 6 and len(found["merged"]) == 4
    ordinary = Run(out).config()
    assert not ordinary.lora and not ordinary.tune
    assert arrays(out).keys() == {f"{part}{path}" for part, tree in to_items(
        build(ordinary).state).items() for path in paths_of(tree)}
    users = [load_embeddings(api.export(folder, what="users", out=tmp_path / name)).vectors
             for name, folder in (("a", run), ("b", out))]
    np.testing.assert_allclose(*users, atol=1e-6)
    plain = build(ordinary).state.encoder
    assert np.abs(arrays(out)["model['encoder']['blocks/0/up/kernel']"]
                  - np.asarray(plain["blocks/0/up/kernel"])).max() > 1e-4
    assert "holds a run already" in refused(rec_jax("adapt", "merge", run, "--out", out))
    assert "has no adapters to merge" in refused(
        rec_jax("adapt", "merge", out, "--out", tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_an_adapted_run_is_ranked_and_recommended_from_as_the_merged_one(
        run: Path, tmp_path: Path) -> None:
    api.merge_adapters(run, out=tmp_path / "merged")
    one, other = (api.load(folder) for folder in (run, tmp_path / "merged"))
    assert api.evaluate(one)["metrics"] == pytest.approx(api.evaluate(other)["metrics"])
    history = one.served.dataset.item_ids()[:3].to_list()
    lists = [model.recommend(history=history, k=5) for model in (one, other)]
    assert [row.item for row in lists[0]] == [row.item for row in lists[1]]
    resumed = api.train(resume=tmp_path / "merged")
    assert resumed["steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["transformer", "hstu"])
@pytest.mark.parametrize("mode", [
    (), ('table.update="streamed"',), ('table.update="streamed"', "mesh.items=4"),
    ('table.update="sparse"', 'objective.kind="sampled_softmax"', "objective.count=32",
     "checkpoint.full_every=3"),
    ('table.update="sparse"', 'objective.kind="sampled_softmax"', "objective.count=32",
     'table.placement="host"', "table.cache=0.9")])
def test_frozen_tables_and_adapters_in_every_mode(
        mode: tuple[str, ...], encoder: str, tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, *mode)
    mapping["encoder"] = {"kind": encoder, "layers": 1, "dropout": 0.1}
    settings = config.build(RunConfig, {**mapping, **TUNED})
    whole = tmp_path / "whole"
    api.train(settings, run=whole)
    beside = dataclasses.replace(settings, table=dataclasses.replace(
        settings.table, placement="device"))
    rows = np.asarray(build(beside).state.items.rows)
    assert arrays(whole)["model['tables']['items']"].tobytes() == rows.tobytes()
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step_6")
    api.train(resume=half)
    one, other = arrays(whole), arrays(half)
    for path in one:
        assert one[path].tobytes() == other[path].tobytes(), path


def paths_of(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def test_a_rule_without_a_match_makes_no_run(tiny_mapping: Mapping, tmp_path: Path) -> None:
    for section, line in (("tune", "blocks/7/*"), ("lora", "blocks/0/up/bias")):
        wrong = config.build(RunConfig, {**tiny_mapping(), section: [{"match": line}]})
        with pytest.raises(InputError, match=rf"^{section}.match '{line[:6]}.* such as blocks/0/"):
            api.train(wrong, run=tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def other(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two datasets with content, and the same ids, which mean other items in the second one."""
    found, random = {}, np.random.default_rng(5)
    for name in ("pre", "new"):
        folder = shutil.copytree(tiny_dataset, tmp_path_factory.mktemp(name) / "dataset")
        ids = Dataset.open(folder).item_ids()
        np.save(folder.parent / "v.npy", random.standard_normal((len(ids), 3)).astype(np.float32))
        (folder.parent / "ids.txt").write_text("\n".join(ids) + "\n")
        api.embed(folder, vectors=folder.parent / "v.npy", ids=folder.parent / "ids.txt")
        found[name] = folder
    return found


def saved(folder: Path, built_config: RunConfig) -> tuple[Run, TrainState]:
    """A run with one checkpoint, every value of its encoder another than a new one's."""
    built = build(built_config)
    encoder = {path: leaf + 1 for path, leaf in built.state.encoder.items()}
    run, state = Run(folder), built.state._replace(encoder=encoder)
    if state.average is not None:
        state = state._replace(average=state.average._replace(encoder=encoder))
    run.create(built_config)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(9, to_items(state), {
            "dataset": built.dataset.split_hash, "tables": ["items"],
            "row_map": state.items.row_map.to_json()})
    return run, state


@pytest.mark.parametrize("ema", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_transfer_takes_encoder_and_content_map_and_no_row(
        ema: bool, tiny_mapping: Mapping, other: dict[str, Path], tmp_path: Path) -> None:
    def of(name: str, **more: Any) -> RunConfig:
        mapping = tiny_mapping(f"data.path='{other[name]}'", *(["train.ema=0.5"] if ema else []))
        return config.build(RunConfig, {**mapping, "content": [{"name": "text"}], **more})

    run, before = saved(tmp_path / "pre", of("pre"))
    (tmp_path / "new").mkdir()
    shutil.move(other["pre"], other["pre"].with_name("gone"))  # it is not needed
    try:
        built = build(of("new", **LORA))
        state = start_from(Start(run, encoder_only=True), built, Run(tmp_path / "new"), Silent())
    finally:
        shutil.move(other["pre"].with_name("gone"), other["pre"])
    weights = [(state.encoder, state.items.rows)]
    if state.average is not None:
        weights.append((state.average.encoder, state.average.tables["items"]))
    assert len(weights) == 1 + ema
    count = built.dataset.num_items
    for encoder, rows in weights:
        for path, leaf in encoder.items():
            source = before.encoder if path in before.encoder else built.state.encoder
            assert path in before.encoder or path.startswith("lora/")
            assert np.asarray(leaf).tobytes() == np.asarray(source[path]).tobytes(), path
        assert not np.any(np.asarray(rows)[:count, :16])
        np.testing.assert_array_equal(np.asarray(rows)[:count, 16:],
                                      np.load(other["new"] / "item_vectors" / "text.npy"))
    assert not (tmp_path / "new" / "retired_items.txt").exists()
    with pytest.raises(InputError, match="expected keep_state or encoder_only"):
        Start(run, keep_state=True, encoder_only=True)
    with pytest.raises(InputError, match="encoder_only is of a run that starts from another"):
        api.train(of("new"), run=tmp_path / "x", encoder_only=True)


def test_a_merge_that_fails_leaves_no_run(run: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left"):
        api.merge_adapters(run, out=tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_adapted_run_is_merged_before_another_starts_from_it(
        run: Path, tiny_mapping: Mapping, tmp_path: Path) -> None:
    built = build(config.build(RunConfig, tiny_mapping(*STEPS)))
    with pytest.raises(InputError, match=r"lora/blocks.*merged first, see `rec-jax adapt merge`"):
        start_from(Start(Run(run)), built, Run(tmp_path), Silent())
    api.merge_adapters(run, out=tmp_path / "merged")
    state = start_from(Start(Run(tmp_path / "merged")), built, Run(tmp_path), Silent())
    found = arrays(tmp_path / "merged")
    for path, leaf in state.encoder.items():
        assert np.asarray(leaf).tobytes() == found[f"model['encoder']['{path}']"].tobytes(), path


def test_lora_goes_on_where_the_run_that_it_starts_from_has_it(
        run: Path, settings: RunConfig, tmp_path: Path) -> None:
    state = start_from(Start(Run(run), keep_state=True), build(settings), Run(tmp_path), Silent())
    found = arrays(run)
    assert int(state.step) == 6
    for path, leaf in state.encoder.items():
        assert np.asarray(leaf).tobytes() == found[f"model['encoder']['{path}']"].tobytes(), path
