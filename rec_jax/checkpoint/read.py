"""Reading leaves back, a range of rows at a time, through the chain of a delta if need be.

A `Source` is one array on disk. Nothing here makes an array of the table's size: `place` fills
each device's shard block by block.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.sharding import SingleDeviceSharding

from rec_jax.checkpoint.blocks import SUM_BYTES, block_path, read_block
from rec_jax.checkpoint.layout import (
    ARRAYS,
    BLOCK_BYTES,
    DTYPES,
    PACKED,
    Damaged,
    Leaf,
    array_spec,
    first_line,
    read_leaves,
)
from rec_jax.checkpoint.memory import in_host_memory, view

READ_AHEAD = 2
"""Blocks that are read while another one is used."""


class Source(Protocol):
    """An array on disk. shape; dtype; block: rows that are cheap to read together."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def block(self) -> int: ...

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows `[last - first, ...]` from `first` to `last`; raises `Damaged`."""
        ...

    def read_into(self, rows: np.ndarray, first: int) -> None:
        """The same from `first` on into `rows`, an array of this dtype; raises `Damaged`."""
        ...


@dataclass(frozen=True)
class Packed:
    """A small leaf in `packed.bin`; a scalar has no rows and is read whole."""

    file: Path
    leaf: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.leaf.dtype]

    @property
    def block(self) -> int:
        return max(1, self.shape[0]) if self.shape else 1

    def read(self, first: int, last: int) -> np.ndarray:
        with _reading(self.file), self.file.open("rb") as file:
            # Before memory is taken for it.
            if self.leaf.offset + self.leaf.nbytes > self.file.stat().st_size:
                raise ValueError(f"{self.leaf.path} ends behind the end of the file")
            file.seek(self.leaf.offset)
            data = file.read(self.leaf.nbytes)
            whole = np.frombuffer(data, self.dtype).reshape(self.shape)
        return whole[first:last] if self.shape else whole

    def read_into(self, rows: np.ndarray, first: int) -> None:
        rows[...] = self.read(first, first + len(rows))


class Stored:
    """An array of its own, in blocks; each block's CRC-32C is checked when it is read."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> None:
        self.shape, self.dtype, self.block = shape, DTYPES[dtype], block
        self._folder = folder
        with _reading(folder):
            # tensorstore would read zeros for a missing block, and a hostile shape for ever.
            expected, found = -(-shape[0] // block), len(os.listdir(folder / "c"))
            if found != expected:
                raise ValueError(f"it has {found} blocks, expected {expected}")
            size = block * math.prod(shape[1:]) * self.dtype.itemsize + SUM_BYTES
            found = block_path(folder, 0, len(shape)).stat().st_size
            if found != size:  # before memory is taken for it
                raise ValueError(f"its first block has {found} bytes, expected {size}")
            self._store = ts.open(array_spec(folder, shape, dtype, block), open=True).result()

    def read(self, first: int, last: int) -> np.ndarray:
        rows = np.empty((last - first, *self.shape[1:]), self.dtype)
        self.read_into(rows, first)
        return rows

    def read_into(self, rows: np.ndarray, first: int) -> None:
        with _reading(self._folder):
            if first % self.block or len(rows) % self.block or not rows.flags.c_contiguous:
                ts.array(rows).write(self._store[first:first + len(rows)]).result()
                return
            for begin in range(0, len(rows), self.block):
                file = block_path(self._folder, (first + begin) // self.block, rows.ndim)
                read_block(file, rows[begin:begin + self.block])


@dataclass(frozen=True)
class Layer:
    """The rows that one delta changes. ids: `[T]`, ascending; scale: of quantised rows, or None."""

    ids: np.ndarray
    rows: Source
    scale: Source | None = None

    def lay(self, rows: np.ndarray, first: int) -> None:
        """Over rows from `first` on, those of them that changed."""
        low, high = (int(x) for x in np.searchsorted(self.ids, [first, first + len(rows)]))
        if low == high:
            return
        changed = self.rows.read(low, high)
        if self.scale is not None:
            scale = self.scale.read(low, high).reshape(-1, *(1,) * (changed.ndim - 1))
            changed = changed.astype(np.float32) * scale
        rows[self.ids[low:high] - first] = changed.astype(rows.dtype)


class Chained:
    """An array as a chain of deltas leaves it: the rows of a full one, and layers over them."""

    def __init__(self, base: Source, layer: Layer) -> None:
        self.shape, self.dtype, self.block = base.shape, base.dtype, base.block
        # A flat list: a chain may be longer than functions may be nested.
        self._base: Source = base._base if isinstance(base, Chained) else base
        self._layers: tuple[Layer, ...] = (
            *(base._layers if isinstance(base, Chained) else ()), layer)

    def read(self, first: int, last: int) -> np.ndarray:
        found = np.empty((last - first, *self.shape[1:]), self.dtype)
        self.read_into(found, first)
        return found

    def read_into(self, rows: np.ndarray, first: int) -> None:
        self._base.read_into(rows, first)
        for layer in self._layers:
            layer.lay(rows, first)


def open_item(folder: Path, base: Mapping[str, Source] | None) -> dict[str, Source]:
    """The leaves of item folder `folder` by path.

    base: those of the checkpoint that a delta changes.

    Raises:
      Damaged: the index or an array is not as it was written.
    """
    found: dict[str, Source] = {}
    for number, leaf in enumerate(read_leaves(folder)):
        place = folder / ARRAYS / str(number)
        if leaf.store == "packed":
            found[leaf.path] = Packed(folder / PACKED, leaf)
        elif leaf.store == "array":
            found[leaf.path] = Stored(place, leaf.shape, leaf.dtype, leaf.block)
        else:
            found[leaf.path] = _open_touched(place, leaf, base)
    return found


def _open_touched(place: Path, leaf: Leaf, base: Mapping[str, Source] | None) -> Source:
    under = (base or {}).get(leaf.path)
    if under is None or under.shape != leaf.shape or under.dtype != DTYPES[leaf.dtype]:
        raise Damaged(f"checkpoint {place.parts[-4]} changes rows of {leaf.path}, which its base "
                      f"does not hold in that shape and type")
    if not leaf.count:
        return under

    def part(suffix: str, shape: tuple[int, ...], dtype: str) -> Stored:
        return Stored(place.with_name(place.name + suffix), shape, dtype, leaf.block)

    ids = part(".rows", (leaf.count,), "int64").read(0, leaf.count)
    if ids[0] < 0 or ids[-1] >= leaf.shape[0] or np.any(np.diff(ids) <= 0):
        raise Damaged(f"checkpoint {place.parts[-4]} names rows that {leaf.path} does not have")
    rows = part("", (leaf.count, *leaf.shape[1:]), leaf.stored)
    scale = part(".scale", (leaf.count,), "float32") if leaf.stored == "int8" \
        and leaf.dtype != "int8" else None
    return Chained(under, Layer(ids, rows, scale))


def blocks(source: Source, first: int = 0, last: int | None = None) -> Iterator[
        tuple[int, np.ndarray]]:
    """(first row, rows) over a range, in blocks of `BLOCK_BYTES`; the next ones are read ahead."""
    pairs = _ranges(source, first, source.shape[0] if last is None else last)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        ahead = deque(pool.submit(source.read, *pair) for pair in pairs[:READ_AHEAD])
        for number, (begin, _) in enumerate(pairs):
            values = ahead.popleft().result()
            if number + READ_AHEAD < len(pairs):
                ahead.append(pool.submit(source.read, *pairs[number + READ_AHEAD]))
            yield begin, values


def _ranges(source: Source, first: int, last: int) -> list[tuple[int, int]]:
    """Ranges of rows of about `BLOCK_BYTES`: whole blocks of the file, each read once."""
    row_bytes = max(1, int(np.prod(source.shape[1:], dtype=np.int64)) * source.dtype.itemsize)
    size = max(1, BLOCK_BYTES // row_bytes)
    size = max(source.block, size // source.block * source.block) if source.block <= size else size
    edges = [first, *range(first - first % size + size, last, size), last]
    return [pair for pair in pairwise(edges) if pair[1] > pair[0]]


def place(source: Source, like: Any) -> jax.Array:
    """The array in the dtype and sharding of `like`, on the devices; host memory: a few blocks.

    like: an array or a `jax.ShapeDtypeStruct` of the same shape.
    """
    sharding = getattr(like, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    dtype = np.dtype(like.dtype)
    groups: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(like.shape).items():
        bounds = tuple(part.indices(size)[:2]
                       for part, size in zip(index or (), like.shape, strict=True))
        groups.setdefault(bounds, []).append(device)
    placed: dict[Any, jax.Array] = {}
    for bounds, devices in groups.items():
        placed |= _fill(source, bounds, dtype, devices)
    order = [placed[device] for device in sharding.addressable_devices_indices_map(like.shape)]
    return jax.make_array_from_single_device_arrays(like.shape, sharding, order)


def _fill(source: Source, bounds: tuple[tuple[int, int], ...], dtype: np.dtype[Any],
          devices: list[Any]) -> dict[Any, jax.Array]:
    """One shard, on every device that holds it."""
    if not bounds:
        whole = source.read(0, 1).astype(dtype)
        return {device: _put(whole, device) for device in devices}
    (first, last), rest = bounds[0], tuple(slice(*part) for part in bounds[1:])
    shape = tuple(stop - start for start, stop in bounds)
    if np.prod(shape, dtype=np.int64) * dtype.itemsize <= BLOCK_BYTES:
        part = source.read(first, last)[(slice(None), *rest)].astype(dtype)
        return {device: _put(part, device) for device in devices}
    filled = {device: _zeros(shape, dtype, device) for device in devices}
    if dtype == source.dtype and shape[1:] == source.shape[1:] and all(
            in_host_memory(one) for one in filled.values()):
        _fill_in_place(source, first, list(filled.values()))
        return filled
    for begin, values in blocks(source, first, last):
        part = values[(slice(None), *rest)].astype(dtype, copy=False)
        for device in devices:
            filled[device] = _lay(filled[device], _put(part, device), begin - first)
            filled[device].block_until_ready()  # or blocks pile up faster than they are laid
    return filled


def _fill_in_place(source: Source, first: int, filled: list[jax.Array]) -> None:
    """Read rows from `first` on into arrays of the host that nobody else has seen yet."""
    one, *others = (view(array.unsafe_buffer_pointer(), array.shape, np.dtype(array.dtype))
                    for array in jax.block_until_ready(filled))

    def read(bounds: tuple[int, int]) -> None:
        rows = slice(bounds[0] - first, bounds[1] - first)
        source.read_into(one[rows], bounds[0])
        for other in others:
            other[rows] = one[rows]

    with ThreadPoolExecutor(READ_AHEAD + 1) as pool:
        list(pool.map(read, _ranges(source, first, first + len(one))))


def _put(values: np.ndarray, device: Any) -> jax.Array:
    # A copy: on a CPU the device would otherwise share memory that is about to be overwritten.
    return jax.device_put(np.ascontiguousarray(values).reshape(values.shape), device,
                          may_alias=False)


def _zeros(shape: tuple[int, ...], dtype: Any, device: Any) -> jax.Array:
    return jax.jit(partial(jnp.zeros, shape, dtype),
                   out_shardings=SingleDeviceSharding(device))()


@partial(jax.jit, donate_argnums=0)
def _lay(whole: jax.Array, part: jax.Array, first: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=0)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what tensorstore and the system raise for a bad file into `Damaged`."""
    try:
        yield
    except Exception as error:
        raise Damaged(f"checkpoint file {'/'.join(path.parts[-4:])} cannot be read: "
                      f"{first_line(error)}") from None

