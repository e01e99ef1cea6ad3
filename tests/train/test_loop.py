"""A run that was stopped and resumed is the run that was left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import StopAfter, Stopped

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError, TrainingError
from rec_jax.run import Run, RunConfig
from rec_jax.train import saving
from rec_jax.train.log import keep_until, read_metrics
from rec_jax.train.loop import _Window, run_training
from rec_jax.train.step import StepMetrics

Mapping = Callable[..., dict[str, Any]]
CLOCKS = ("seconds", "positions_per_second", "sequences_per_second")

# Micro-batches, an average, dropout, early stopping, and checkpoints which no other event
# falls together with.
EVERYTHING = ("train.accumulate=2", "train.ema=0.8", "train.patience=2", "encoder.dropout=0.3",
              "train.checkpoint_every=3", "train.steps=80", "train.evaluate_every=1",
              "optimizer.rate=0.1")


def start(mapping: dict[str, Any], folder: Path) -> tuple[Run, RunConfig]:
    settings = config.build(RunConfig, mapping)
    run = Run(folder)
    run.create(settings)
    return run, settings


def arrays(run: Run) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by item and path."""
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return {name + path: source.read(0, source.shape[0] if source.shape else 1)
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


def figures(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS}
            for line in read_metrics(run.metrics_path)]


def without_clock(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items()
            if name not in ("train_seconds", "start_seconds")}


def assert_same_run(one: Run, other: Run) -> None:
    left, right = arrays(one), arrays(other)
    assert left.keys() == right.keys() and len(left) > 20
    for name, array in left.items():
        assert array.tobytes() == right[name].tobytes(), name
    assert figures(one) == figures(other)


@pytest.fixture(scope="module")
def left_alone(tiny_mapping: Mapping,
               tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run, settings = start(tiny_mapping(*EVERYTHING), tmp_path_factory.mktemp("alone") / "run")
    return run, run_training(run, settings)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(13,), (7, 1, 6, 5)], ids=["once", "four times"])
def test_a_stopped_and_resumed_run_repeats_every_bit(
        tiny_mapping: Mapping, tmp_path: Path, left_alone: tuple[Run, dict[str, Any]],
        stops: tuple[int, ...]) -> None:
    expected_run, expected = left_alone
    run, settings = start(tiny_mapping(*EVERYTHING), tmp_path / "run")
    for steps in stops:
        with pytest.raises(Stopped):
            run_training(run, settings, StopAfter(steps))
    found = run_training(run, settings)
    assert without_clock(found) == without_clock(expected)
    assert_same_run(run, expected_run)


def test_early_stopping_stops_after_its_patience(
        left_alone: tuple[Run, dict[str, Any]]) -> None:
    run, summary = left_alone
    valid = [line for line in read_metrics(run.metrics_path) if line["kind"] == "valid"]
    assert summary["steps"] < 80
    assert valid[-1]["step"] == summary["steps"]
    best = max(valid, key=lambda line: line["ndcg@10"])
    assert summary["best_step"] == best["step"] and summary["best"] == best["ndcg@10"]
    assert len([line for line in valid if line["step"] > best["step"]]) == 2
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.best() == summary["best_step"]


def test_a_finished_run_that_is_resumed_does_nothing(
        left_alone: tuple[Run, dict[str, Any]]) -> None:
    run, expected = left_alone
    before = figures(run)
    found = run_training(run, run.config(), StopAfter(1))  # the first step would raise
    assert without_clock(found) == without_clock(expected)
    assert figures(run) == before


@pytest.mark.slow
def test_no_step_stands_twice_in_the_metrics_of_a_resumed_run(
        tiny_mapping: Mapping, tmp_path: Path) -> None:
    run, settings = start(tiny_mapping("train.steps=12"), tmp_path / "run")
    with pytest.raises(Stopped):
        run_training(run, settings, StopAfter(11))  # past the log line of step 10, back to 8
    assert [line["step"] for line in read_metrics(run.metrics_path)] == [5, 8, 8, 10]
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    run_training(run, settings)
    assert [(line["kind"], line["step"]) for line in read_metrics(run.metrics_path)] == [
        ("train", 5), ("train", 8), ("valid", 8), ("train", 10), ("train", 12), ("valid", 12)]
    for text in run.metrics_path.read_text().splitlines():
        json.loads(text)


def test_the_loss_falls_and_is_logged_with_its_rates(tiny_run: Path) -> None:
    train = [line for line in read_metrics(tiny_run / "metrics.jsonl") if line["kind"] == "train"]
    losses = [line["loss"] for line in train]
    assert losses[-1] < 0.7 * losses[0] and losses[0] == pytest.approx(np.log(50), rel=0.1)
    for name in ("positions_per_second", "sequences_per_second", "gradient_norm", "epoch"):
        assert all(line[name] > 0 for line in train), name
    assert train[-1]["positions_per_second"] > train[-1]["sequences_per_second"]
    assert list((tiny_run / "tensorboard").iterdir())


