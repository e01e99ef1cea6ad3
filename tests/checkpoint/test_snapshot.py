"""A snapshot writes memory as it was, by a child that leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rec_jax.checkpoint import snapshot
from rec_jax.checkpoint.blocks import read_block
from rec_jax.checkpoint.snapshot import Snapshot, SnapshotLost, take_snapshot

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")

BLOCK = 2**16


def taken() -> Snapshot:
    found = take_snapshot()
    assert found is not None
    return found


@pytest.fixture
def frozen() -> Iterator[tuple[Snapshot, np.ndarray, np.ndarray]]:
    """A snapshot of memory that has changed since, that memory, and what it held."""
    memory = np.random.default_rng(0).integers(0, 256, 8 * BLOCK, np.uint8)
    then, found = memory.copy(), taken()
    memory[:] = 7
    yield found, memory, then
    found.close()


def assert_held(found: Snapshot, memory: np.ndarray, then: np.ndarray, path: Path) -> None:
    """The snapshot writes what `memory` held then."""
    found.write(path, memory.ctypes.data, memory.nbytes)
    rows = np.empty_like(then)
    read_block(path, rows)
    assert rows.tobytes() == then.tobytes()


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_has_the_bytes_of_its_moment(
        frozen: tuple[Snapshot, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    found, memory, then = frozen
    for first in range(0, len(memory), BLOCK):
        assert_held(found, memory[first:first + BLOCK], then[first:first + BLOCK], tmp_path / "b")
        memory[:] = first % 251
    assert memory[0] == 7 * BLOCK % 251  # and this process went on with its own


def test_blocks_of_any_size_and_place_come_whole(
        frozen: tuple[Snapshot, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    found, memory, then = frozen
    first = 0
    for size in (1, 4095, 4097, 10_000, BLOCK):
        assert_held(found, memory[first:first + size], then[first:first + size], tmp_path / "b")
        first += size


def test_what_the_system_says_of_a_file_is_raised(tmp_path: Path) -> None:
    memory, found = np.zeros(100, np.uint8), taken()
    with pytest.raises(FileNotFoundError, match="absent"):
        found.write(tmp_path / "absent" / "b", memory.ctypes.data, 100)
    with pytest.raises(OSError, match="too long"):
        found.write(tmp_path / ("x" * 5000), memory.ctypes.data, 100)
    with pytest.raises(OSError, match="No space"):
        found.write(Path("/dev/full"), memory.ctypes.data, 100)
    assert_held(found, memory, memory, tmp_path / "b")  # and it goes on
    found.close()


def test_closing_leaves_no_process_and_no_open_file() -> None:
    before = open_files()
    found = taken()
    assert not is_gone(found.pid)
    found.close()
    found.close()
    assert is_gone(found.pid) and open_files() == before


def test_a_child_that_was_killed_is_said_to_be_lost(tmp_path: Path) -> None:
    before = open_files()
    memory, found = np.zeros(100, np.uint8), taken()
    os.kill(found.pid, signal.SIGKILL)
    with pytest.raises(SnapshotLost, match="has ended"):
        while True:  # the first ask may be written before it has died
            found.write(tmp_path / "b", memory.ctypes.data, 100)
    found.close()
    assert is_gone(found.pid) and open_files() == before


def test_the_child_hears_no_signal_that_is_meant_for_its_parent(tmp_path: Path) -> None:
    memory, found = np.arange(100, dtype=np.uint8), taken()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(found.pid, number)
    assert_held(found, memory, memory, tmp_path / "b")
    found.close()


def test_the_child_keeps_no_file_of_its_parent_open() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as reads_until_the_end:
        found = taken()
        files = os.listdir(f"/proc/{found.pid}/fd")
        assert reads_until_the_end.stdin is not None
        reads_until_the_end.stdin.close()
        assert reads_until_the_end.wait(10) == 0
    found.close()
    assert len(files) == 2


def test_the_child_ends_with_its_parent() -> None:
    code = ("from rec_jax.checkpoint.snapshot import take_snapshot; import os, signal\n"
            "print(take_snapshot().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=False)
    assert done.returncode == -signal.SIGKILL
    ends = time.monotonic() + 10
    while not is_gone(int(done.stdout)) and time.monotonic() < ends:
        time.sleep(0.01)
    assert is_gone(int(done.stdout))


def test_signals_and_collection_are_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    taken().close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before and gc.isenabled()


def test_there_is_none_where_no_process_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = open_files()
    monkeypatch.setattr(os, "fork", refuse)
    assert take_snapshot() is None and open_files() == before


def test_there_is_none_where_the_child_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "READY_SECONDS", 0.1)
    monkeypatch.setattr(snapshot, "_leave_parent", lambda asks, answers: time.sleep(60))
    before = open_files()
    assert take_snapshot() is None and open_files() == before


def test_there_is_none_but_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert take_snapshot() is None
