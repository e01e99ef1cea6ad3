"""Where what is built and measured on a machine is kept, and who may be trusted with it.

A library that is loaded runs as us. So a folder or file that others own or may write is not
used, and neither is a library whose bytes are not those that were built.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

_LOCK = "native.lock"
MEASURING = "auto.lock"
"""Lock of the one process that measures; the library may be built meanwhile."""
_BUILDING, _WRITING = "building-", "writing-"

log = logging.getLogger("rec_jax.kernels")


def folder() -> Path:
    """`$REC_JAX_CACHE`, else the user's cache folder, e.g. `~/.cache/rec_jax`.

    A user without a home gets a folder of their own among the temporary files.
    """
    if os.environ.get("REC_JAX_CACHE"):
        return Path(os.environ["REC_JAX_CACHE"]).absolute()
    try:
        found = Path(platformdirs.user_cache_dir("rec_jax", appauthor=False))
    except RuntimeError:  # newer ones say that there is no home, older ones answer ~/..
        return temporary()
    return found if found.is_absolute() else temporary()


def temporary() -> Path:
    """What stands in for a cache folder that is missing, not ours, or not to be written."""
    return Path(tempfile.gettempdir()).absolute() / f"rec_jax-{os.geteuid()}"


def writable(wanted: Path) -> Path:
    """`wanted`, made if it is missing, or `temporary()` and a line that says why.

    Raises:
      OSError: neither can be had.
    """
    try:
        _claim(wanted)
    except OSError as error:
        other = temporary()
        if other == wanted:
            raise
        _claim(other)
        log.warning("%s is taken in place of %s: %s", other, wanted, error.strerror or error)
        return other
    return wanted


def private(folder: Path) -> Path:
    """`folder` inside a cache folder, made if it is missing, where only we may write.

    Raises:
      OSError: it, or the folder around it, is of others or open to them, or cannot be written.
    """
    _claim(folder)
    if reason := distrust(folder.parent):
        raise OSError(reason)
    return folder


def _claim(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if reason := distrust(folder):
        raise OSError(reason)
    with tempfile.TemporaryFile(dir=folder):
        pass


def distrust(path: Path) -> str | None:
    """Why others may have put there what we find, or None."""
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write {path}"
    return None


def holds(library: Path) -> bool:
    """Whether `library` is there, ours, and as it was built."""
    try:
        digest = _digest_of(library)
        return (library.is_file() and not library.is_symlink()
                and not any(distrust(x) for x in (library.parent, library, digest))
                and digest.read_text() == hashlib.sha256(library.read_bytes()).hexdigest())
    except (OSError, ValueError):
        return False


def keep(built: Path, library: Path) -> None:
    """Move what was built to its place, its digest first. One process at a time; see `locked`."""
    write(_digest_of(library), hashlib.sha256(built.read_bytes()).hexdigest())
    built.chmod(0o700)
    built.replace(library)


def write(path: Path, text: str) -> None:
    """Write a file that only we may change, at once."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=_WRITING, delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@contextlib.contextmanager
def locked(folder: Path, wait: float, name: str = _LOCK) -> Iterator[None]:
    """Be the one that builds in `folder`; what a killed one left half-built is removed.

    name: of the lock; who holds another one removes nothing.

    Raises:
      OSError: another process did not end within `wait` seconds.
    """
    lock = filelock.FileLock(folder / name, timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OSError(f"another process has built in {folder} for {wait:.0f} seconds") from None
    try:
        for left in folder.glob(f"{_BUILDING}*") if name == _LOCK else ():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder to build in, beside where the result is to be; removed at the end."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=_BUILDING) as made:
        yield Path(made)


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")
