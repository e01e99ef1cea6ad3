"""Exclusive locks on folders, and shared locks of readers on files (pins).

The system owns the locks: they end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rec_jax.errors import InputError, first_line
from rec_jax.files import check_path

LOCK = ".lock"
"""Name of the lock file in a folder that has one writer."""
_TRIES, _TRY_SECONDS = 50, 0.02


@contextlib.contextmanager
def locked(folder: Path | str, wait: float = 0.0) -> Iterator[None]:
    """Be the one writer of `folder`, which is made if it is missing.

    The system frees the lock when its process ends, however it ends. The lock file stays.

    wait: seconds to wait for another writer.

    Raises:
      InputError: another process writes there, or no lock can be made there.
    """
    import filelock  # here: the help of the command line needs no lock

    folder = check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=wait)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another process works in {folder} (its lock is {folder / LOCK}); "
                         "wait until it ends, or use another folder") from None
    except (OSError, NotImplementedError) as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{folder} cannot be locked for one writer ({cause}); expected a folder "
                         "that this user may write to, on a file system with locks") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path | str) -> bool:
    """Whether some process is the writer of `folder` now; nothing is written to find out."""
    handle = _open(Path(folder) / LOCK, os.O_RDONLY)
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        _close(handle)


class Pin:
    """A reader's shared lock on a file as long as this object lives; see `unpinned`.

    It needs no right to write. Where the file is missing, or the file system has no locks,
    there is no lock and no error.
    """

    def __init__(self, path: Path | str) -> None:
        self._handle = _open(path, os.O_RDONLY)
        for _ in range(_TRIES):
            if _try_lock(self._handle, fcntl.LOCK_SH):
                break
            time.sleep(_TRY_SECONDS)  # a process that removes files locks each for a moment only

    def is_of(self, path: Path | str) -> bool:
        """Whether `path` leads to the pinned file, and not to another one of its name."""
        try:
            return self._handle >= 0 and os.path.samestat(os.fstat(self._handle), os.stat(path))
        except OSError:
            return False

    def close(self) -> None:
        """Release the lock; safe to call again."""
        handle, self._handle = self._handle, -1
        _close(handle)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter the names of this module may be gone.
        if self._handle >= 0:
            close(self._handle)


@contextlib.contextmanager
def unpinned(path: Path | str) -> Iterator[bool]:
    """Whether no process has a `Pin` on a file; none gets one before the block ends."""
    handle = _open(path, os.O_RDWR)
    try:
        yield _try_lock(handle, fcntl.LOCK_EX)
    finally:
        _close(handle)


def _open(path: Path | str, access: int) -> int:
    """A handle of a file, or -1; it never waits, whatever kind of file it is."""
    try:
        return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    """Lock an open file; False where another process has a lock that excludes it."""
    try:
        if handle >= 0:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True
