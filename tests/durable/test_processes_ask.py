"""Two processes on loopback answer as one device does, and each reads its own part of the table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from asked import TOTAL, save, settings, write_dataset

from rec_jax import api
from rec_jax.inference.export import load_embeddings

SCRIPT = Path(__file__).with_name("asking_processes.py")
WIDE = 128  # a table of its own file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    return save(settings(write_dataset(folder), table={"dim": WIDE, "tied": False}),
                folder / "run")


def address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def started(command: list[str], devices: int) -> subprocess.Popen[str]:
    flags = (f"--xla_force_host_platform_device_count={devices} "
             "--xla_backend_optimization_level=0 "
             "--xla_cpu_collective_call_terminate_timeout_seconds=300")
    return subprocess.Popen(
        [sys.executable, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        return [(process.wait(timeout=500), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_answer_as_one_device(run: Path, tmp_path: Path) -> None:
    where = address()
    for code, _, errors in finish([started(
            [str(SCRIPT), str(run), str(tmp_path), where, str(index)], 4) for index in range(2)]):
        assert code == 0, errors[-3000:]
    first, second = (json.loads((tmp_path / f"answers{index}.json").read_text())
                     for index in range(2))
    alone = api.load(run, mesh="1x1")
    assert first["meshes"] == second["meshes"] == [[2, 4], [1, 8]]
    for part in (first, second):
        assert part["evaluated"] == [api.evaluate(alone)] * 2
        expected = api.recommend(alone, user="u5", k=120)
        for found in part["recommended"]:
            assert [item for item, _ in found] == [entry.item for entry in expected]
            np.testing.assert_allclose([score for _, score in found],
                                       [entry.score for entry in expected], rtol=1e-5, atol=1e-6)
    # On 1x8 a process has four of eight shards.
    assert first["read"] == [[0, TOTAL // 2]] and second["read"] == [[TOTAL // 2, TOTAL]]
    for what in ("users", "inputs", "items"):
        found = load_embeddings(tmp_path / what)
        other = load_embeddings(api.export(alone, out=tmp_path / f"{what} alone",
                                           what=what))  # type: ignore[arg-type]
        assert found.about == other.about and found.ids.equals(other.ids)
        np.testing.assert_allclose(found.vectors, other.vectors, rtol=1e-5, atol=1e-6)


def test_one_process_prints_and_all_are_refused_together(run: Path, tmp_path: Path) -> None:
    def both(*arguments: str) -> list[tuple[int, str, str]]:
        where = address()
        return finish([started(["-m", "rec_jax.cli.app", *arguments, "--coordinator", where,
                                "--processes", "2", "--process", str(index)], 2)
                       for index in range(2)])

    told = "the run's mesh 2x4 has 8 devices, and here are 4 devices in 2 processes (cpu)"
    first, second = both("evaluate", str(run), "--json")
    assert first[0] == second[0] == 0, (first, second)
    assert json.loads(first[1]) == api.evaluate(run, mesh="1x1") and not second[1]
    assert f"{told}: the model is on mesh 1x4, with 192 of 768 rows a device" in first[2]
    assert told not in second[2]

    first, second = both("recommend", str(run), "--user", "u5", "--mesh", "2x2", "--json")
    assert first[0] == second[0] == 0, (first, second)
    expected = [entry.item for entry in api.recommend(run, user="u5", mesh="1x1")]
    assert [entry["item"] for entry in json.loads(first[1])["recommendations"]] == expected
    assert not second[1] and told not in first[2]

    out = tmp_path / "there"
    out.mkdir()
    for line in (("export", str(run), "--what", "users", "--out", str(out)),
                 ("evaluate", str(run), "--mesh", "1x2"),  # a process would have no part
                 ("recommend", str(run), "--user", "nobody")):
        for code, printed, errors in both(*line):
            assert code == 2 and not printed, errors
            assert [text for text in errors.splitlines() if text.startswith("rec-jax: ")]
    assert not list(out.iterdir())
