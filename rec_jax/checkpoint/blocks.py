"""Blocks of an array as files: zarr v3 calls them chunks, bytes followed by their CRC-32C.

Tensorstore reads and writes the same files, but it computes checksums in software and copies on the
way, which costs more than the disk does. Here bytes go between an array's memory and the file, past
the page cache through one aligned buffer. Tensorstore does the parts that are not a whole block.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from rec_jax.files import flush

CHECKSUM_BYTES = 4
MIN_DIRECT_BYTES = 2**20
"""Smallest file, in bytes, that is read around the page cache when it is not in there."""
ALIGNMENT = 4096
"""Where memory and place in a file must begin for that, in bytes; what most disks want."""


def block_path(folder: Path, number: int, ndim: int) -> Path:
    """The file of block `number` of an array `[V, ...]` that is cut along its rows alone."""
    return folder.joinpath("c", str(number), *["0"] * (ndim - 1))


def write_block(path: str | bytes | Path, data: Any) -> None:
    """Write `data`, a buffer of bytes, and its checksum; not flushed.

    A forked child calls this too: it takes no lock.
    """
    with open(path, "wb", buffering=0) as file:
        for part in (data, google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")):
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
        if size != data.nbytes + CHECKSUM_BYTES:
            raise ValueError(f"a block has {size} bytes, expected {data.nbytes + CHECKSUM_BYTES}")
        checksum = None
        if not _is_cached(file.fileno(), size):
            checksum = _read_direct(path, data)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the page looked at
        if checksum is None:
            _read_buffered(file, data)
            checksum = file.read(CHECKSUM_BYTES)
    if google_crc32c.value(data) != int.from_bytes(checksum, "little"):
        raise ValueError("a block has changed: its CRC-32C is not the one behind it")


def bytes_of(rows: np.ndarray) -> np.ndarray:
    """uint8 view of a contiguous array; types that buffers do not know, such as bfloat16, too."""
    return rows.reshape(-1).view(np.uint8)


def _is_cached(handle: int, size: int) -> bool:
    """Whether a file is in the page cache, or too small for that to matter; True if unknown."""
    if size < MIN_DIRECT_BYTES or not hasattr(os, "RWF_NOWAIT"):
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


def _read_direct(path: Path, data: np.ndarray) -> bytes | None:
    """Fill `data` past the page cache, whose pages cost as much as the disk; return the checksum.

    None: the file system cannot do that.
    """
    size, read = data.nbytes + CHECKSUM_BYTES, 0
    room = -(-size // ALIGNMENT) * ALIGNMENT
    memory = np.empty(room + ALIGNMENT, np.uint8)
    buffer = memory[-memory.ctypes.data % ALIGNMENT:][:room]
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


def _read_buffered(file: Any, into: np.ndarray) -> None:
    read = 0
    while read < len(into):
        count = file.readinto(into[read:])
        if not count:
            raise ValueError(f"a block ends after {read} bytes, expected {len(into)}")
        read += count
