"""Memory as it was at one moment, while this process goes on changing it, as Redis saves.

A forked child shares every page of its parent until one of them writes to it, so the child here has
the old pages. On request it writes a block to a file and frees the block's pages, so that what the
parent changes later is not stored twice. Extra memory is the pages that the parent has changed and
the child has not yet written.

A fork of a process with threads has none of them in the child, and whatever lock they held stays
locked there. So the child takes no lock: it writes files, reads and writes pipes, and ends. It says
that it is ready before anything relies on it. It receives no signal but SIGKILL, keeps no file of
its parent open, and ends when its parent ends or closes the pipe, which then has no writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import select
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from rec_jax.checkpoint.blocks import write_block

READY_SECONDS = 10.0
"""How long the child may take to begin; then it is given up, and there is no snapshot."""

_REQUEST = struct.Struct("QQ")  # address, bytes; the path follows
_REPLY = struct.Struct("i")  # 0, or what the system's error was
_MOST_REQUEST = select.PIPE_BUF  # a longer message might arrive in pieces


class SnapshotLost(OSError):
    """The child that held the memory has ended before its time."""


class Snapshot:
    """Writes the memory of the moment at which `take_snapshot` returned it; for one thread."""

    def __init__(self, pid: int, requests: int, replies: int) -> None:
        self.pid = pid
        self._requests, self._replies = requests, replies

    def write(self, path: Path, address: int, size: int) -> None:
        """Write those bytes of then to a file, as `write_block` does.

        A block is written once: the child no longer has it afterwards.

        Raises:
          SnapshotLost: the child has ended.
          OSError: the file could not be written.
        """
        message = _REQUEST.pack(address, size) + os.fsencode(path)
        if len(message) > _MOST_REQUEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        try:
            os.write(self._requests, message)
            answer = os.read(self._replies, _REPLY.size)
        except BrokenPipeError:
            answer = b""
        if len(answer) < _REPLY.size:
            raise SnapshotLost("the process that held the state for this save has ended")
        if error := _REPLY.unpack(answer)[0]:
            raise OSError(error, os.strerror(error), str(path))

    def close(self) -> None:
        """End the child and wait for its end; safe to call again."""
        requests, replies, self._requests, self._replies = self._requests, self._replies, -1, -1
        if requests < 0:
            return
        os.close(requests)
        os.close(replies)
        _end(self.pid)


def take_snapshot() -> Snapshot | None:
    """The memory of this process as it is now, or None where it cannot be had.

    Nothing may be writing to the memory that will be read. The caller closes the snapshot.
    """
    if not sys.platform.startswith("linux"):
        return None
    serve = _make_server()
    child_requests, requests = os.pipe()
    replies, child_replies = os.pipe()
    try:
        with _without_signals():
            pid = os.fork()
            if pid == 0:
                try:
                    _leave_parent(child_requests, child_replies)
                    serve(child_requests, child_replies)
                finally:
                    os._exit(0)
    except OSError:  # no memory for its tables, or no more processes
        for pipe in (child_requests, requests, replies, child_replies):
            os.close(pipe)
        return None
    os.close(child_requests)
    os.close(child_replies)
    snapshot = Snapshot(pid, requests, replies)
    began = select.select([replies], [], [], READY_SECONDS)[0]
    if not began or len(os.read(replies, _REPLY.size)) < _REPLY.size:
        snapshot.close()
        return None
    return snapshot


def _make_server() -> Callable[[int, int], None]:
    """The child's loop; whatever can be looked up is looked up here, before the fork."""
    page = mmap.PAGESIZE
    advise, dont_need = ctypes.CDLL(None).madvise, mmap.MADV_DONTNEED
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def serve(requests: int, replies: int) -> None:
        os.write(replies, _REPLY.pack(0))
        while message := os.read(requests, _MOST_REQUEST):
            address, size = _REQUEST.unpack_from(message)
            try:
                write_block(message[_REQUEST.size:], (ctypes.c_char * size).from_address(address))
                error = 0
            except OSError as failed:
                error = failed.errno or errno.EIO
            os.write(replies, _REPLY.pack(error))
            first, last = -(-address // page) * page, (address + size) // page * page
            if last > first:
                advise(first, last - first, dont_need)

    return serve


def _leave_parent(requests: int, replies: int) -> None:
    """Let go of every file but the two pipes, and be the first to go if memory runs out."""
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(score, b"1000")
    low, high = sorted((requests, replies))
    os.closerange(0, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, max(score, os.sysconf("SC_OPEN_MAX")) + 1)


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """A fork during which neither a signal nor the collector runs code of this process.

    The child never leaves this: there, signals stay blocked and nothing is collected. JAX and
    Python warn of a fork with threads; what they warn of, a lock that nobody opens again, the
    child does not meet, since it takes none.
    """
    collects = gc.isenabled()
    gc.disable()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks",
                                    DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if collects:
            gc.enable()


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
        os.waitpid(pid, 0)
