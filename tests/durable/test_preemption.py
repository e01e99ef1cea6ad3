"""A signal ends the step, saves, and leaves a run that goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from signalled import SignalAfter

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError, Preempted
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.loop import run_training
from rec_jax.train.opening import open_run
from rec_jax.train.preemption import Preemption

SETTINGS = ("train.steps=14", "train.evaluate_every=100", "train.checkpoint_every=5")


def arrays(run: Run) -> dict[str, bytes]:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return {name + path: np.asarray(source.read(0, (source.shape or (1,))[0])).tobytes()
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


def start(mapping: dict[str, Any], folder: Path) -> tuple[Run, RunConfig]:
    return Run(folder), config.build(RunConfig, mapping)


def test_a_run_that_was_asked_to_stop_twice_ends_with_the_same_bits(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    alone, settings = start(tiny_mapping(*SETTINGS), tmp_path / "alone")
    run_training(alone, settings)
    run, _ = start(tiny_mapping(*SETTINGS), tmp_path / "run")
    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 8)):
        before = signal.getsignal(number)
        with pytest.raises(Preempted, match=f"{number.name}: stopped after step {step},"):
            run_training(run, settings, SignalAfter(3, number))
        assert signal.getsignal(number) is before
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            assert checkpoints.latest() == step
    run_training(run, settings)
    assert arrays(run) == arrays(alone)


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = ("import signal, time\nfrom rec_jax.train.preemption import Preemption\n"
            "with Preemption() as asked:\n    signal.raise_signal(signal.SIGTERM)\n"
            "    print(asked.asked(1), flush=True)\n    signal.raise_signal(signal.SIGINT)\n"
            "    print('still there', flush=True)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "XLA_FLAGS": ""}, timeout=120, check=False)
    assert done.stdout == "SIGTERM\n"
    assert done.returncode == 128 + signal.SIGINT
    assert "the last complete checkpoint stands" in done.stderr


def test_without_a_signal_nothing_is_asked() -> None:
    with Preemption() as preemption:
        assert preemption.asked(1) is None


def test_auto_finds_the_newest_run_of_the_config_or_makes_one(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine, other = (config.build(RunConfig, tiny_mapping(*SETTINGS, f"seed={seed}"))
                   for seed in (1, 2))
    fresh, _ = open_run(mine, None, (), "auto")
    assert not fresh.folder.exists() and fresh.folder.parent == Path("runs")
    for number, (name, settings) in enumerate((("a", mine), ("b", mine), ("c", other))):
        run = Run(tmp_path / "runs" / name)
        run.create(settings)
        os.utime(run.config_path, (1000 + number, 1000 + number))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.toml").write_text("[[")
    assert open_run(mine, None, (), "auto")[0].folder == Path("runs/b")
    assert open_run(mine, "new", (), "auto")[0].folder == Path("new")
    assert open_run(mine, "runs/a", (), "auto")[0].folder == Path("runs/a")
    with pytest.raises(InputError, match="another config"):
        open_run(mine, "runs/c", (), "auto")
    with pytest.raises(InputError, match="needs the config"):
        open_run(None, None, (), "auto")


def test_a_training_says_what_it_needs_to_begin(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run, settings = start(tiny_mapping(*SETTINGS), tmp_path / "run")
    run.create(settings)
    with pytest.raises(InputError, match="needs a config, or the run to resume"):
        open_run(None, None, (), None)
    with pytest.raises(InputError, match="keeps its folder"):
        open_run(None, tmp_path / "other", (), run.folder)
    with pytest.raises(InputError, match="overrides need the path"):
        open_run(settings, tmp_path / "other", ["seed=1"], None)
    with pytest.raises(InputError, match="run"):  # somebody's run is in that folder
        open_run(settings, run.folder, (), None)
    assert open_run(settings, tmp_path / "other", (), None)[1] == settings


def test_a_resumed_run_may_change_what_its_numbers_do_not_depend_on(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run, settings = start(tiny_mapping(*SETTINGS), tmp_path / "run")
    run.create(settings)
    lines = ["mesh.items=4", "train.log_every=1", "checkpoint.keep=5", "evaluate.batch=3"]
    _, changed = open_run(None, None, lines, run.folder)
    assert changed.mesh.items == 4 and changed.checkpoint.keep == 5
    with pytest.raises(InputError, match=r"another config \(optimizer.rate: 0.01 -> 0.5\)"):
        open_run(None, None, ["optimizer.rate=0.5"], run.folder)
    _, forced = open_run(None, None, ["optimizer.rate=0.5"], run.folder, force=True)
    assert forced.optimizer.rate == 0.5


def test_a_checkpoint_of_another_config_is_refused_by_name_unless_forced(
        tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run, settings = start(tiny_mapping(*SETTINGS), tmp_path / "run")
    with pytest.raises(Preempted):
        run_training(run, settings, SignalAfter(1, signal.SIGTERM))
    other = config.build(RunConfig, tiny_mapping(*SETTINGS, "optimizer.rate=0.5"))
    with pytest.raises(InputError, match=r"another config \(optimizer.rate: 0.01 -> 0.5\)"):
        run_training(run, other)
    said: list[str] = []

    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    assert run_training(run, other, Told(), force=True)["steps"] == 14
    assert any(line.startswith("forced: ") and "optimizer.rate" in line for line in said)
    assert api.evaluate(run.folder)["step"] == 14  # its config.toml is the forced one now
