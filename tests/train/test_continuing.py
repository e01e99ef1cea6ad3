"""A run goes on when its dataset has grown: what it knew stays, it is tested, and then trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command import Command, refused
from stopping import StopAfter, Stopped

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.deltas import apply_deltas, write_deltas
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.served import counts_of, serving_values
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import Built, Validator, build
from rec_jax.train.continuing import going_on, start_of, trained_before
from rec_jax.train.growing import start_from
from rec_jax.train.log import read_metrics
from rec_jax.train.loop import run_training
from rec_jax.train.state import TrainState, to_items

SPARSE = ('table.update="sparse"', 'objective.kind="sampled_softmax"', "objective.count=16")
Mapping = Callable[..., dict[str, Any]]


def filled(built: Built) -> TrainState:
    """A state of which every value is another."""
    return jax.tree.map(lambda leaf: jax.device_put(
        ((np.arange(leaf.size).reshape(leaf.shape) % 1009 + 1) / 1009).astype(leaf.dtype)
        if np.issubdtype(leaf.dtype, np.floating) else
        np.full(leaf.shape, 7, leaf.dtype), leaf.sharding), built.state)


def save(run: Run, settings: RunConfig, built: Built, state: TrainState) -> None:
    run.create(settings)
    with Checkpoints(run.checkpoints) as checkpoints:
        for step in (6, 9):  # the earlier one is the better one
            checkpoints.save(step, to_items(state), {
                "dataset": built.dataset.split_hash, "tables": sorted(state.tables),
                "row_map": state.items.row_map.to_json()}, metric=1 / step)


@pytest.fixture(scope="module")
def periods(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny dataset, and the same with a second period that has new items and users."""
    folder = tmp_path_factory.mktemp("periods")
    random = np.random.default_rng(3)
    lines = ["user_id,item_id,time"]
    lines += [f"u{user},{random.integers(60):04d},{2_000_000 + place}"
              for user in range(30, 46) for place in range(int(random.integers(1, 9)))]
    (folder / "new.csv").write_text("\n".join(lines) + "\n")
    for number, source in enumerate((tiny_csv, folder / "new.csv")):
        prepare(PrepareConfig(source=str(source), out=str(folder / f"d{number}"),
                              columns=Columns(time="time"),
                              append=str(folder / "d0") if number else None))
    return [folder / "d0", folder / "d1"]


@pytest.fixture(scope="module")
def old(periods: list[Path], tiny_mapping: Mapping,
        tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainState]:
    settings = config.build(RunConfig, tiny_mapping(f"data.path='{periods[0]}'", "train.ema=0.9"))
    built = build(settings)
    run, state = Run(tmp_path_factory.mktemp("old") / "run"), filled(built)
    save(run, settings, built, state)
    return run, state


