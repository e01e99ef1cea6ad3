"""Files that are whole or absent, and folders with one writer.

Everything that this package writes for others to read goes through here: a file or folder is
made under a temporary name beside its place, flushed to the disk, and then takes its name. What
has no such name yet belongs to nobody but its maker, so only the maker deletes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from rec_jax.errors import InputError

LOCK = ".lock"
"""Name of the lock file in a folder that has one writer."""
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100
_TRIES, _TRY_SECONDS = 50, 0.02


def flush(path: Path | str) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that takes the name `path` when the block ends; after an error it vanishes.

    Missing folders on the way are made. Another file of that name is replaced at once.

    Raises:
      OSError: as the system says; nothing stands under `path` that did not stand there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        os.chmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file at once; see `writing`."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(out: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends.

    After an error it vanishes. Its files are flushed before it takes the name.

    replace: a folder of that name is exchanged for the new one in one step, and then deleted;
      the caller has made sure that it may be. Where the system cannot exchange two folders,
      `out` is absent for a moment.

    Raises:
      InputError: `out` exists, and is not to be replaced.
      OSError: as the system says; `out` is as it was.
    """
    out = Path(out)
    _check_free(out, replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        flush_tree(temporary)
        _check_free(out, replace)
        _take_name(temporary, out)
        flush(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and `folder` itself."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            flush(path)
    flush(folder)


@contextlib.contextmanager
def locked(folder: Path | str, wait: float = 0.0) -> Iterator[None]:
    """Be the one writer of `folder`, which is made if it is missing.

    The system frees the lock when its process ends, however it ends. The lock file stays.

    wait: seconds to wait for another writer.

    Raises:
      InputError: another process writes there, or no lock can be made there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=wait)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another process works in {folder} (its lock is {folder / LOCK}); "
                         "wait until it ends, or use another folder") from None
    except (OSError, NotImplementedError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        said = getattr(error, "strerror", None) or said
        raise InputError(f"{folder} cannot be locked for one writer ({said}); expected a folder "
                         "that this user may write to, on a file system with locks") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path | str) -> bool:
    """Whether some process is the writer of `folder` now; nothing is written to find out."""
    handle = _open(Path(folder) / LOCK, os.O_RDONLY)
    try:
        return not _take(handle, fcntl.LOCK_SH)
    finally:
        _close(handle)


class Pin:
    """A reader's hold on a file for as long as this object lives; see `unpinned`.

    It needs no right to write. Where the file is missing, or the file system has no locks,
    there is no hold, and nothing is said.
    """

    def __init__(self, path: Path | str) -> None:
        self._handle = _open(path, os.O_RDONLY)
        for _ in range(_TRIES):
            if _take(self._handle, fcntl.LOCK_SH):
                break
            time.sleep(_TRY_SECONDS)  # who removes files looks at each for a moment only

    def is_of(self, path: Path | str) -> bool:
        """Whether `path` leads to the file that is held, and not to another one of its name."""
        try:
            return self._handle >= 0 and os.path.samestat(os.fstat(self._handle), os.stat(path))
        except OSError:
            return False

    def close(self) -> None:
        """Let go; safe to call again."""
        handle, self._handle = self._handle, -1
        _close(handle)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter the names of this module may be gone.
        if self._handle >= 0:
            close(self._handle)


@contextlib.contextmanager
def unpinned(path: Path | str) -> Iterator[bool]:
    """Whether no process has a `Pin` on a file; as long as that is asked, none gets one."""
    handle = _open(path, os.O_RDWR)
    try:
        yield _take(handle, fcntl.LOCK_EX)
    finally:
        _close(handle)


def _open(path: Path | str, access: int) -> int:
    """A handle of a file, or -1; whatever stands there under that name, this does not wait."""
    try:
        return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


def _take(handle: int, kind: int) -> bool:
    """Lock an open file; False where somebody's lock stands in the way of it."""
    try:
        if handle >= 0:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _check_free(out: Path, replace: bool) -> None:
    if not replace and (out.exists() or out.is_symlink()):
        raise InputError(f"{out} exists; expected the name of a new folder")


def _take_name(temporary: Path, out: Path) -> None:
    """Rename a folder; one that stands there already gets the other's name in exchange."""
    if not out.exists():
        os.rename(temporary, out)
    elif not _exchange(temporary, out):
        aside = temporary.with_suffix(".old")
        os.rename(out, aside)
        os.rename(temporary, out)
        os.rename(aside, temporary)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system has no such call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0


def _umask() -> int:
    """The process's mask for new files, which Linux tells without setting it."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
