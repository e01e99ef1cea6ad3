"""Everything at once on one run: all commands are answered, and the training ends well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_training_pruning_compacting_and_reading_do_not_disturb_each_other(
        tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "together.py"), "--seconds", "25",
         "--out", str(out)], capture_output=True, text=True, timeout=850, check=False,
        env={**environment, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["violations"] == [] and all(found["answered"].values())
    assert found["removed_by_prune"] > 0 and found["made_full_by_compact"] > 0
