"""Staging: how the values of one step are kept while they are written to the disk.

    copied        on their devices; the training goes on. This costs their size in the devices'
                  memory.
    snapshot      a forked child keeps the arrays in host memory; the training goes on. This costs
                  the memory that the training changes meanwhile.
    not staged    the caller writes them before the training goes on. This costs no memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.checkpoint.layout import PACKED_BYTES
from rec_jax.checkpoint.memory import in_host_memory, view
from rec_jax.checkpoint.row_ranges import RowRanges
from rec_jax.checkpoint.snapshot import Snapshot, take_snapshot
from rec_jax.devices import free_host_memory

COPY_BYTES = 256 * 2**20
"""Largest state that is copied in host memory by default; a larger one gets a snapshot."""
DEVICE_SHARE = 0.8
"""Share of the free memory of an accelerator, or of the host, that a save may take."""


class Shard(NamedTuple):
    """A shard that this process writes: index into the whole array, and the data."""

    where: tuple[slice, ...]
    data: Any


@dataclass(frozen=True)
class HostBuffer:
    """An array at an address of this process, row by row.

    snapshot: it writes the array; None: the array is still there and does not change.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    snapshot: Snapshot | None = None

    def rows(self, first: int, size: int) -> np.ndarray:
        """Rows of an array that is still there."""
        if self.snapshot is not None:
            raise ValueError("this array is in a snapshot; it can only be written")
        return view(self._at(first), (size, *self.shape[1:]), self.dtype)

    def write(self, path: Path, first: int, size: int) -> None:
        """Write rows as the snapshot has them, as a block that is not yet flushed; only once."""
        if self.snapshot is None:
            raise ValueError("there is no snapshot of this array")
        self.snapshot.write(path, self._at(first), size * self._row_bytes)

    def _at(self, first: int) -> int:
        return self.address + first * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Staged(NamedTuple):
    """Values that do not change until they are written.

    values: one for each leaf; in_background: the training may go on meanwhile; snapshot: it must
    be closed when all is written.
    """

    values: list[Any]
    in_background: bool
    snapshot: Snapshot | None = None


def stage(values: list[Any], *, copy_bytes: int, moving: float,
          growth_bytes: float = math.inf) -> Staged:
    """Stage the leaves of a state; each is a `jax.Array`, a host array, `RowRanges`, or owned by
    the save.

    copy_bytes: up to so many bytes in host memory are copied, and no snapshot is taken; leaves
      that a snapshot cannot keep, such as arrays cut by columns, are always copied.
    moving: share of the snapshot that may change until it is written; there must be room for it.
    growth_bytes: the most bytes that this share may have, whatever the room.
    """
    if any(isinstance(value, RowRanges) for value in values):
        # They are read while they are written, so nothing may change them meanwhile.
        return Staged([_in_place(value, None) for value in values], in_background=False)
    needed, on_host = _device_bytes(values), _host_bytes(values)
    if any(size > _free_device_memory(device) for device, size in needed.items()
           if device.platform != "cpu"):
        return Staged([_in_place(value, None) for value in values], in_background=False)
    if on_host <= copy_bytes:
        return Staged([_copy(value) for value in values], in_background=True)
    jax.block_until_ready([value for value in values if isinstance(value, jax.Array)])
    in_snapshot = _host_bytes([value for value in values if _is_large(value)])
    growth = moving * in_snapshot + on_host - in_snapshot
    room = min(growth_bytes, DEVICE_SHARE * _free_host_memory())
    snapshot = take_snapshot() if growth <= room else None
    if snapshot is None:
        return Staged([_in_place(value, None) for value in values], in_background=False)
    try:
        return Staged([_in_place(value, snapshot) if _is_large(value) else _copy(value)
                     for value in values], in_background=True, snapshot=snapshot)
    except BaseException:
        snapshot.close()
        raise


def local_shards(value: Any) -> list[Shard]:
    """The shards of a leaf that this process writes."""
    if isinstance(value, list):
        return value
    if isinstance(value, jax.Array):
        return [Shard(shard.index, shard.data) for shard in value.addressable_shards
                if shard.replica_id == 0]
    return [Shard((slice(None),) * value.ndim, value)]


def host_rows(data: Any, first: int, size: int) -> np.ndarray:
    """Some rows of a shard on the host."""
    if isinstance(data, HostBuffer):
        return data.rows(first, size)
    if isinstance(data, RowRanges):
        return data.read(first, first + size)
    if isinstance(data, np.ndarray):
        return data[first:first + size]
    return np.asarray(_slice(data, first, size))


def _device_bytes(values: list[Any]) -> dict[Any, int]:
    """Bytes that this process writes, by device."""
    found: dict[Any, int] = {}
    for value in values:
        if isinstance(value, jax.Array):
            for shard in local_shards(value):
                device = shard.data.device
                found[device] = found.get(device, 0) + shard.data.nbytes
    return found


def _host_bytes(values: list[Any]) -> int:
    """Bytes of those that lie in host memory."""
    return sum(size for device, size in _device_bytes(values).items()
               if device.platform == "cpu")


def _copy(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return [Shard(shard.where, jnp.copy(shard.data)) for shard in local_shards(value)]
    return np.array(value) if isinstance(value, np.ndarray) else value


def _is_large(value: Any) -> bool:
    """Whether a snapshot keeps it: it lies in host memory, row by row, in whole rows."""
    return (isinstance(value, jax.Array) and value.ndim > 0 and value.nbytes > PACKED_BYTES
            and all(in_host_memory(shard.data) and shard.data.shape[1:] == value.shape[1:]
                    for shard in local_shards(value)))


def _in_place(value: Any, snapshot: Snapshot | None) -> Any:
    """A large leaf by its address: a reference would prevent a step from changing it in place.

    Other leaves are returned as they are.
    """
    if not _is_large(value):
        return value
    return [Shard(shard.where, HostBuffer(shard.data.unsafe_buffer_pointer(), shard.data.shape,
                                        np.dtype(shard.data.dtype), snapshot))
            for shard in local_shards(value)]


def _free_device_memory(device: Any) -> float:
    stats = device.memory_stats() or {}
    return DEVICE_SHARE * (stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))


def _free_host_memory() -> int:
    """Free bytes of the host; 0 where the system does not say."""
    return free_host_memory() or 0


@partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, first: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(data, first, size)
