"""Kills and damage at random moments, on real processes: nothing is lost, no bit differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_training_that_is_killed_and_damaged_again_and_again_loses_nothing(
        tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--kills", "8", "--seed", "1",
         "--out", str(out)], capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["violations"] == [] and found["kills"] >= 8
    assert found["finished_runs_compared"] >= 1 and found["arrays_compared"] > 20
    assert found["disk_full"]["ran"] or "no right" in found["disk_full"]["why"]