@pytest.fixture(scope="module")
def gone_on(old: tuple[Run, TrainState], periods: list[Path],
            tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a run that went on."""
    return api.train(continue_from=old[0].folder, data=periods[1],
                     run=tmp_path_factory.mktemp("on") / "run",
                     overrides=("train.steps=5", "train.evaluate_every=100"))


def test_the_state_is_the_last_one_with_new_rows_as_every_table_begins(
        old: tuple[Run, TrainState], periods: list[Path], tmp_path: Path) -> None:
    run, before = old
    settings = going_on(run, str(periods[1]))
    assert settings.continual is not None and settings.continual.step == 9  # the best one is 6
    assert settings.train.steps is None and settings.train.epochs == 1
    fresh, built = build(settings).state, build(settings)
    start = start_of(settings, Run(tmp_path / "new"), built)
    assert start is not None
    state = start_from(start, built, Run(tmp_path / "new"), Silent())
    count = Dataset.open(periods[0]).num_items
    assert built.dataset.num_items > count
    for (path, now), was, new in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(before),
                                     jax.tree.leaves(fresh), strict=True):
        if now.shape == state.items.rows.shape and "encoder" not in str(path):
            np.testing.assert_array_equal(now[:count], was[:count], err_msg=str(path))
            np.testing.assert_array_equal(now[count:], new[count:], err_msg=str(path))
        else:
            np.testing.assert_array_equal(now, was, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "parts"), [
    ((*SPARSE, "mesh.items=2"), {}),
    ((*SPARSE, "table.tied=false", "mesh.items=2"), {}),
    (('objective.kind="bpr"', 'table.update="sparse"'), {"encoder": {"kind": "user"}})],
    ids=["spread rows", "inputs apart", "users"])
def test_every_table_keeps_its_rows_and_moments(
        lines: tuple[str, ...], parts: dict[str, Any], periods: list[Path],
        tiny_mapping: Mapping, tmp_path: Path) -> None:
    settings = config.build(RunConfig, {**tiny_mapping(f"data.path='{periods[0]}'", *lines),
                                        **parts})
    first = build(settings)
    before, run = filled(first), Run(tmp_path / "old")
    save(run, settings, first, before)
    settings = going_on(run, str(periods[1]))
    fresh, built = build(settings).state, build(settings)
    start = start_of(settings, Run(tmp_path / "new"), built)
    assert start is not None
    state = start_from(start, built, Run(tmp_path / "new"), Silent())
    assert set(state.tables) >= {"items", *(["users"] if parts else [])}
    for name, table in state.tables.items():
        was, new = before.tables[name], fresh.tables[name]
        count, total = ((data.num_users if name == "users" else data.num_items)
                        for data in map(Dataset.open, periods))
        old_ids, new_ids = np.arange(count), np.arange(count, total)
        assert len(new_ids)
        for now, then, begun in zip(*(jax.tree.leaves((one.rows, one.state))
                                      for one in (table, was, new)), strict=True):
            np.testing.assert_array_equal(np.asarray(now)[table.row_map.rows(old_ids)],
                                          np.asarray(then)[was.row_map.rows(old_ids)])
            np.testing.assert_array_equal(np.asarray(now)[table.row_map.rows(new_ids)],
                                          np.asarray(begun)[new.row_map.rows(new_ids)])


def lines_of(run: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items()
             if name != "seconds" and not name.endswith("_per_second")}
            for line in read_metrics(Path(run) / "metrics.jsonl")]


def bits(run: Any) -> dict[str, bytes]:
    with Checkpoints(Path(run) / "checkpoints", read_only=True) as checkpoints:
        opened = checkpoints.open(checkpoints.latest() or 0)
        return {f"{name}{path}": source.read(0, source.shape[0] if source.shape else 1).tobytes()
                for name, part in opened.items.items() for path, source in part.items()}


def test_it_is_tested_on_what_is_new_before_it_is_trained(
        gone_on: dict[str, Any], periods: list[Path], old: tuple[Run, TrainState]) -> None:
    lines = lines_of(gone_on["run"])
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("valid", 0), ("new", 0), ("train", 5), ("valid", 5)]
    data = Dataset.open(periods[1])
    protocol = lines[1]["protocol"]
    fresh = sum(int(end) - max(int(begin), int(first) + 1) for begin, first, end in zip(
        data.old_end, data.offsets[:-1], data.offsets[1:], strict=True) if end > first)
    assert protocol["targets"] == fresh and protocol["split"] == "new"
    assert protocol["split_hash"] == data.split_hash and "every new" in protocol["target"]
    assert protocol["targets_of_new_items"] > 0 and protocol["targets_of_new_users"] > 0
    assert protocol["first_interactions_left_out"] == data.num_users - 40
    assert gone_on["before"]["new"]["protocol"] == protocol
    assert gone_on["before"]["valid"]["ndcg@10"] == lines[0]["ndcg@10"]
    assert 0 <= lines[1]["hr@10"] <= 1 and gone_on["steps"] == 5


def test_what_is_new_does_not_say_what_is_popular_before_it_is_trained(
        old: tuple[Run, TrainState], periods: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = going_on(old[0], str(periods[1]), ("bias.serve_strength=1.0",))
    before, now = map(Dataset.open, periods)
    counts = counts_of(settings, trained_before(now))
    assert counts[:before.num_items].tolist() == counts_of(settings, before).tolist()
    assert not counts[before.num_items:].any() and counts.sum() < counts_of(settings, now).sum()

    validator, asked = build(settings).validator, list[Any]()
    monkeypatch.setattr(Validator, "_served", lambda *_: None)
    monkeypatch.setattr(Validator, "_ranked", lambda *given: asked.append(given[-1]) or {})
    validator.ranked(None, None, trained_before(now))  # type: ignore[arg-type]
    expected: Any = serving_values(settings, before)  # shares of more items differ by a factor
    np.testing.assert_allclose(np.diff(asked[0][:before.num_items]), np.diff(expected), atol=1e-5)


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_it_begins_again_with_the_same_bits(
        gone_on: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(Path(gone_on["run"]) / "config.toml", folder)
    first = (Path(gone_on["run"]) / "metrics.jsonl").read_text().splitlines()[0]
    (folder / "metrics.jsonl").write_text(first + "\n" + '{"kind": "ne')  # cut in the second line
    again = api.train(resume=folder)
    assert lines_of(folder) == lines_of(gone_on["run"])
    assert bits(folder) == bits(gone_on["run"]) and again["before"] == gone_on["before"]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [(), SPARSE], ids=["streamed", "sparse"])
def test_stopped_and_resumed_it_has_the_same_bits(
        lines: tuple[str, ...], tiny_mapping: Mapping, periods: list[Path], tmp_path: Path) -> None:
    first = config.build(RunConfig, tiny_mapping(f"data.path='{periods[0]}'", "train.steps=4",
                                                 *lines))
    api.train(first, run=tmp_path / "first")
    how: dict[str, Any] = {"continue_from": tmp_path / "first", "data": periods[1],
                           "overrides": ("train.steps=6", "train.checkpoint_every=2",
                                         "continual.replay=0.5")}
    whole = api.train(run=tmp_path / "whole", **how)
    assert whole["table_update"] == ("sparse" if lines else "dense")
    settings = Run(tmp_path / "whole").config()
    with pytest.raises(Stopped):
        run_training(Run(tmp_path / "cut"), settings, StopAfter(5))
    shutil.rmtree(tmp_path / "first")  # it is no longer needed
    api.train(resume=tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    assert [line for line in lines_of(tmp_path / "cut") if line["kind"] != "train"] == [
        line for line in lines_of(tmp_path / "whole") if line["kind"] != "train"]


def test_deltas_from_run_to_run_make_the_export_of_the_second(
        gone_on: dict[str, Any], old: tuple[Run, TrainState], tmp_path: Path) -> None:
    api.export(old[0].folder, out=tmp_path / "served", format="safetensors", step=9)
    wanted = load_embeddings(api.export(gone_on["run"], out=tmp_path / "wanted"))
    about = write_deltas(gone_on["run"], tmp_path / "served", tmp_path / "delta")
    assert about["added"] == len(wanted.ids) - len(load_embeddings(tmp_path / "served").ids) > 0
    apply_deltas(tmp_path / "delta", tmp_path / "served")
    found = load_embeddings(tmp_path / "served")
    assert found.ids.equals(wanted.ids) and found.vectors.tobytes() == wanted.vectors.tobytes()


def test_what_does_not_fit_is_refused_in_one_line(
        old: tuple[Run, TrainState], periods: list[Path], tiny_mapping: Mapping, tmp_path: Path,
        rec_jax: Command) -> None:
    folder = str(old[0].folder)
    with pytest.raises(InputError, match="was not appended to a dataset"):
        api.train(continue_from=folder, data=periods[0], run=tmp_path / "a")
    prepare(PrepareConfig(source=str(periods[0].with_name("new.csv")), out=str(tmp_path / "d2"),
                          columns=Columns(time="time"), append=str(periods[1])))
    with pytest.raises(InputError, match="one period appended"):
        api.train(continue_from=folder, data=tmp_path / "d2", run=tmp_path / "a")
    with pytest.raises(InputError, match="followed a cosine to its end"):
        going_on(old[0], str(periods[1]), ("optimizer.schedule=cosine",))
    Run(tmp_path / "empty").create(old[0].config())
    with pytest.raises(InputError, match="has no checkpoint yet"):
        going_on(Run(tmp_path / "empty"), str(periods[1]))
    assert "--data DATASET" in refused(rec_jax("train", "--continue", folder))
    assert "--continue RUN" in refused(rec_jax("train", "ml100k", "--data", "d"))
    assert not (tmp_path / "a").exists() and json.dumps(tiny_mapping())
