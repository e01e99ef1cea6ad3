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

KILLS = 10
STEPS = 120


def train(*arguments: str, cache: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                   "JAX_COMPILATION_CACHE_DIR": str(cache),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "rec_jax.cli", "train", *arguments],
                                env=environment, stdout=file, stderr=file)


def finish(process: subprocess.Popen[bytes], log: Path) -> float:
    """Seconds until the process ended well."""
    began = time.monotonic()
    assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    return time.monotonic() - began


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


@pytest.mark.slow
def test_ten_kills_change_no_bit(tiny_mapping: Callable[..., dict[str, Any]],
                                 tmp_path: Path) -> None:
    config, cache, log = tmp_path / "a.toml", tmp_path / "cache", tmp_path / "log"
    config.write_text(tomli_w.dumps(tiny_mapping(
        f"train.steps={STEPS}", "train.checkpoint_every=3", "train.ema=0.9",
        "train.evaluate_every=5", "train.accumulate=2")))
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    # Once to fill the cache of compiled programs, once to learn how long a run takes with it.
    finish(train(str(config), "--run", str(tmp_path / "warm"), cache=cache, log=log), log)
    whole = finish(train(str(config), "--run", str(alone), cache=cache, log=log), log)

    draw, hits, seen = random.Random(0), 0, set()
    for _ in range(KILLS):
        started = (killed / "config.toml").exists()
        arguments = ("--resume", str(killed)) if started else (str(config), "--run", str(killed))
        process = train(*arguments, cache=cache, log=log)
        try:
            # Anywhere from the start of the interpreter to beyond the end of a whole run.
            process.wait(timeout=whole * draw.uniform(0.05, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            hits += 1
            process.wait()
        seen.add(len(list((killed / "checkpoints").glob("step_*"))))
    assert hits >= KILLS // 2, f"only {hits} of {KILLS} kills met a running process"
    assert len(seen) > 1, "no kill fell between two saves"
    arguments = (("--resume", str(killed)) if (killed / "config.toml").exists()
                 else (str(config), "--run", str(killed)))
    finish(train(*arguments, cache=cache, log=log), log)

    expected, found = bits(alone), bits(killed)
    assert expected.keys() == found.keys() and len(expected) > 20
    assert [path for path in expected if expected[path] != found[path]] == []
    lines = [line.split('"seconds"')[0] for line in
             (killed / "metrics.jsonl").read_text().splitlines()]
    assert lines == [line.split('"seconds"')[0] for line in
                     (alone / "metrics.jsonl").read_text().splitlines()]
