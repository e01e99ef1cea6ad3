"""A run has one writer: a second one is refused in one line, and changes nothing."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rec_jax import api, config, locks
from rec_jax.errors import InputError
from rec_jax.run import Run, RunConfig
from rec_jax.train import loop

Mapping = Callable[..., dict[str, Any]]

HOLDER = """
import os, sys, time
import numpy as np
from rec_jax import locks
from rec_jax.checkpoint.snapshot import take_snapshot
with locks.locked(sys.argv[1]):
    state = np.ones(1 << 20)
    saver = take_snapshot()
    print(saver.pid, flush=True)
    saver.write(sys.argv[2], state.ctypes.data, state.nbytes)  # nobody empties that pipe: it hangs
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.run.END_SECONDS", 0.1)


@pytest.fixture
def begun(tiny_mapping: Mapping, tmp_path: Path) -> Run:
    """A run that has begun, whose log is further than its checkpoints."""
    run = Run(tmp_path / "run")
    run.create(config.build(RunConfig, tiny_mapping()))
    run.metrics_path.write_text('{"kind": "train", "step": 7}\n{"kind": "tra')
    (run.folder / ".lock").touch()  # as a killed training leaves it
    return run


@pytest.fixture
def busy(begun: Run) -> Iterator[Run]:
    with begun.locked():
        yield begun


def test_a_second_resume_is_refused_before_anything_is_read_or_written(
        busy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "build", lambda _: pytest.fail("a table was made"))
    before = contents(busy.folder)
    for given in ({"resume": busy.folder}, {"config": busy.config(), "run": busy.folder,
                                            "resume": "auto"}):
        with pytest.raises(InputError, match=f"another process works in {busy.folder}") as caught:
            api.train(**given)
        assert "\n" not in str(caught.value)
    assert contents(busy.folder) == before


def test_a_second_start_of_a_new_run_is_refused(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "build", lambda _: None)
    with Run(tmp_path / "run").locked(), pytest.raises(InputError, match="another process works"):
        api.train(config.build(RunConfig, tiny_mapping()), run=tmp_path / "run")
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_run_that_another_process_began_meanwhile_is_not_taken_over(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    theirs = config.build(RunConfig, tiny_mapping("seed=8"))

    monkeypatch.setattr(loop, "build", lambda _: run.create(theirs))
    with pytest.raises(InputError, match="holds a run already"):
        api.train(config.build(RunConfig, tiny_mapping()), run=run.folder)
    assert run.config() == theirs and not run.checkpoints.exists()


def test_a_config_that_fits_nothing_leaves_no_folder_and_no_lock(
        tiny_mapping: Mapping, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        api.train(config.build(RunConfig, tiny_mapping("data.path='/none/such'")),
                  run=tmp_path / "runs" / "run")
    assert os.listdir(tmp_path) == []


def test_a_training_that_ends_in_any_way_frees_the_run(
        begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        assert locks.is_locked(begun.folder)
        raise RuntimeError("broken")

    monkeypatch.setattr(loop, "_train", broken)
    monkeypatch.setattr(loop, "build", lambda _: None)
    with pytest.raises(RuntimeError):
        api.train(resume=begun.folder)
    assert not locks.is_locked(begun.folder)


def test_a_killed_training_frees_the_run_though_its_saver_still_hangs(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    training = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run"), str(pipe)],
                                stdout=subprocess.PIPE, env={**os.environ, "XLA_FLAGS": ""})
    try:
        assert training.stdout is not None
        saver = int(training.stdout.readline())
        assert locks.is_locked(tmp_path / "run")
        assert select.select([reading], [], [], 60)[0], "nothing was written"
        training.kill()
        training.wait()
        assert is_running(saver)
        with locks.locked(tmp_path / "run"):
            pass
    finally:
        training.kill()
        training.communicate()
        os.close(reading)  # its write fails, it finds no parent, and ends
    for _ in range(500):
        if not is_running(saver):
            break
        time.sleep(0.02)
    assert not is_running(saver)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_readers_of_a_run_need_no_lock_and_leave_none(begun: Run) -> None:
    (begun.folder / ".lock").unlink()
    begun.checkpoints.mkdir()
    before = contents(begun.folder)
    for read in (api.evaluate, lambda run: api.recommend(run, user="u3")):
        with pytest.raises(InputError, match="has no checkpoint yet"):
            read(begun.folder)
    assert contents(begun.folder) == before


@pytest.mark.slow
def test_a_refusal_ends_all_processes_of_a_training(busy: Run) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    processes = [subprocess.Popen(
        [sys.executable, "-m", "rec_jax.cli.app", "train", "--resume", str(busy.folder), "--json",
         "--set", "mesh.data=2", "--coordinator", address, "--processes", "2", "--process",
         str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}) for index in range(2)]
    try:
        for index, process in enumerate(processes):
            _, said = process.communicate(timeout=240)
            assert process.returncode == 2, said[-3000:]
            line = said.strip().splitlines()[-1]
            assert line.startswith("rec-jax: ") and "another process works in" in line
            assert ("process 0 of the run was refused" in line) == (index == 1)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
