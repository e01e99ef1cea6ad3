"""Some arrays by name in one file, which is whole or absent, each with a CRC-32C.

    8 bytes       a mark
    8 bytes       length of the header
    the header    JSON: arrays (name, type, shape, crc), what the writer says, and its own crc
    the arrays    one behind the other, little-endian
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from rec_jax.errors import InputError
from rec_jax.files import atomic_writer
from rec_jax.jsons import dumps

_MARK = b"rjarrs01"
_TYPES = ("<i8", "<u4")
_PART = 2**24
"""Bytes that are checked at once."""


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
                 ) -> None:
    """Write `arrays`, int64 or uint32, and `about`, as JSON has it, to the file `path`.

    Raises:
      OSError: as the system says; nothing stands under `path` that did not stand there before.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = dumps({"arrays": [[name, array.dtype.newbyteorder("<").str, list(array.shape),
                                _crc(array)] for name, array in whole.items()],
                    "about": dict(about)}).encode()
    with atomic_writer(path) as file:
        file.write(_MARK + len(header).to_bytes(8, "little") + header
                   + google_crc32c.value(header).to_bytes(4, "little"))
        for array in whole.values():
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)


def read_arrays(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, and what the writer said.

    Raises:
      InputError: it is none, or not as it was written.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(8) != _MARK:
                raise ValueError("it is no file of arrays")
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, 2**20))
            if google_crc32c.value(header) != int.from_bytes(file.read(4), "little"):
                raise ValueError("its header is not as it was written")
            said = json.loads(header)
            found = {name: _read(file, name, *rest) for name, *rest in said["arrays"]}
            if file.read(1):
                raise ValueError("there is more in it than was written")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a file of ids") from None
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return found, dict(said["about"])


def _read(file: Any, name: str, kind: str, shape: list[int], crc: int) -> np.ndarray:
    if kind not in _TYPES:
        raise ValueError(f"{name} is of type {kind}")
    array = np.empty(shape, np.dtype(kind))
    if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes or _crc(array) != crc:
        raise ValueError(f"{name} is not as it was written")
    return array


def _crc(array: np.ndarray) -> int:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data, found = little.reshape(-1).view(np.uint8), 0
    for first in range(0, len(data), _PART):
        found = google_crc32c.extend(found, data[first:first + _PART].tobytes())
    return int(found)
