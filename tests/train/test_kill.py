"""Kill -9 at any moment: the resumed run ends with the bits of one that was left alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tomli_w

from rec_jax.train.log import read_metrics

KILLS = 10
STEPS = 120


def train(*arguments: str, cache: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                   "JAX_COMPILATION_CACHE_DIR": str(cache),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "rec_jax.cli.app", "train", *arguments],
                                env=environment, stdout=file, stderr=file)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the process ended well."""
    assert process.wait(timeout=300) == 0, log.read_text()[-3000:]


def bits(run: Path) -> dict[str, bytes]:
    """Every array of the state at the end, by path."""
    from rec_jax.checkpoint import Checkpoints
    from rec_jax.run import Run
    from rec_jax.train.build import build
    from rec_jax.train.state import to_items

    like = to_items(build(Run(run).config()).state)
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step == STEPS
        found = checkpoints.restore(step, like)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
            for path, leaf in jax.tree.leaves_with_path(found)}


def reached(run: Path) -> int:
    """The last step that the run's log names."""
    if not (run / "metrics.jsonl").exists():
        return 0
    return max((line["step"] for line in read_metrics(run / "metrics.jsonl")), default=0)


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int, delay: float) -> bool:
    """Kill `process` some moments after its log passed `step`; False if it ended before."""
    while reached(run) < step:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


@pytest.mark.slow
def test_ten_kills_change_no_bit(tiny_mapping: Callable[..., dict[str, Any]],
                                 tmp_path: Path) -> None:
    config, cache, log = tmp_path / "a.toml", tmp_path / "cache", tmp_path / "log"
    config.write_text(tomli_w.dumps(tiny_mapping(
        f"train.steps={STEPS}", "train.checkpoint_every=3", "train.log_every=1",
        "train.ema=0.9", "train.evaluate_every=5", "train.accumulate=2")))
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(train(str(config), "--run", str(alone), cache=cache, log=log), log)

    # Moments: one while the interpreter starts, the others after random steps, with a delay
    # that falls into a step, a save, a validation or what lies between them.
    draw = random.Random(0)
    moments = [(0, draw.uniform(0.2, 1.5)), *((step, draw.uniform(0.0, 0.08)) for step in sorted(
        draw.sample(range(1, STEPS - 15), KILLS - 1)))]
    hits = 0
    for step, delay in moments:
        started = (killed / "config.toml").exists()
        arguments = ("--resume", str(killed)) if started else (str(config), "--run", str(killed))
        process = train(*arguments, cache=cache, log=log)
        hits += kill_after(process, killed, step, delay)
    assert hits == KILLS, f"only {hits} of {KILLS} kills met a running process"
    finish(train("--resume", str(killed), cache=cache, log=log), log)

    expected, found = bits(alone), bits(killed)
    assert expected.keys() == found.keys() and len(expected) > 20
    assert [path for path in expected if expected[path] != found[path]] == []
    lines = [line.split('"seconds"')[0] for line in
             (killed / "metrics.jsonl").read_text().splitlines()]
    assert lines == [line.split('"seconds"')[0] for line in
                     (alone / "metrics.jsonl").read_text().splitlines()]
