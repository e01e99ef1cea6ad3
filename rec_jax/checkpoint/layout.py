"""How a checkpoint lies on disk, and how its index is read without trusting it.

    step_12/
      info.json             step, metric, base of a delta, and what the run put beside the arrays
      model/leaves.json     one entry a leaf: path in the pytree, type, shape, how it is stored
      model/packed.bin      the small leaves, one behind the other
      model/arrays/3/       leaf 3, a zarr v3 array in blocks of rows, each with a CRC-32C
      model/arrays/3.rows/  ids of the rows that leaf 3 of a delta holds
      seal.json             size of every file, SHA-256 of all but the blocks; written last

No name in an index is ever used as a path: leaves are found by their number. Types come from a
fixed list, and shapes are held against file sizes before memory is taken for them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from rec_jax.errors import InputError

FORMAT = 2
BLOCK_BYTES = 16 * 2**20
"""Most bytes of an array that are read or written at once.

Below 32 MiB glibc takes a buffer from memory that it holds already; a larger one is mapped anew
each time, and touching its pages costs more than the reading.
"""
PACKED_BYTES = 2**18
"""Largest leaf that lies in `packed.bin`."""

INFO, SEAL, LEAVES, PACKED, ARRAYS = (
    "info.json", "seal.json", "leaves.json", "packed.bin", "arrays")
ITEM_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in (
        "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16",
        "uint32", "uint64", "bool")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
QUANTISED = ("bfloat16", "int8")
_ABSOLUTE = re.compile(r'"?(?<![\w.])(?:/[^/\s":]+)+"?')
_STEP = re.compile(r"step_(\d{1,18})(\.full)?")
_MOST_INDEX_BYTES = 64 * 2**20

Store = Literal["packed", "array", "touched"]


class Damaged(InputError):
    """A checkpoint that does not hold what was written; the message names it and the file."""


class Missing(InputError):
    """There is no checkpoint of that step, or no longer."""


@dataclass(frozen=True)
class Leaf:
    """One array of an item.

    path: its place in the pytree, as `jax.tree_util.keystr` writes it.
    store: in `packed.bin` from `offset` on; an array of its own in blocks of `block` rows; or
      the `count` rows of it that changed since the checkpoint's base, in such an array.
    stored: type of the values on disk; int8 are to be multiplied by one f32 a row (`N.scale`).
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    store: Store
    offset: int = 0
    block: int = 0
    count: int = 0
    stored: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Info:
    """What a checkpoint says about itself.

    metric: larger is better, or None. base: step whose rows a delta changes, or None.
    extra: what the run saved beside the arrays.
    """

    step: int
    metric: float | None
    base: int | None
    extra: dict[str, Any]


def step_name(step: int) -> str:
    return f"step_{step}"


def compacted_name(step: int) -> str:
    """A delta that was made full; it stands in for the delta as soon as it is there."""
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


def shadowed(folder: Path) -> dict[int, Path]:
    """Deltas by step that were made full, and stand beside the full one still."""
    return {step: folder / step_name(step) for step, path in find_steps(folder).items()
            if path.name != step_name(step) and (folder / step_name(step)).is_dir()}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by path, in the order of the tree."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def write_leaves(leaves: list[Leaf]) -> str:
    return json.dumps({"format": FORMAT, "leaves": [asdict(leaf) for leaf in leaves]}, indent=1)


def read_leaves(folder: Path) -> list[Leaf]:
    """The index of item folder `folder`.

    Raises:
      Damaged: it is missing, or it says what no writer would say.
    """
    content = read_json(folder / LEAVES)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
        return [_leaf(entry) for entry in content["leaves"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"checkpoint file {_short(folder / LEAVES)} is damaged: "
                      f"{type(error).__name__} {error}") from None


def write_info(info: Info) -> str:
    return json.dumps({"format": FORMAT, **asdict(info)}, indent=1)


def read_info(folder: Path) -> Info:
    """What checkpoint folder `folder` says about itself; raises `Damaged`."""
    content = read_json(folder / INFO)
    try:
        step, metric, base, extra = (content[name] for name in ("step", "metric", "base", "extra"))
        if not (_natural(step) and (base is None or (_natural(base) and base < step))
                and (metric is None or isinstance(metric, int | float))
                and isinstance(extra, dict)):
            raise ValueError("values of the wrong type")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"checkpoint file {_short(folder / INFO)} is damaged: "
                      f"{type(error).__name__} {error}") from None
    return Info(step, metric, base, extra)


def read_json(path: Path) -> Any:
    """JSON of a small regular file; raises `Damaged`."""
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError("it is a link, or far too large")
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise Damaged(f"checkpoint file {_short(path)} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"checkpoint file {_short(path)} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise Damaged(f"checkpoint file {_short(path)} is damaged: expected an object")
    return content


def array_spec(folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> dict[str, Any]:
    """The tensorstore spec of an array; opening it fails if the file on disk says otherwise."""
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder)},
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


def block_rows(rows: int, row_bytes: int) -> int:
    """The largest divisor of `rows` whose rows fit into `BLOCK_BYTES`; at least 1."""
    limit = max(1, BLOCK_BYTES // max(1, row_bytes))
    if rows <= limit:
        return max(1, rows)
    return max(size for number in range(1, math.isqrt(rows) + 1) if rows % number == 0
               for size in (number, rows // number) if size <= limit)


def _leaf(entry: Any) -> Leaf:
    shape = tuple(entry["shape"])
    leaf = Leaf(str(entry["path"]), entry["dtype"], shape, entry["store"], entry["offset"],
                entry["block"], entry["count"], entry["stored"] or entry["dtype"])
    numbers = (*shape, leaf.offset, leaf.block, leaf.count)
    if not (leaf.dtype in DTYPES and leaf.store in ("packed", "array", "touched")
            and all(_natural(number) for number in numbers) and len(shape) <= 8
            and leaf.stored in (leaf.dtype, *(QUANTISED if leaf.store == "touched" else ()))
            and (leaf.store == "packed" or (shape and leaf.block > 0))):
        raise ValueError(f"entry {entry!r:.80}")
    return leaf


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def first_line(error: BaseException) -> str:
    """What an error of tensorstore or the system says, without the paths of this machine."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _ABSOLUTE.sub("the file", lines[0])[:300]


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
