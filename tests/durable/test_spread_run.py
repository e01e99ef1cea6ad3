"""A run with spread rows: what people see of it is by id, and older runs go on as they were."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from signalled import SignalAfter

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import Preempted
from rec_jax.inference.evaluate import evaluate_served
from rec_jax.inference.export import export, load_embeddings
from rec_jax.inference.served import load_served, open_rows
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.tables import RowMap
from rec_jax.tables.row_map import spread
from rec_jax.train.build import build
from rec_jax.train.growing import Start, start_from
from rec_jax.train.loop import run_training
from rec_jax.train.resume import resume
from rec_jax.train.state import to_items

Mapping = Callable[..., dict[str, Any]]
SPARSE = ("table.update='sparse'", "objective.kind='sampled_softmax'", "objective.count=8",
          "train.checkpoint_every=2", "train.steps=10", "checkpoint.full_every=3",
          "train.rows=8", "checkpoint.keep=9", "evaluate.filter_cold=true",
          "table.optimizer.rate=0.05")
ROWS = "['tables']['items']"
BUILD = importlib.import_module("rec_jax.train.build")  # `rec_jax.train` is a function too


def trained(mapping: dict[str, Any], folder: Path, stop: int | None = None) -> Run:
    run = Run(folder)
    if stop is None:
        run_training(run, config.build(RunConfig, mapping))
    else:
        with pytest.raises(Preempted):
            run_training(run, config.build(RunConfig, mapping), SignalAfter(stop))
    return run


@pytest.fixture(scope="module")
def runs(tiny_mapping: Mapping, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same run with spread rows and, as an older program would, without."""
    folder = tmp_path_factory.mktemp("spread")
    mapping = tiny_mapping(*SPARSE, "mesh.items=4", "table.tied=false")
    spread_out = trained(mapping, folder / "spread")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BUILD, "row_map_of", lambda mode, size: RowMap(size))
        patch.setattr(RowMap, "to_json", lambda self: None)
        return spread_out, trained(mapping, folder / "plain")


def test_checkpoints_say_how_their_rows_are_ordered(runs: tuple[Run, Run]) -> None:
    orders = []
    for run in runs:
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            step = checkpoints.latest()
            assert step == 10
            orders.append(checkpoints.extra(step)["row_map"])
    assert orders == [spread(50).to_json(), None] and spread(50).stripes > 1


def test_every_metric_vector_and_recommendation_is_the_same(
        runs: tuple[Run, Run], tmp_path: Path) -> None:
    def seen(run: Run) -> list[Any]:
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            found: list[Any] = [checkpoints.infos()[step].metric for step in checkpoints.steps()]
        served, out = load_served(run), tmp_path / run.folder.name
        for what in ("items", "inputs", "users"):
            vectors = load_embeddings(export(served, out / what, what=what)).vectors  # type: ignore[arg-type]
            found.append(np.asarray(vectors).tobytes())
        for inputs in (False, True):
            rows = open_rows(run, inputs=inputs)
            vectors = load_embeddings(export(
                rows, out / f"disk{inputs}", what="inputs" if inputs else "items")).vectors
            found.append(np.asarray(vectors).tobytes())
        assert found[-2:] == found[-5:-3]  # from disk as from memory
        found += [evaluate_served(served, split=split, baseline=True)["metrics"]
                  for split in ("valid", "test")]  # type: ignore[arg-type]
        return found + [api.recommend(run.folder, user=user, k=50) for user in ("u5", "u9")]

    one, other = map(seen, runs)
    assert one == other


def test_equal_scores_are_listed_by_id(tiny_mapping: Mapping, tmp_path: Path) -> None:
    settings = config.build(RunConfig, tiny_mapping(*SPARSE))
    built, run = build(settings), Run(tmp_path / "run")
    run.create(settings)
    items = built.state.items.replace(rows=built.state.items.rows.at[:].set(0))
    state = built.state._replace(tables={"items": items})
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(1, to_items(state), {
            "dataset": built.dataset.split_hash, "row_map": items.row_map.to_json(),
            "tables": sorted(state.tables)}, 0.0)
    found = api.recommend(run.folder, history=["0003"], k=50, filter_seen=False)
    ids = built.dataset.item_ids().to_list()
    places = [ids.index(one.item) for one in found]
    assert places == sorted(places) and len(places) > 20


