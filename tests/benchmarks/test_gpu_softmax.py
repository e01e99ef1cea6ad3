"""The GPU benchmark runs from end to end at toy size on any device, and outlives what hangs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_softmax.py"


@pytest.mark.slow
def test_dry_run_checks_and_times_the_portable_backend(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run", "--out", str(out)], capture_output=True,
        text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["dry_run"] is True
    assert all(isinstance(spent, float) for spent in result["stages"].values()), result["stages"]
    for case in ("plain", "bias and padding", "softcap", "negative scale"):
        errors = result["oracle"][f"xla|d=32|{case}"]
        assert max(errors["loss"], errors["lse"], errors.get("bias", 0.0)) < 1e-5
        assert max(errors["queries"], errors["items"]) < 1e-2  # results are rounded to bf16
    for case in ("shard", "sparse"):
        assert max(result["oracle"][f"xla|d=32|{case}"][name] for name in ("items", "bias")) < 1e-5
    for op in ("loss", "grad", "step"):
        assert result["time"][f"xla|N=64 V=512 d=32|{op}"] > 0
    assert "milliseconds (share of the roofline)" in done.stdout


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_softmax")


def stage_script(driver: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path,
                 ending: str) -> None:
    """A stage that finds one thing, and then does `ending`."""
    script = folder / "stage.py"
    script.write_text('print(\'FOUND {"key": "a", "value": 1.5}\', flush=True)\n' + ending)
    monkeypatch.setattr(driver, "STAGE", script)


def test_a_stage_that_hangs_is_killed_and_keeps_what_it_found(
        driver: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A process that ignores a polite end, with a child of its own.
    stage_script(driver, monkeypatch, tmp_path,
                 "import signal, subprocess, time\n"
                 "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                 "subprocess.Popen(['sleep', '600'])\ntime.sleep(600)\n")
    found, problem = driver.run(driver.Stage("time", "x", {}), 5.0)
    assert found == {"a": 1.5}
    assert problem == "killed after 5 s"


def test_a_stage_that_crashes_says_why_and_keeps_what_it_found(
        driver: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage_script(driver, monkeypatch, tmp_path, "raise MemoryError('the ring is full')\n")
    found, problem = driver.run(driver.Stage("time", "x", {}), 60.0)
    assert found == {"a": 1.5}
    assert problem == "exit code 1: MemoryError: the ring is full"


def test_what_answers_most_comes_first(driver: ModuleType) -> None:
    stages = driver.checks([64, 32, 128, 256], seed=1, toy=False)
    assert [(stage.kind, stage.label) for stage in stages[:3]] == [
        ("oracle", "mosaic_gpu|d=64"), ("scale", "mosaic_gpu|d=64"), ("oracle", "mosaic_gpu|d=32")]
    names = [stage.given.get("name") for stage in driver.others([64], seed=1)]
    assert names[:1] == ["cce"] and names.index("torch") < names.index("reference")
