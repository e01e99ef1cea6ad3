"""Memory as it was at one moment, while this process goes on changing it, as Redis saves.

A forked child shares every page of its parent until one of them writes to it. The child here does
nothing but hold the old pages: asked for a block, it copies it into a small ring that both see,
and lets go of its pages, so that what the parent changes later is not kept twice. Extra memory is
the ring and the pages that the parent has changed and the child has not yet given.

A fork of a process with threads has none of them in the child, and whatever lock they held stays
locked there. So the child takes no lock: it copies, reads and writes pipes, and ends. It says that
it has come so far before anything relies on it. It hears no signal but SIGKILL, keeps no file of
its parent open, and ends when its parent does, or asks no more: its pipe then has no writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import select
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np

READY_SECONDS = 10.0
"""How long the child may take to begin; then it is given up, and there is no snapshot."""

_ASK = struct.Struct("QQQ")  # address, place in the ring, bytes
_DONE = b"."


class SnapshotLost(OSError):
    """The child that held the memory has ended before its time."""


class Snapshot:
    """Reads the memory of the moment at which `take_snapshot` returned it; for one thread."""

    def __init__(self, pid: int, asks: int, answers: int, ring: mmap.mmap, slots: int) -> None:
        self.pid = pid
        self._asks, self._answers = asks, answers
        self._ring = np.frombuffer(ring, np.uint8).reshape(slots, -1)
        self._next = 0

    def read(self, address: int, size: int) -> np.ndarray:
        """uint8 `[size]`, those bytes of then; they stay until `slots` more have been read.

        A block is read once: the child no longer has it afterwards.

        Raises:
          SnapshotLost: the child has ended.
        """
        slots, slot_bytes = self._ring.shape
        if size > slot_bytes:
            raise ValueError(f"{size} bytes of a ring whose slots hold {slot_bytes}")
        place = self._next % slots
        self._next += 1
        try:
            os.write(self._asks, _ASK.pack(address, place * slot_bytes, size))
            answer = os.read(self._answers, 1)
        except BrokenPipeError:
            answer = b""
        if answer != _DONE:
            raise SnapshotLost("the process that held the state for this save has ended")
        return self._ring[place, :size]

    def close(self) -> None:
        """End the child and wait for its end; safe to call again."""
        asks, answers, self._asks, self._answers = self._asks, self._answers, -1, -1
        if asks < 0:
            return
        os.close(asks)
        os.close(answers)
        _end(self.pid)


def take_snapshot(slots: int, slot_bytes: int) -> Snapshot | None:
    """The memory of this process as it is now, or None where it cannot be had.

    Blocks of at most `slot_bytes` are read through a ring of `slots`. Nothing may be writing to
    the memory that will be read. The caller closes the snapshot.
    """
    if not sys.platform.startswith("linux"):
        return None
    ring = mmap.mmap(-1, slots * slot_bytes)  # anonymous and shared
    serve = _make_server(ctypes.addressof(ctypes.c_char.from_buffer(ring)))
    child_asks, asks = os.pipe()
    answers, child_answers = os.pipe()
    try:
        with _quietly():
            pid = os.fork()
            if pid == 0:
                try:
                    _leave_parent(child_asks, child_answers)
                    serve(child_asks, child_answers)
                finally:
                    os._exit(0)
    except OSError:  # no memory for its tables, or no more processes
        for pipe in (child_asks, asks, answers, child_answers):
            os.close(pipe)
        return None
    os.close(child_asks)
    os.close(child_answers)
    snapshot = Snapshot(pid, asks, answers, ring, slots)
    began = select.select([answers], [], [], READY_SECONDS)[0]
    if not began or os.read(answers, 1) != _DONE:
        snapshot.close()
        return None
    return snapshot


def _make_server(ring: int) -> Callable[[int, int], None]:
    """The child's loop; whatever can be looked up is looked up here, before the fork."""
    page = mmap.PAGESIZE
    advise, dont_need = ctypes.CDLL(None).madvise, mmap.MADV_DONTNEED
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    move = ctypes.memmove
    read, write, unpack, size = os.read, os.write, _ASK.unpack, _ASK.size

    def serve(asks: int, answers: int) -> None:
        write(answers, _DONE)
        while len(message := read(asks, size)) == size:
            address, place, count = unpack(message)
            move(ring + place, address, count)
            write(answers, _DONE)
            first, last = -(-address // page) * page, (address + count) // page * page
            if last > first:
                advise(first, last - first, dont_need)

    return serve


def _leave_parent(asks: int, answers: int) -> None:
    """Let go of every file but the two pipes, and be the first to go if memory runs out."""
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(score, b"1000")
    low, high = sorted((asks, answers))
    os.closerange(0, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, max(score, os.sysconf("SC_OPEN_MAX")) + 1)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
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
