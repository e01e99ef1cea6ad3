"""A folder has one writer, and what a reader holds is not removed."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from rec_jax import locks
from rec_jax.errors import InputError


def _hold(folder: str, ready: multiprocessing.synchronize.Event) -> None:
    with locks.locked(folder):
        ready.set()
        multiprocessing.Event().wait(60)


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    other = spawn.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="another process works in"), \
            locks.locked(tmp_path / "run"):
        pass
    other.kill()
    other.join()
    with locks.locked(tmp_path / "run"):
        pass


def test_whether_a_folder_is_locked_is_found_out_without_a_trace(tmp_path: Path) -> None:
    assert not locks.is_locked(tmp_path) and os.listdir(tmp_path) == []
    with locks.locked(tmp_path):
        assert locks.is_locked(tmp_path)
    assert not locks.is_locked(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"),
                                   NotImplementedError("FileSystem does not support flock")])
def test_a_place_without_locks_is_one_line(tmp_path: Path, error: Exception,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(InputError, match=r"cannot be locked .*(locks available|support flock)"), \
            locks.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be locked"), locks.locked(tmp_path / "file" / "a"):
        pass


def test_a_pin_keeps_removers_away_until_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "seal"
    path.write_text("x")
    first, second = locks.Pin(path), locks.Pin(path)
    assert first.is_of(path)
    first.close()
    first.close()
    with locks.unpinned(path) as free:
        assert not free
    del second
    with locks.unpinned(path) as free:
        assert free
    path.rename(tmp_path / "away")
    path.write_text("another")
    pin = locks.Pin(tmp_path / "away")
    assert pin.is_of(tmp_path / "away") and not pin.is_of(path)
    assert not locks.Pin(tmp_path / "missing").is_of(tmp_path / "missing")
