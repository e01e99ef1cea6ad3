"""How a checkpoint lies on the disk: names of files and folders, sizes of blocks, array types.

    step_12/
      info.json             step, metric, base of a delta, and what the run put beside the arrays
      model/leaves.json     one entry a leaf: path in the pytree, type, shape, how it is stored
      model/packed.bin      the small leaves, one behind the other
      model/arrays/3/       leaf 3, a zarr v3 array in blocks of rows, each with a CRC-32C
      model/arrays/3.rows/  ids of the rows that leaf 3 of a delta holds
      seal.json             the manifest: size of every file, SHA-256 of all but the blocks;
                            it is written last

No name in an index is ever used as a path: leaves are found by their number. Types come from a
fixed list, and shapes are compared with file sizes before memory is taken for them.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

FORMAT = 2
BLOCK_BYTES = 16 * 2**20
"""Most bytes of an array that are read or written at once.

Below 32 MiB glibc takes a buffer from memory that it has already; a larger one is mapped anew
each time, and touching its pages costs more than the reading.
"""
PACKED_BYTES = 2**18
"""Largest leaf that lies in `packed.bin`."""

INFO, MANIFEST, LEAVES, PACKED, ARRAYS = (
    "info.json", "seal.json", "leaves.json", "packed.bin", "arrays")
ITEM_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
ARRAY_DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in (
        "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16",
        "uint32", "uint64", "bool")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
QUANTISED = ("bfloat16", "int8")
_STEP = re.compile(r"step_(\d{1,18})(\.full)?")


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step_{step}"


def compacted_name(step: int) -> str:
    """The folder of a delta that was made full; it replaces the delta as soon as it is there."""
    return f"step_{step}.full"


def find_steps(folder: Path) -> dict[int, Path]:
    """Folders of the complete checkpoints by step, ascending; unfinished ones have other names."""
    found: dict[int, Path] = {}
    if not folder.is_dir():
        return found
    for path in folder.iterdir():
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            step = int(match[1])
            if match[2] or step not in found:
                found[step] = path
    return dict(sorted(found.items()))


def compacted_deltas(folder: Path) -> dict[int, Path]:
    """Deltas by step that were made full and still lie beside the full checkpoint."""
    return {step: folder / step_name(step) for step, path in find_steps(folder).items()
            if path.name != step_name(step) and (folder / step_name(step)).is_dir()}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by path, in the order of the tree."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def array_spec(folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> dict[str, Any]:
    """The tensorstore spec of an array; opening it fails if the file on disk says otherwise."""
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": os.path.realpath(folder)},  # it refuses a ".."
        "metadata": {
            "shape": list(shape), "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {
                "chunk_shape": [block, *(max(1, size) for size in shape[1:])]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                       {"name": "crc32c"}],
        },
        "store_data_equal_to_fill_value": True,  # a block that is missing is damage, not zeros
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def row_nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one row of an array `[V, ...]`; at least 1."""
    return max(1, math.prod(shape[1:]) * dtype.itemsize)


def block_rows(rows: int, row_bytes: int) -> int:
    """The largest divisor of `rows` whose rows fit into `BLOCK_BYTES`; at least 1."""
    limit = max(1, BLOCK_BYTES // max(1, row_bytes))
    if rows <= limit:
        return max(1, rows)
    return max(size for number in range(1, math.isqrt(rows) + 1) if rows % number == 0
               for size in (number, rows // number) if size <= limit)
