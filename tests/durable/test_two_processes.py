"""What one process saved, two restore and save again, and one restores that: equal bits."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rec_jax.checkpoint import Checkpoints
from rec_jax.mesh import MeshConfig, make_mesh, replicated, row_sharding

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
def test_two_processes_share_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")  # the script sets its own; this keeps ours
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    values = script.values()
    with Checkpoints(tmp_path / "in") as checkpoints:
        mesh = make_mesh(MeshConfig(1, 4))
        checkpoints.save(1, {"state": {name: jax.device_put(
            value, row_sharding(mesh) if value.shape[:1] == (script.ROWS,) else replicated(mesh))
            for name, value in values.items()}}, {})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    processes = [subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), address, str(index)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for index in range(2)]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()
    for name in (f"out{2**30}", "out0"):
        with Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            like = {"state": {key: jax.ShapeDtypeStruct(value.shape, value.dtype)
                              for key, value in values.items()}}
            restored = checkpoints.restore(2, like)["state"]
            for key, value in values.items():
                assert np.asarray(restored[key]).tobytes() == value.tobytes(), key
