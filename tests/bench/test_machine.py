"""`doctor` says what is true of this machine, in words and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from command import Command

import rec_jax as package
from rec_jax.bench import machine
from rec_jax.kernels import auto, measured
from rec_jax.kernels.native import build as native_build

FOLDS = ["softmax", "rank", "attention", "feed_forward"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures that look measured: native is slower at ranks, and wrong in attention."""
    seconds: dict[str, Any] = {fold: {"native": 0.001, "xla": 0.002} for fold in FOLDS}
    seconds["rank"] = {"native": 0.005, "xla": 0.001}
    seconds["attention"] = {"native": "wrong here: off by 1.0e-01", "xla": 0.002}
    monkeypatch.delenv(auto.VARIABLE)
    monkeypatch.setattr(measured, "found", lambda: seconds)
    monkeypatch.setattr(measured, "ready", lambda *_: True)
    monkeypatch.setattr(measured, "begin", lambda: None)
    monkeypatch.setattr(auto, "_measured", lambda: seconds)
    monkeypatch.setattr(auto, "_unusable", lambda: None)
    monkeypatch.setattr(native_build, "problem", lambda: None)
    return seconds


def test_each_backend_has_its_time_or_its_refusal(told: dict[str, Any]) -> None:
    found = package.doctor()
    assert list(found["folds"]) == FOLDS
    assert {fold: row["auto"] for fold, row in found["folds"].items()} == {
        "softmax": "native", "rank": "xla", "attention": "xla", "feed_forward": "native"}
    softmax = found["folds"]["softmax"]["backends"]
    assert softmax["native"] == {"seconds": 0.001, "refused": None}
    assert softmax["xla"] == {"seconds": 0.002, "refused": None}
    assert softmax["mosaic_tpu"]["refused"] and softmax["mosaic_gpu"]["refused"]
    assert found["folds"]["rank"]["backends"]["native"]["refused"].startswith("slower here, 5 ms")
    assert found["folds"]["attention"]["backends"]["native"] == {
        "seconds": None, "refused": "wrong here: off by 1.0e-01"}
    assert found["versions"]["jax"] == jax.__version__ and found["versions"]["rec-jax"]
    assert found["platform"] == "cpu" and len(found["devices"]) == jax.device_count()
    assert set(found["machine"]) >= {"cpu", "isa", "cores", "memory_bytes"}


def test_the_verb_shows_the_same(rec_jax: Command, told: dict[str, Any]) -> None:
    ended = rec_jax("doctor", "--json")
    assert ended.code == 0 and json.loads(ended.out) == json.loads(json.dumps(package.doctor()))
    ended = rec_jax("doctor")
    assert ended.code == 0
    for text in ("This machine", "memory", "slower here", "wrong here", "2.00 ms", jax.__version__):
        assert text in ended.out, text


def test_what_the_environment_decides_is_not_measured(
        told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auto.VARIABLE, "xla")
    monkeypatch.setattr(measured, "found", lambda: pytest.fail("it was measured"))
    found = package.doctor()
    assert all(row["auto"] == "xla" for row in found["folds"].values())
    assert found["folds"]["softmax"]["backends"]["native"] == {
        "seconds": None, "refused": "$REC_JAX_AUTO is xla"}
    assert found["settings"][auto.VARIABLE] == "xla"


def test_a_long_wait_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "ready", lambda *_: False)
    said: list[str] = []
    with machine.telling(said.append):
        pass
    assert len(said) == 1 and "once on this machine" in said[0]


@pytest.mark.parametrize("lines", ["exit 1", "[ $# = 1 ] && exit 0\nexit 1"])
def test_a_broken_compiler_is_no_reason_to_fail(tmp_path: Path, lines: str) -> None:
    """In a process of its own, which has no library yet."""
    compiler = tmp_path / "broken"
    compiler.write_text(f"#!/bin/sh\n{lines}\n")
    compiler.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != auto.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "rec_jax", "doctor", "--json"], capture_output=True, text=True,
        env={**environment, "CXX": str(compiler), "REC_JAX_CACHE": str(tmp_path / "cache"),
             "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for row in found["folds"].values():
        assert row["auto"] == "xla" and "broken" in row["backends"]["native"]["refused"]
