"""Two processes on loopback train the same run as one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

STEPS = 50
SETTINGS = [
    "train.rows=8", f"train.steps={STEPS}", "train.log_every=1", "train.evaluate_every=3",
    "table.dim=16", "data.length=12", "encoder.layers=1", "encoder.heads=2", "encoder.dropout=0.1",
    "optimizer.rate=1e-2", "optimizer.warmup=5",
]
MODES = {
    "dense": [],
    "streamed": ["table.update=streamed"],
    "sparse": ["table.update=sparse", "objective.kind=sampled_softmax", "objective.count=32"],
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(dataset: Path, folder: Path, lines: list[str], devices: int,
          extra: list[str]) -> subprocess.Popen[str]:
    config = folder.parent / "config.toml"
    config.write_text(f'[data]\npath = "{dataset}"\n')
    command = [sys.executable, "-m", "rec_jax.cli.app", "train", str(config), "--run", str(folder),
               "--json", *extra]
    for line in [*SETTINGS, *lines]:
        command += ["--set", line]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def finish(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()


def losses(folder: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in train])


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_with_two_devices_each_give_the_losses_of_one(
        tiny_dataset: Path, tmp_path: Path, mode: str) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    finish([start(tiny_dataset, alone, MODES[mode], 1, [])])
    address = f"127.0.0.1:{free_port()}"
    finish([start(tiny_dataset, together, [*MODES[mode], "mesh.data=2", "mesh.items=2"], 2,
                  ["--coordinator", address, "--processes", "2", "--process", str(index)])
            for index in range(2)])
    expected = losses(alone)
    assert expected[-10:].mean() < expected[:10].mean()
    np.testing.assert_allclose(losses(together), expected, rtol=1e-5)
