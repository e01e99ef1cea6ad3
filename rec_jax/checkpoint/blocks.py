"""Blocks of an array as files: what zarr v3 calls a chunk, bytes and behind them their CRC-32C.

Tensorstore reads and writes the same files, but sums in software and copies on the way, which costs
more than the disk does; here bytes go between an array's memory and the file, past the page cache
through one aligned buffer. What is no whole block is left to tensorstore.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

SUM_BYTES = 4
LEAST_DIRECT = 2**20
"""Smallest file, in bytes, that is read around the page cache when it is not in there."""
ALIGNED = 4096
"""Where memory and place in a file must begin for that, in bytes; what most disks want."""


def block_path(folder: Path, number: int, ndim: int) -> Path:
    """The file of block `number` of an array `[V, ...]` that is cut along its rows alone."""
    return folder.joinpath("c", str(number), *["0"] * (ndim - 1))


def write_block(path: str | bytes | Path, data: Any) -> None:
    """Write `data`, a buffer of bytes, and its checksum; not flushed.

    A forked child calls this too: it takes no lock.
    """
    with open(path, "wb", buffering=0) as file:
        for part in (data, google_crc32c.value(data).to_bytes(SUM_BYTES, "little")):
            rest = memoryview(part).cast("B")
            while rest:  # the system takes at most 2 GiB at once, and less where a disk gets full
                rest = rest[file.write(rest):]


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Write rows of an array as a block, and flush it."""
    write_block(path, bytes_of(np.ascontiguousarray(rows)))
    flush(path)


def read_block(path: Path, rows: np.ndarray) -> None:
    """Fill the contiguous array `rows` with a block.

    Raises:
      ValueError: the file has another size, or its bytes are not those that were written.
    """
    data = bytes_of(rows)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != data.nbytes + SUM_BYTES:
            raise ValueError(f"a block has {size} bytes, expected {data.nbytes + SUM_BYTES}")
        behind = None
        if not _is_cached(file.fileno(), size):
            behind = _read_past_cache(path, data)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the page looked at
        if behind is None:
            _read_whole(file, data)
            behind = file.read(SUM_BYTES)
    if google_crc32c.value(data) != int.from_bytes(behind, "little"):
        raise ValueError("a block has changed: its CRC-32C is not the one behind it")


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def bytes_of(rows: np.ndarray) -> np.ndarray:
    """uint8 view of a contiguous array; types that buffers do not know, such as bfloat16, too."""
    return rows.reshape(-1).view(np.uint8)


def _is_cached(handle: int, size: int) -> bool:
    """Whether a file is in the page cache, or too small for that to matter; True if unknown."""
    if size < LEAST_DIRECT or not hasattr(os, "RWF_NOWAIT"):
        return True
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # a look is no reason to read ahead
    try:
        return os.preadv(handle, [bytearray(1)], size // 2, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot say
        return True
    finally:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_NORMAL)


def _read_past_cache(path: Path, data: np.ndarray) -> bytes | None:
    """Fill `data` without the page cache, whose pages cost as much as the disk; what is behind it.

    None: the file system cannot.
    """
    size, read = data.nbytes + SUM_BYTES, 0
    room = -(-size // ALIGNED) * ALIGNED
    memory = np.empty(room + ALIGNED, np.uint8)
    buffer = memory[-memory.ctypes.data % ALIGNED:][:room]
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        while read < size:
            count = os.preadv(handle, [buffer[read:]], read)  # type: ignore[list-item]
            if not count:
                return None
            read += count
    except OSError as error:
        if error.errno == errno.EINVAL:  # it allows no direct reading, or wants larger steps
            return None
        raise
    finally:
        os.close(handle)
    data[...] = buffer[:data.nbytes]
    return buffer[data.nbytes:size].tobytes()


def _read_whole(file: Any, into: np.ndarray) -> None:
    read = 0
    while read < len(into):
        count = file.readinto(into[read:])
        if not count:
            raise ValueError(f"a block ends after {read} bytes, expected {len(into)}")
        read += count
