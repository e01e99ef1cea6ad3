"""Whole runs with a table in host memory: checkpoints, resumed runs, what a run refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.log import read_metrics
from rec_jax.train.loop import run_training

Mapping = Callable[..., dict[str, Any]]
SPARSE = ("table.update=sparse", "objective.kind=sampled_softmax", "objective.count=8",
          "train.rows=2", "data.length=5", "train.steps=20", "train.evaluate_every=1",
          "train.checkpoint_every=3")
HOST = ("table.placement=host", "table.cache=30")


class Stopped(Exception):
    """Thrown out of the loop."""


class StopAfter(Silent):
    """Lets so many steps pass, and keeps what is said."""

    def __init__(self, steps: int = 10**9) -> None:
        self.left = steps
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if count and self.left <= 0:
            raise Stopped


def arrays(run: Run) -> dict[str, bytes]:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return {name + path: source.read(0, source.shape[0] if source.shape else 1).tobytes()
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


def figures(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items()
             if name not in ("seconds", "positions_per_second", "sequences_per_second")}
            for line in read_metrics(run.metrics_path)]


@pytest.fixture(scope="module")
def on_devices(tiny_mapping: Mapping, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("devices") / "run")
    run_training(run, config.build(RunConfig, tiny_mapping(*SPARSE)))
    return run


def same(run: Run, other: Run) -> None:
    found, expected = arrays(run), arrays(other)
    assert found.keys() == expected.keys() and len(expected) > 20
    for path, value in expected.items():
        assert found[path] == value, path
    assert figures(run) == figures(other)


def test_a_run_that_goes_from_the_host_to_the_disk_is_the_run_on_the_devices(
        tiny_mapping: Mapping, tmp_path: Path, on_devices: Run) -> None:
    """A stop between, and validations and checkpoints in both parts."""
    run, said = Run(tmp_path / "run"), StopAfter(8)
    with pytest.raises(Stopped):
        run_training(run, config.build(RunConfig, tiny_mapping(*SPARSE, *HOST)), said)
    assert any("rows of table 'items': on the host, table.placement asks for it; a shard's "
               "cache has 30 of them" in line for line in said.lines)
    run_training(run, config.build(RunConfig, tiny_mapping(
        *SPARSE, "table.placement=disk", "table.cache=0.7", "train.lookahead=0")))
    same(run, on_devices)
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(
        path.name for path in on_devices.folder.iterdir())


@pytest.mark.slow
def test_a_run_may_change_its_placement_again_and_again(
        tiny_mapping: Mapping, tmp_path: Path, on_devices: Run) -> None:
    run = Run(tmp_path / "run")
    for lines, steps in ((HOST, 5), ((), 4), (("table.placement=disk", "table.cache=30"), 6)):
        with pytest.raises(Stopped):
            run_training(run, config.build(RunConfig, tiny_mapping(*SPARSE, *lines)),
                         StopAfter(steps))
    run_training(run, config.build(RunConfig, tiny_mapping(*SPARSE, *HOST)))
    same(run, on_devices)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["host", "disk"])
def test_users_and_inputs_may_lie_elsewhere_too(
        tiny_mapping: Mapping, tmp_path: Path, placement: str) -> None:
    lines = ("table.tied=false", "table.update=sparse", "objective.kind=bce", "objective.count=2",
             "train.rows=2", "data.length=5", "train.steps=8", "train.evaluate_every=1")
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    run_training(run, config.build(RunConfig, tiny_mapping(*lines)))
    run_training(other, config.build(RunConfig, tiny_mapping(
        *lines, f"table.placement={placement}", "table.cache=50")))
    same(other, run)


REFUSED = {
    "a dense table": (("table.update=dense",), "the table trains dense, and a step has the "
                                               "gradient of all of its rows"),
    "a small cache": (("table.cache=20",), r"table.cache = 20 is 20 rows a shard, and a step may "
                                           r"read 28 of one shard; expected at least 28"),
    "an average": (("train.ema=0.9",), "train.ema would touch every row in every step"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(
        tiny_mapping: Mapping, tmp_path: Path, what: str) -> None:
    lines, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        run_training(Run(tmp_path / "run"), config.build(
            RunConfig, tiny_mapping(*SPARSE, *HOST, *lines)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_mined_negatives_are_refused(tiny_mapping: Mapping, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective 'hard_negatives' searches all rows, so the ids"
                                         r" of a step are not known ahead; expected 'device'"):
        run_training(Run(tmp_path / "run"), config.build(RunConfig, tiny_mapping(
            "objective.kind=hard_negatives", "objective.uniform=8", "table.update=sparse", *HOST)))


STREAMED = (*SPARSE[3:], "objective.kind=next_item", "table.update=streamed", "table.part=500")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_full_softmax_goes_from_the_host_to_the_disk_and_to_the_devices(
        tiny_mapping: Mapping, tmp_path: Path, tied: bool) -> None:
    """With the bits of the run on the devices, stops between, validations and checkpoints."""
    run, other, said = Run(tmp_path / "run"), Run(tmp_path / "other"), StopAfter(8)
    lines = (*STREAMED, f"table.tied={str(tied).lower()}")
    run_training(other, config.build(RunConfig, tiny_mapping(*lines)))
    with pytest.raises(Stopped):
        run_training(run, config.build(RunConfig, tiny_mapping(
            *lines, "table.placement=host")), said)
    assert any("they pass by in parts, twice a step" in line for line in said.lines)
    assert tied != any("rows of table 'inputs': on the host" in line for line in said.lines)
    with pytest.raises(Stopped):
        run_training(run, config.build(RunConfig, tiny_mapping(
            *lines, "table.placement=disk", "train.lookahead=0")), StopAfter(6))
    run_training(run, config.build(RunConfig, tiny_mapping(*lines, "table.placement=disk")))
    same(run, other)
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(
        path.name for path in other.folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("lines", [
    (*STREAMED, "table.placement=disk"), (*STREAMED, "table.placement=host", "table.tied=false"),
    (*SPARSE, "table.tied=false", "table.placement=host", "table.cache=0.9")])
def test_a_model_whose_rows_are_left_on_disk_answers_as_one_that_is_loaded(
        tiny_mapping: Mapping, tmp_path: Path, lines: tuple[str, ...]) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    run_training(run, config.build(RunConfig, tiny_mapping(*lines, "train.steps=6")))
    shutil.copytree(run.folder, other.folder)
    text = other.config_path.read_text()
    other.config_path.write_text(re.sub('placement = "(host|disk)"', 'placement = "device"', text))
    left, there = (api.load(one.folder) for one in (run, other))
    assert left.served.apart and not there.served.apart
    assert api.evaluate(left)["metrics"] == api.evaluate(there)["metrics"]
    users = there.served.dataset.user_ids()
    for user in users[:5]:
        found, expected = (one.recommend(user=user, k=7) for one in (left, there))
        assert [one.item for one in found] == [one.item for one in expected] and len(found) == 7
        np.testing.assert_allclose([one.score for one in found],
                                   [one.score for one in expected], rtol=1e-5, atol=1e-6)
    for what in ("users", "items"):
        vectors = [load_embeddings(api.export(
            one, out=tmp_path / f"{what}{number}", what=what)).vectors  # type: ignore[arg-type]
            for number, one in enumerate((left, there))]
        np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-6)
        assert len(vectors[0]) > 10
    with pytest.raises(InputError, match="needs all rows on the devices, and those of run"):
        api.load(run.folder, cold="content")


NOT_BY = {
    "a cache": (("table.cache=30",), "table.cache = 30 holds rows from one step to the next"),
    "several devices": (("mesh.items=2",), "the rows of a full softmax pass by one device, and the "
                                           "mesh has 2"),
    "a bias": (("bias.strength=1",), r"a bias in the loss \(bias.strength\) lies on the devices"),
    "smoothing": (("objective.label_smoothing=0.1",), "needs the mean row"),
}


@pytest.mark.parametrize("what", NOT_BY)
def test_what_cannot_pass_by_is_refused(
        tiny_mapping: Mapping, tmp_path: Path, what: str) -> None:
    lines, message = NOT_BY[what]
    with pytest.raises(InputError, match=message) as caught:
        run_training(Run(tmp_path / "run"), config.build(RunConfig, tiny_mapping(
            *STREAMED, "table.placement=host", *lines)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_run_that_starts_from_another_is_refused(
        tiny_mapping: Mapping, tmp_path: Path, on_devices: Run) -> None:
    with pytest.raises(InputError, match=r"starts from the rows of another one needs the rows of "
                                         r"table 'items' on the devices"):
        api.train(config.build(RunConfig, tiny_mapping(*SPARSE, *HOST)), run=tmp_path / "run",
                  start_from=on_devices.folder)
