"""Files and folders are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from rec_jax import files, locks
from rec_jax.errors import InputError


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_replaced_at_once_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "name.txt"
    files.write_atomic(path, "old")
    with pytest.raises(RuntimeError), files.atomic_writer(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    files.write_atomic(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["name.txt"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path("/dev/name"), Path("/dev/../dev/null")):
        with pytest.raises(InputError, match=r"is a device, a pipe or a socket; expected the name"):
            files.write_atomic(path, "new")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    assert pipe.is_fifo() and Path("/dev/null").is_char_device()


def test_a_file_beside_it_with_a_temporary_looking_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "name.txt.tmp").write_text("somebody's")
    (tmp_path / "out.tmp").mkdir()
    files.write_atomic(tmp_path / "name.txt", "ours")
    with files.atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "name.txt.tmp").read_text() == "somebody's"
    assert sorted(os.listdir(tmp_path)) == ["name.txt", "name.txt.tmp", "out", "out.tmp"]


def test_a_folder_appears_whole_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), files.atomic_folder(out) as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.atomic_folder(out) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(InputError, match="exists"), files.atomic_folder(out):
        pass


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_exchanged_for_another(tmp_path: Path, exchanges: bool,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    out = tmp_path / "out"
    for content in ("old", "new"):
        with files.atomic_folder(out, replace=True) as folder:
            (folder / content).write_text(content)
    assert os.listdir(out) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_new_files_have_the_rights_that_the_process_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.write_atomic(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_has_no_room_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with pytest.raises(OSError) as caught, largest_file(100), files.atomic_writer(out) as file:
        file.write(bytes(1000))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(out))
    with pytest.raises(OSError) as caught, largest_file(100), files.atomic_folder(out) as folder:
        (folder / "a").write_bytes(bytes(1000))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(out))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [
    pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)"),
    ValueError("RESOURCE_EXHAUSTED: Failed to write 11904 bytes [os_error_code='28']"),
    OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left")])
def test_the_words_of_libraries_for_a_full_disk_are_understood(tmp_path: Path,
                                                               error: Exception) -> None:
    with pytest.raises(OSError) as caught, files.atomic_folder(tmp_path / "out"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, files.atomic_folder(tmp_path / "out"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


def _make(out: str, ready: multiprocessing.synchronize.Event) -> None:
    with files.atomic_folder(out):
        ready.set()
        multiprocessing.Event().wait(60)


def test_a_folder_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    other = spawn.Process(target=_make, args=(str(tmp_path / "out"), ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="another process makes"), \
            files.atomic_folder(tmp_path / "out"):
        pass
    with files.atomic_folder(tmp_path / "beside"):
        pass
    (tmp_path / ".out.mine.tmp").mkdir()
    other.kill()
    other.join()
    assert len(os.listdir(tmp_path)) == 4  # the lock and the temporary of the dead one, too
    with files.atomic_folder(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".out.mine.tmp", "beside", "out"]


def test_a_file_with_the_name_of_the_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("somebody's")
    with files.atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.lock").read_text() == "somebody's"


def test_a_folder_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="exists"), files.atomic_folder(out) as folder:
        (folder / "a").write_text("ours")
        out.mkdir()
        (out / "a").write_text("somebody's")
    assert (out / "a").read_text() == "somebody's"


def test_what_may_be_replaced_is_asked_again_before_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def check(folder: Path) -> None:
        if os.listdir(folder):
            raise InputError("not empty")

    with pytest.raises(InputError, match="not empty"), \
            files.atomic_folder(out, replace=True, check=check):
        (out / "note").write_text("somebody's")
    assert (out / "note").read_text() == "somebody's"
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with files.atomic_folder(tmp_path / "link", replace=True) as folder:
        (folder / "new").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new"]


@pytest.mark.parametrize(("environment", "expected"), [
    ({"REC_JAX_CACHE": "/a"}, "/a"), ({"XDG_CACHE_HOME": "/b"}, "/b/rec_jax"),
    ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/rec_jax"),
    ({"HOME": "/h"}, "/h/.cache/rec_jax"), ({"HOME": ""}, None)])
def test_the_cache_folder_is_the_users_or_none(
        environment: dict[str, str], expected: str | None,
        monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REC_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert files.cache_folder() == (None if expected is None else Path(expected))


@pytest.mark.parametrize("name", ["a\0b", "a\udcffb"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for make in (files.atomic_folder, files.atomic_writer, locks.locked):
        with pytest.raises(InputError, match="is no name"), make(path):
            pass
    assert not list(tmp_path.iterdir())