@pytest.mark.slow
@pytest.mark.parametrize("items", [1, 4])
def test_a_run_of_an_older_program_goes_on_in_its_own_order(
        tiny_mapping: Mapping, tmp_path: Path, items: int) -> None:
    mapping = tiny_mapping(*SPARSE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BUILD, "row_map_of", lambda mode, size: RowMap(size))
        patch.setattr(RowMap, "to_json", lambda self: None)
        whole = trained(mapping, tmp_path / "whole")
        old = trained(mapping, tmp_path / "old", stop=4)
    run_training(old, config.build(RunConfig, tiny_mapping(
        *SPARSE, f"mesh.items={items}", "table.gather_slack=2.0")))
    rows = []
    for run in (whole, old):
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            rows.append(checkpoints.open(10).items["model"][ROWS].read(0, 50))
    with Checkpoints(old.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.extra(10)["row_map"] == {"stripes": 1, "step": 1}
    if items == 1:
        np.testing.assert_array_equal(rows[1], rows[0])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("items", [1, 8])
def test_a_spread_run_goes_on_on_another_mesh(
        runs: tuple[Run, Run], tiny_mapping: Mapping, tmp_path: Path, items: int) -> None:
    lines = (*SPARSE, "table.tied=false")
    run = trained(tiny_mapping(*lines, "mesh.items=4"), tmp_path / "run", stop=4)
    run_training(run, config.build(RunConfig, tiny_mapping(*lines, f"mesh.items={items}")))
    found, whole = load_served(run, step=10), load_served(runs[0], step=10)
    np.testing.assert_allclose(found.rows, whole.rows, atol=1e-5)


@pytest.mark.parametrize("kept", [{"stripes": 5}, {"stripes": 4, "step": 2}, [5, 3]])
def test_an_order_that_is_none_is_damage(tiny_mapping: Mapping, tmp_path: Path, kept: Any) -> None:
    settings = config.build(RunConfig, tiny_mapping(*SPARSE))
    built, run = build(settings), Run(tmp_path / "run")
    run.create(settings)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(1, to_items(built.state), {
            "dataset": built.dataset.split_hash, "row_map": kept, "tables": ["items"]}, 0.0)
        checkpoints.wait()
    for opened in (load_served, open_rows):
        with pytest.raises(Damaged, match="order of its rows"):
            opened(run)


@pytest.fixture(scope="module")
def grown(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with 900 new items, without two of the old ones."""
    folder = tmp_path_factory.mktemp("grown")
    lines = [line for line in tiny_csv.read_text().splitlines()
             if line.split(",")[1] not in ("0003", "0041")]
    lines += [f"new{item // 9},n{item:04d},{2_000_000 + item}" for item in range(900)]
    (folder / "grown.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "grown.csv"), out=str(folder / "dataset"),
                          columns=Columns(time="time")))
    return folder / "dataset"


@pytest.mark.parametrize("source", [0, 1])
def test_a_catalogue_that_grew_is_spread_anew(
        runs: tuple[Run, Run], grown: Path, tiny_mapping: Mapping, tmp_path: Path,
        source: int) -> None:
    settings = config.build(RunConfig, tiny_mapping(
        *SPARSE, "table.tied=false", f"data.path='{grown}'", "mesh.items=8"))
    built, target = build(settings), Run(tmp_path / "new")
    target.create(settings)
    size, order = built.dataset.num_items, built.state.items.row_map
    assert order == spread(size) and order.stripes > spread(50).stripes
    places = order.rows(np.arange(size))
    fresh = np.asarray(built.state.items.rows)[places]
    with Checkpoints(runs[source].checkpoints, read_only=True) as checkpoints:
        best = checkpoints.best()
    state = start_from(Start(runs[source], keep_state=True), built, target, Silent())
    assert state.items.row_map == order
    old = load_served(runs[source], step=best)
    before = dict(zip(old.dataset.item_ids().to_list(), np.asarray(old.rows), strict=False))
    rows = np.asarray(state.items.rows)[places]
    kept = 0
    for name, row, first in zip(built.dataset.item_ids().to_list(), rows, fresh, strict=True):
        kept += name in before
        np.testing.assert_array_equal(row, before.get(name, first))
    assert kept == len(before) - 2
    counts = [np.asarray(leaf) for leaf in jax.tree.leaves(state.items.state)]
    assert all(not np.any(leaf[places[~np.isin(
        built.dataset.item_ids().to_numpy(), list(before))]]) for leaf in counts)
    assert any(leaf.any() for leaf in counts)


def test_a_resumed_state_knows_its_order(runs: tuple[Run, Run]) -> None:
    for run, stripes in zip(runs, (spread(50).stripes, 1), strict=True):
        settings = run.config()
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            state, done, _ = resume(checkpoints, build(settings), settings, Silent())
        assert done == 10 and state.items.row_map.stripes == stripes
        assert state.tables["inputs"].row_map == state.items.row_map
