"""The GPU benchmark script runs from end to end at toy size on any device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_softmax.py"


@pytest.mark.slow
def test_dry_run_checks_and_times_the_portable_backends(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run", "--out", str(out)], capture_output=True,
        text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["dry_run"] is True
    for name in ("reference", "xla"):
        errors = result["errors"][f"{name}|d=32"]
        assert max(errors["loss"], errors["lse"], errors["bias"]) < 1e-5
        assert max(errors["queries"], errors["items"]) < 1e-2  # results are rounded to bf16
        for op in ("loss", "grad", "step"):
            assert result["cells"][f"{name}|{op}|N=64 V=512 d=32"]["milliseconds"] > 0
    assert "milliseconds (share of the roofline)" in done.stdout
