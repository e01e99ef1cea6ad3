"""Atomic writes: files and folders that are complete or absent.

Everything that this package writes for others to read goes through here: a file or folder is
made under a temporary name beside its place, flushed to the disk, and then renamed. Before it is
renamed it belongs to the process that makes it, so only this process deletes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rec_jax.errors import InputError

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_ERRORS = _DISK_FULL | {errno.EIO, errno.EROFS}
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_ERRNO = re.compile(r"(?:os error |os_error_code='|[Ee]rrno )(\d+)")
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100


def flush(path: Path | str) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_writer(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that takes the name `path` when the block ends; after an error it is deleted.

    Missing folders on the way are made. Another file of that name is replaced at once.

    Raises:
      InputError: `path` is a device, a pipe or a socket, which a file must not replace.
      OSError: as the system says, naming `path`; nothing stands under `path` that did not stand
        there before.
    """
    path = check_path(path)
    _check_file(path)
    with _errors_name(path), _parents(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                os.chmod(temporary, 0o666 & ~_umask())
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write a file at once; see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(out: Path | str, *, replace: bool = False,
               check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends.

    After an error it is deleted. Its files are flushed before it takes the name. While the block
    runs, no other process makes `out`: it has the lock `.NAME.lock` beside it, which is deleted
    afterwards. What a killed process left is removed by the next one that makes `out`.

    replace: a folder of that name is exchanged for the new one in one step, and then deleted;
      the caller has made sure that it may be. Where the system cannot exchange two folders,
      `out` is absent for a moment.
    check: called with `out` at the beginning and again before it takes its name, where something
      stands there; raises InputError where that may not be replaced.

    Raises:
      InputError: `out` exists, and is not to be replaced; or another process makes it.
      OSError: as the system says, naming `out` where its disk is full; `out` is as it was.
    """
    out = check_path(out)
    if replace:
        out = Path(os.path.realpath(out))  # what a link leads to is replaced, not the link
    _check_absent(out, replace, check)
    with _errors_name(out), _parents(out), _only_writer(out) as note_name:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        try:
            note_name(temporary.name)
            os.chmod(temporary, 0o777 & ~_umask())
            yield temporary
            flush_tree(temporary)
            _check_absent(out, replace, check)
            _rename_into_place(temporary, out, replace)
            flush(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and `folder` itself."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            flush(path)
    flush(folder)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, also in the words of a library."""
    return _code(error) in _DISK_FULL


def file_hash(path: Path, kind: str = "sha256") -> str:
    """Hex hash of a file's bytes. kind: as `hashlib` names it, such as "md5"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)
                                   ).hexdigest()


def is_unicode(text: str) -> bool:
    """False for text that Python made of bytes that are no UTF-8, as in a path."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def cache_folder() -> Path | None:
    """The cache folder of this program; None where the user has no such place.

    `$REC_JAX_CACHE`, else `$XDG_CACHE_HOME/rec_jax`, else `~/.cache/rec_jax`. It may be missing.
    """
    if os.environ.get("REC_JAX_CACHE"):
        return Path(os.environ["REC_JAX_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        if os.environ.get("HOME") == "":  # Python takes it for /
            return None
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and the system does not know this user
            return None
    return base / "rec_jax" if base.is_absolute() else None


def check_path(path: Path | str) -> Path:
    """A path that something may be written to; raises InputError for what is no name."""
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is no name of a file or folder: it has a NUL")
    if not is_unicode(str(path)):
        raise InputError(f"{str(path)!r} is no name in UTF-8; expected such a name of what is made")
    return Path(os.path.abspath(path)) if not Path(path).name else Path(path)


def _check_file(path: Path) -> None:
    """Refuse a name that is no file's: who may rename onto /dev/null takes it from all others."""
    try:
        kind = path.stat().st_mode
    except OSError:
        kind = stat.S_IFREG  # nothing, or a link to nothing
    special = not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))
    if special or os.path.realpath(path.parent) == "/dev":  # where /dev/stdout may be a file
        raise InputError(f"{path} is a device, a pipe or a socket; expected the name of a file")


def _check_absent(out: Path, replace: bool, check: Callable[[Path], None] | None = None) -> None:
    if out.exists() or out.is_symlink():
        if not replace:
            raise InputError(f"{out} exists; expected the name of a new folder")
        if check is not None:
            check(out)


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those that were missing are removed again after an error."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR),
                                     str(path)) from None
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else may use it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors of the disk name `path`, and not a temporary name beside it or a library."""
    own = str(path.with_name(f".{path.name}."))
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = _code(error)
        name = str(getattr(error, "filename", None) or "")
        if code is None or not (name.startswith(own) or (not name and code in _DISK_ERRORS)):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _code(error: BaseException) -> int | None:
    """The system's number of an error; libraries tell it in their own types and words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[Callable[[str], None]]:
    """Be the one process that makes `out`; without locks, only the final rename decides.

    Yields a function that writes the name of the temporary folder into the lock file.
    """
    path = out.with_name(f".{out.name}.lock")
    handle, has_lock = _open_lock(path, out)
    ours = False
    try:
        ours = _clear_abandoned(handle, out, has_lock)
        yield lambda name: _write_name(handle, name) if ours else None
    finally:
        if ours:
            path.unlink(missing_ok=True)
        os.close(handle)


def _write_name(handle: int, name: str) -> None:
    os.pwrite(handle, os.fsencode(name), 0)


def _clear_abandoned(handle: int, out: Path, has_lock: bool) -> bool:
    """Remove the temporary folder of a killed process; False if the lock file is not ours."""
    name = os.fsdecode(os.pread(handle, 1000, 0))
    if not name:
        return True
    if not re.fullmatch(re.escape(f".{out.name}.") + r"\w+\.tmp", name):
        return False
    if has_lock and not out.with_name(name).is_symlink():
        shutil.rmtree(out.with_name(name), ignore_errors=True)
    os.ftruncate(handle, 0)
    return True


def _open_lock(path: Path, out: Path) -> tuple[int, bool]:
    """A handle of the lock file, and whether it is locked: some file systems have no locks."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                raise
            raise InputError(f"another process makes {out}; wait until it ends, or use another "
                             "folder") from None
        # The process that had it before may have removed the name that this handle was opened by.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, True
        os.close(handle)


def _rename_into_place(temporary: Path, out: Path, replace: bool) -> None:
    """Rename a folder; a folder that is already there gets the temporary name in exchange."""
    if not out.exists():
        try:
            os.rename(temporary, out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise InputError(f"{out} was made by somebody else meanwhile; it is as it was "
                             "there") from None
    elif replace and not _exchange(temporary, out):
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
