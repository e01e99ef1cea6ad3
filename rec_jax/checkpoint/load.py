"""Arrays of a checkpoint onto the devices of any mesh, a block at a time.

No array of the table's size is made in host memory: each device's shard is filled block by block.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from rec_jax.checkpoint.array_source import READ_AHEAD, ArraySource, block_ranges, read_blocks
from rec_jax.checkpoint.layout import BLOCK_BYTES
from rec_jax.checkpoint.memory import in_host_memory, view
from rec_jax.checkpoint.row_ranges import RowRanges


def load_leaf(source: ArraySource, like: Any) -> Any:
    """`load_array`, or `like` itself, filled, where that is `RowRanges`."""
    if not isinstance(like, RowRanges):
        return load_array(source, like)
    for first, rows in read_blocks(source):
        like.fill(first, rows.astype(like.dtype, copy=False))
    return like


def load_array(source: ArraySource, like: Any) -> jax.Array:
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
    loaded: dict[Any, jax.Array] = {}
    for bounds, devices in groups.items():
        loaded |= _fill(source, bounds, dtype, devices)
    order = [loaded[device] for device in sharding.addressable_devices_indices_map(like.shape)]
    return jax.make_array_from_single_device_arrays(like.shape, sharding, order)


def _fill(source: ArraySource, bounds: tuple[tuple[int, int], ...], dtype: np.dtype[Any],
          devices: list[Any]) -> dict[Any, jax.Array]:
    """One shard, on every device that has it."""
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
    for begin, values in read_blocks(source, first, last):
        part = values[(slice(None), *rest)].astype(dtype, copy=False)
        for device in devices:
            filled[device] = _write_rows(filled[device], _put(part, device), begin - first)
            filled[device].block_until_ready()  # or blocks pile up faster than they are written
    return filled


def _fill_in_place(source: ArraySource, first: int, filled: list[jax.Array]) -> None:
    """Read rows from `first` on into host arrays that no other code has seen yet."""
    one, *others = (view(array.unsafe_buffer_pointer(), array.shape, np.dtype(array.dtype))
                    for array in jax.block_until_ready(filled))

    def read(bounds: tuple[int, int]) -> None:
        rows = slice(bounds[0] - first, bounds[1] - first)
        source.read_into(one[rows], bounds[0])
        for other in others:
            other[rows] = one[rows]

    with ThreadPoolExecutor(READ_AHEAD + 1) as pool:
        list(pool.map(read, block_ranges(source, first, first + len(one))))


def _put(values: np.ndarray, device: Any) -> jax.Array:
    # A copy: on a CPU the device would otherwise share memory that is about to be overwritten.
    return jax.device_put(np.ascontiguousarray(values).reshape(values.shape), device,
                          may_alias=False)


def _zeros(shape: tuple[int, ...], dtype: Any, device: Any) -> jax.Array:
    return jax.jit(partial(jnp.zeros, shape, dtype),
                   out_shardings=SingleDeviceSharding(device))()


@partial(jax.jit, donate_argnums=0)
def _write_rows(whole: jax.Array, part: jax.Array, first: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=0)
