"""Runs from before tables had names: they open, go on, grow and export as those of today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.checkpoint.layout import INFO, LEAVES, find_steps
from rec_jax.checkpoint.manifest import write_file, write_manifest
from rec_jax.inference.export import export, load_embeddings
from rec_jax.inference.served import load_served, open_rows
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.growing import Start, start_from
from rec_jax.train.loop import run_training
from rec_jax.train.state import to_items

Mapping = Callable[..., dict[str, Any]]
STEPS, CUT = 7, 4
COMMON = (f"train.steps={STEPS}", "train.checkpoint_every=1", "checkpoint.keep=99")
RUNS = {
    "dense": ("table.update='dense'", "train.ema=0.9"),
    "streamed untied": ("table.update='streamed'", "table.tied=false",
                        "table.optimizer.kind='adam'"),
    "sparse untied": ("table.update='sparse'", "table.tied=false", "train.rows=1",
                      "objective.kind='sampled_softmax'", "objective.count=4",
                      "checkpoint.full_every=9"),
}


def age(run: Run) -> Run:
    """Write the checkpoints of a run as they were: `rows` and `inputs`, and no names of tables."""
    for folder in find_steps(run.checkpoints).values():
        for index in folder.glob(f"*/{LEAVES}"):
            content = json.loads(index.read_text())
            for leaf in content["leaves"]:
                if "['encoder']" not in leaf["path"]:
                    leaf["path"] = leaf["path"].replace("['tables']['items']", "['rows']").replace(
                        "['tables']['inputs']", "['inputs']")
            write_file(index, json.dumps(content))
        info = json.loads((folder / INFO).read_text())
        assert "tables" in info["extra"]
        del info["extra"]["tables"]
        write_file(folder / INFO, json.dumps(info))
        write_manifest(folder)
    return run


def copy_of(run: Run, folder: Path, last: int = STEPS) -> Run:
    """The run as it stood when `last` steps were done."""
    shutil.copytree(run.folder, folder)
    for step, path in find_steps(folder / "checkpoints").items():
        if step > last:
            shutil.rmtree(path)
    return Run(folder)


def arrays(run: Run, step: int) -> dict[str, bytes]:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        return {name + path: np.asarray(source.read(0, (source.shape or (1,))[0])).tobytes()
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


@pytest.fixture(scope="module", params=[
    pytest.param("dense", marks=pytest.mark.slow),
    pytest.param("streamed untied", marks=pytest.mark.slow), "sparse untied"])
def pair(request: pytest.FixtureRequest, tiny_mapping: Mapping,
         tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A finished run, and the same one as an older program would have left it."""
    folder = tmp_path_factory.mktemp("older")
    run = Run(folder / "new")
    run_training(run, config.build(RunConfig, tiny_mapping(*COMMON, *RUNS[request.param])))
    return run, age(copy_of(run, folder / "old"))


def test_the_older_checkpoints_name_no_table_and_are_whole(pair: tuple[Run, Run]) -> None:
    new, old = pair
    untied = not new.config().table.tied
    with Checkpoints(old.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.verify(STEPS) > 0
        assert "tables" not in checkpoints.extra(STEPS)
        model = checkpoints.open(STEPS).items["model"]
    assert sorted(path for path in model if "encoder" not in path) == (
        ["['inputs']", "['rows']"] if untied else ["['rows']"])
    assert not any("['tables']" in path for path in arrays(old, STEPS))
    assert len(arrays(old, STEPS)) == len(arrays(new, STEPS))
    with Checkpoints(new.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.extra(STEPS)["tables"] == (["inputs", "items"] if untied else ["items"])


def test_an_older_run_goes_on_to_the_same_bits(pair: tuple[Run, Run], tmp_path: Path) -> None:
    new, _ = pair
    old = age(copy_of(new, tmp_path / "run", CUT))
    run_training(old, old.config())
    assert arrays(old, STEPS) == arrays(new, STEPS)
    deltas = new.config().checkpoint.full_every > 1
    with Checkpoints(old.checkpoints, read_only=True) as checkpoints:
        bases = {step: info.base for step, info in checkpoints.infos().items()}
        named = {step: "tables" in checkpoints.extra(step) for step in bases}
    with Checkpoints(new.checkpoints, read_only=True) as checkpoints:
        before = {step: info.base for step, info in checkpoints.infos().items()}
    assert named == {step: step > CUT for step in range(1, STEPS + 1)}
    # Arrays of other names are no base: the first save is full, and deltas build on that one.
    assert bases == before | {CUT + 1: None}
    assert before[CUT] == (CUT - 1 if deltas else None)
    assert before[CUT + 1] == (CUT if deltas else None)
    assert bases[STEPS] == (STEPS - 1 if deltas else None)


def test_an_older_run_serves_and_exports_the_same(pair: tuple[Run, Run], tmp_path: Path) -> None:
    def seen(run: Run) -> list[Any]:
        served, found = load_served(run, step=STEPS), []
        whats = ("items", "users") if run.config().table.tied else ("items", "inputs", "users")
        for what in whats:
            out = export(served, tmp_path / run.folder.name / what, what=what)  # type: ignore[arg-type]
            found.append(np.asarray(load_embeddings(out).vectors).tobytes())
        for what in whats[:-1]:
            out = export(open_rows(run, step=STEPS, inputs=what == "inputs"),
                         tmp_path / run.folder.name / f"disk {what}", what=what)  # type: ignore[arg-type]
            found.append(np.asarray(load_embeddings(out).vectors).tobytes())
        return [*found, api.evaluate(run.folder)["metrics"],
                api.recommend(run.folder, user="u5", k=10)]

    new, old = map(seen, pair)
    assert new == old


@pytest.mark.parametrize("keep_state", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_starts_from_an_older_one_as_from_one_of_today(
        pair: tuple[Run, Run], tmp_path: Path, keep_state: bool) -> None:
    def started(run: Run) -> dict[str, Any]:
        target = Run(tmp_path / run.folder.name)
        target.create(run.config())
        return to_items(start_from(Start(run, STEPS, keep_state), build(run.config()), target,
                                   Silent()))

    new, old = ([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(started(run))]
                for run in pair)
    assert new == old
