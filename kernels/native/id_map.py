"""The map of `cpp/id_map.h`, from 64-bit ids to rows, on arrays of NumPy.

The calls leave Python's lock, so that other threads go on. The bytes of a table are no format: they
depend on the order in which ids came, and what is kept of a map is its ids and rows.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from . import build

LINE, IDS_OF_LINE = 64, 5
"""Bytes of a bucket, and how many ids it holds."""
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


def new_table(buckets: int) -> np.ndarray:
    """An empty table: uint8 `[buckets, 64]` on the lines of the cache; it takes memory as it is
    written."""
    memory = np.zeros((buckets + 1) * LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first:first + buckets * LINE].reshape(buckets, LINE)


def find(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int32 `[n]`: the rows of `ids` int64 `[n]`, 0 where there is none."""
    ids = _whole(ids, np.int64)
    rows = np.empty(len(ids), np.int32)
    _functions()["find"](table.ctypes.data, len(table), ids.ctypes.data, len(ids),
                         rows.ctypes.data)
    return rows


def insert(table: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> int:
    """Add `ids` int64 `[n]`, distinct and not there, with `rows` int32 `[n]` above 0. Returns how
    many found room."""
    ids, rows = _whole(ids, np.int64), _whole(rows, np.int32)
    return int(_functions()["insert"](table.ctypes.data, len(table), ids.ctypes.data,
                                      rows.ctypes.data, len(ids)))


def erase(table: np.ndarray, ids: np.ndarray) -> int:
    """Take `ids` int64 `[n]` out. Returns how many were there."""
    ids = _whole(ids, np.int64)
    return int(_functions()["erase"](table.ctypes.data, len(table), ids.ctypes.data, len(ids)))


def read_lines(table: np.ndarray, places: np.ndarray) -> int:
    """Read the buckets `places` int64 `[n]`, each of them whole: what memory itself costs."""
    places = _whole(places, np.int64)
    return int(_functions()["read"](table.ctypes.data, places.ctypes.data, len(places)))


def _whole(values: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values, dtype)


@functools.cache
def _functions() -> dict[str, ctypes._NamedFuncPointer]:
    library = build.library()
    found = {name: getattr(library, f"rec_jax_ids_{name}")
             for name in ("find", "insert", "erase", "read")}
    for name, rows in (("find", 1), ("insert", 1), ("erase", 0)):
        found[name].argtypes = [_POINTER, _COUNT, _POINTER, *([_COUNT, _POINTER] if name == "find"
                                                              else [_POINTER] * rows + [_COUNT])]
    found["read"].argtypes = [_POINTER, _POINTER, _COUNT]
    for function in found.values():
        function.restype = _COUNT
    found["find"].restype = None
    return found
