"""What others could have put into the cache is not loaded, and a cache can always be had."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rec_jax.kernels.native import cache as native_cache


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A library in a folder of ours."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    library = folder / "native-x.so"
    built = tmp_path / "built"
    built.write_bytes(b"library")
    native_cache.keep(built, library)
    return library


def planted(library: Path) -> None:
    library.write_bytes(b"another")


def truncated(library: Path) -> None:
    library.write_bytes(b"libr")


def empty(library: Path) -> None:
    library.write_bytes(b"")


def absent(library: Path) -> None:
    library.unlink()


def without_digest(library: Path) -> None:
    library.with_suffix(".sha256").unlink()


def odd_digest(library: Path) -> None:
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe")


def file_for_all(library: Path) -> None:
    library.chmod(0o777)


def digest_for_all(library: Path) -> None:
    library.with_suffix(".sha256").chmod(0o666)


def folder_for_all(library: Path) -> None:
    library.parent.chmod(0o777)


def folder_for_the_group(library: Path) -> None:
    library.parent.chmod(0o770)


def link(library: Path) -> None:
    library.rename(library.with_name("other"))
    library.symlink_to(library.with_name("other"))


def of_another(library: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(library, 12345, 12345)


SPOILED = [planted, truncated, empty, absent, without_digest, odd_digest, file_for_all,
           digest_for_all, folder_for_all, folder_for_the_group, link, of_another]


def test_what_was_kept_is_held(kept: Path) -> None:
    assert native_cache.holds(kept)
    assert kept.read_bytes() == b"library"


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_not_as_it_was_built_is_not_held(kept: Path,
                                                 spoil: Callable[[Path], None]) -> None:
    spoil(kept)
    assert not native_cache.holds(kept)


@pytest.mark.parametrize("spoil", [folder_for_all, folder_for_the_group])
def test_a_folder_that_others_may_write_is_not_written(
        kept: Path, spoil: Callable[[Path], None], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spoil(kept)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = native_cache.writable(kept.parent)
    assert found == tmp_path / f"rec_jax-{os.geteuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert f"others may write {kept.parent}" in caplog.text


def test_a_folder_that_cannot_be_made_has_a_stand_in(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = native_cache.writable(tmp_path / "file" / "cache")
    assert found == tmp_path / f"rec_jax-{os.geteuid()}"
    assert f"{found} is taken in place of {tmp_path / 'file' / 'cache'}" in caplog.text


def test_a_stand_in_that_is_not_ours_is_refused(tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    native_cache.temporary().mkdir()
    native_cache.temporary().chmod(0o777)
    with pytest.raises(OSError, match="others may write"):
        native_cache.writable(native_cache.temporary())


def test_the_folder_is_that_of_the_environment(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REC_JAX_CACHE", raising=False)
    assert native_cache.folder().name == "rec_jax"
    monkeypatch.setenv("REC_JAX_CACHE", str(tmp_path / "own"))
    assert native_cache.folder() == tmp_path / "own"


def test_without_a_home_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REC_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert native_cache.folder() == tmp_path / f"rec_jax-{os.geteuid()}"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (native_cache.locked(tmp_path, 1.0),
          pytest.raises(OSError, match=r"another process has built in .* for 0 seconds"),
          native_cache.locked(tmp_path, 0.1)):
        pass


def test_a_write_leaves_one_file_that_is_ours(tmp_path: Path) -> None:
    native_cache.write(tmp_path / "x", "one")
    native_cache.write(tmp_path / "x", "two")
    assert [(p.name, p.read_text(), p.stat().st_mode & 0o777) for p in tmp_path.iterdir()] == [
        ("x", "two", 0o600)]