def test_the_loss_of_a_line_is_the_mean_over_its_positions_and_not_over_its_steps() -> None:
    window = _Window()
    for loss, count, norm in ((2.0, 30.0, 1.0), (6.0, 10.0, 4.0), (0.0, 0.0, 1.0)):
        window.add(StepMetrics(*(np.array(value) for value in (loss, count, norm, 1, count))), 5)
    assert window.close() == {"loss": 3.0, "gradient_norm": 2.0, "positions": 40.0,
                              "sequences": 15.0, "bad_ids": 3.0}


def test_a_line_of_steps_without_a_target_has_the_loss_0() -> None:
    window = _Window()
    window.add(StepMetrics(*(np.array(0.0) for _ in range(5))), 1)
    assert window.close()["loss"] == 0.0

@pytest.mark.parametrize("every", [1, 2])
def test_a_diverging_run_raises_and_saves_no_broken_weights(
        tiny_mapping: Mapping, tmp_path: Path, every: int) -> None:
    run, settings = start(tiny_mapping("optimizer.rate=1e15", "optimizer.warmup=0",
                                       f"train.checkpoint_every={every}"), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"the (loss|gradient norm) is (nan|inf) at") as caught:
        run_training(run, settings)
    assert "\n" not in str(caught.value)
    if every == 1:  # the first update is finite, and huge
        assert all(np.isfinite(array).all() for array in arrays(run).values())


def test_another_dataset_is_refused(tiny_mapping: Mapping, tmp_path: Path,
                                    other_dataset: Path) -> None:
    run, settings = start(tiny_mapping("train.steps=5", "train.checkpoint_every=2"),
                          tmp_path / "run")
    with pytest.raises(Stopped):
        run_training(run, settings, StopAfter(3))
    moved = config.build(RunConfig, tiny_mapping("train.steps=5", f"data.path={other_dataset}"))
    with pytest.raises(InputError, match=r"content hash \w+, but the run was trained on \w+"):
        run_training(run, moved)


@pytest.fixture(scope="module")
def other_dataset(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset, its last user's last interaction with another item."""
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import Columns, PrepareConfig

    folder = tmp_path_factory.mktemp("other")
    lines = tiny_csv.read_text().splitlines()
    user, item, time = lines[-1].split(",")
    lines[-1] = f"{user},{'0001' if item != '0001' else '0002'},{time}"
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "a.csv"), out=str(folder / "dataset"),
                          columns=Columns(time="time")))
    return folder / "dataset"


def test_resume_without_a_config_uses_the_runs_own(tiny_mapping: Mapping,
                                                   tmp_path: Path) -> None:
    settings = config.build(RunConfig, tiny_mapping("train.steps=4", "train.patience=none"))
    first = api.train(settings, run=tmp_path / "run")
    again = api.train(resume=tmp_path / "run")
    assert without_clock(first) == without_clock(again)
    assert api.train(settings, resume=tmp_path / "run")["steps"] == 4


def test_resume_with_a_changed_config_names_the_change(tiny_mapping: Mapping,
                                                       tiny_run: Path) -> None:
    changed = config.build(RunConfig, tiny_mapping("optimizer.rate=0.5"))
    with pytest.raises(InputError, match=r"optimizer.rate: 0.01 -> 0.5"):
        api.train(changed, resume=tiny_run)


def test_lines_past_a_step_are_dropped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "half a li")
    keep_until(path, 2)
    assert path.read_text() == "".join(json.dumps(line) + "\n" for line in lines[:2])
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """The batches' thread ends with the run, however that ends."""
    import threading

    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_what_the_config_says_of_checkpoints_is_what_they_do(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Opened(Exception):
        pass

    def opened(folder: Path, **given: Any) -> None:
        asked.update(given, folder=folder)
        raise Opened

    monkeypatch.setattr(saving, "Checkpoints", opened)
    run, settings = start(tiny_mapping("checkpoint.keep=7", "checkpoint.keep_every=3",
                                       "checkpoint.copy_mib=5", "checkpoint.growth_mib=2"),
                          tmp_path / "run")
    with pytest.raises(Opened):
        run_training(run, settings)
    assert asked == {"folder": run.checkpoints, "keep": 7, "keep_every": 3, "moving": 1.0,
                     "copy_bytes": 5 * 2**20, "growth_bytes": 2 * 2**20}
