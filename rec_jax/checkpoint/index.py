"""The index of a checkpoint: which leaves it has and what it says of itself, as JSON.

An index may come from anywhere, so each value is checked before it is used.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rec_jax.checkpoint.errors import Damaged, short_path
from rec_jax.checkpoint.layout import ARRAY_DTYPES, FORMAT, INFO, LEAVES, QUANTISED

_MOST_BYTES = 64 * 2**20

Store = Literal["packed", "array", "touched"]


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
        return math.prod(self.shape) * ARRAY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    metric: larger is better, or None. base: step whose rows a delta changes, or None.
    extra: what the run saved beside the arrays.
    """

    step: int
    metric: float | None
    base: int | None
    extra: dict[str, Any]


def write_leaves(leaves: list[Leaf]) -> str:
    """The text of `leaves.json`."""
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
        return [_read_leaf(entry) for entry in content["leaves"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"checkpoint file {short_path(folder / LEAVES)} is damaged: "
                      f"{type(error).__name__} {error}") from None


def write_info(info: CheckpointInfo) -> str:
    """The text of `info.json`."""
    return json.dumps({"format": FORMAT, **asdict(info)}, indent=1)


def read_info(folder: Path) -> CheckpointInfo:
    """What checkpoint folder `folder` says about itself; raises `Damaged`."""
    content = read_json(folder / INFO)
    try:
        step, metric, base, extra = (content[name] for name in ("step", "metric", "base", "extra"))
        if not (_is_natural(step) and (base is None or (_is_natural(base) and base < step))
                and (metric is None or isinstance(metric, int | float))
                and isinstance(extra, dict)):
            raise ValueError("values of the wrong type")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"checkpoint file {short_path(folder / INFO)} is damaged: "
                      f"{type(error).__name__} {error}") from None
    return CheckpointInfo(step, metric, base, extra)


def read_json(path: Path) -> Any:
    """JSON of a small regular file; raises `Damaged`."""
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is a link, or far too large")
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise Damaged(f"checkpoint file {short_path(path)} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"checkpoint file {short_path(path)} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise Damaged(f"checkpoint file {short_path(path)} is damaged: expected an object")
    return content


def _read_leaf(entry: Any) -> Leaf:
    shape = tuple(entry["shape"])
    leaf = Leaf(str(entry["path"]), entry["dtype"], shape, entry["store"], entry["offset"],
                entry["block"], entry["count"], entry["stored"] or entry["dtype"])
    numbers = (*shape, leaf.offset, leaf.block, leaf.count)
    if not (leaf.dtype in ARRAY_DTYPES and leaf.store in ("packed", "array", "touched")
            and all(_is_natural(number) for number in numbers) and len(shape) <= 8
            and leaf.stored in (leaf.dtype, *(QUANTISED if leaf.store == "touched" else ()))
            and (leaf.store == "packed" or (shape and leaf.block > 0))):
        raise ValueError(f"entry {entry!r:.80}")
    return leaf


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
