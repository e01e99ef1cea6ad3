"""How the values of one moment are held while they are written to the disk.

    copied      on their devices; the training goes on. Costs their size in the devices' memory.
    frozen      arrays in host memory, by a forked child; the training goes on. Costs what it
                changes meanwhile.
    waited for  the caller writes them before it lets the training go on. Costs nothing.
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
from rec_jax.checkpoint.snapshot import Snapshot, take_snapshot
from rec_jax.devices import free_on_host

DEVICE_SHARE = 0.8
"""Share of the free memory of an accelerator, or of the host, that a save may take."""


class Shard(NamedTuple):
    """A shard that this process writes: index into the whole array, and the data."""

    where: tuple[slice, ...]
    data: Any


@dataclass(frozen=True)
class InMemory:
    """An array that lies at an address of this process, row by row.

    snapshot: who writes it; None: it is still there, and does not change.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    snapshot: Snapshot | None = None

    def rows(self, first: int, size: int) -> np.ndarray:
        """Of an array that is still there."""
        if self.snapshot is not None:
            raise ValueError("this array is frozen; it can only be written")
        return view(self._at(first), (size, *self.shape[1:]), self.dtype)

    def write(self, path: Path, first: int, size: int) -> None:
        """Rows as the snapshot has them, as a block that is not yet flushed; once."""
        if self.snapshot is None:
            raise ValueError("there is no snapshot of this array")
        self.snapshot.write(path, self._at(first), size * self._row_bytes)

    def _at(self, first: int) -> int:
        return self.address + first * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Held(NamedTuple):
    """values: what to write each leaf from; behind: the training may go on meanwhile.

    snapshot: to be closed when all is written.
    """

    values: list[Any]
    behind: bool
    snapshot: Snapshot | None = None


def hold(values: list[Any], *, copy_bytes: int, moving: float,
         growth_bytes: float = math.inf) -> Held:
    """Hold the leaves of a state; each is a `jax.Array`, a host array, or owned by the save.

    copy_bytes: up to so many in host memory are copied rather than frozen; what cannot be frozen,
      such as arrays cut by columns, always is.
    moving: share of what is frozen that may change until it is written; there has to be room.
    growth_bytes: the most that this may come to, whatever the room.
    """
    needed, on_host = _device_bytes(values), _host_bytes(values)
    if any(size > _free(device) for device, size in needed.items() if device.platform != "cpu"):
        return Held([_in_place(value, None) for value in values], behind=False)
    if on_host <= copy_bytes:
        return Held([_copy(value) for value in values], behind=True)
    jax.block_until_ready([value for value in values if isinstance(value, jax.Array)])
    frozen = _host_bytes([value for value in values if _is_large(value)])
    growth = moving * frozen + on_host - frozen
    room = min(growth_bytes, DEVICE_SHARE * _free_on_host())
    snapshot = take_snapshot() if growth <= room else None
    if snapshot is None:
        return Held([_in_place(value, None) for value in values], behind=False)
    try:
        return Held([_in_place(value, snapshot) if _is_large(value) else _copy(value)
                     for value in values], behind=True, snapshot=snapshot)
    except BaseException:
        snapshot.close()
        raise


def shards(value: Any) -> list[Shard]:
    """What this process writes of a leaf."""
    if isinstance(value, list):
        return value
    if isinstance(value, jax.Array):
        return [Shard(shard.index, shard.data) for shard in value.addressable_shards
                if shard.replica_id == 0]
    return [Shard((slice(None),) * value.ndim, value)]


def rows(data: Any, first: int, size: int) -> np.ndarray:
    """Some rows of a shard on the host."""
    if isinstance(data, InMemory):
        return data.rows(first, size)
    if isinstance(data, np.ndarray):
        return data[first:first + size]
    return np.asarray(_slice(data, first, size))


def _device_bytes(values: list[Any]) -> dict[Any, int]:
    """Bytes that this process writes, by the device that has them."""
    found: dict[Any, int] = {}
    for value in values:
        if isinstance(value, jax.Array):
            for shard in shards(value):
                device = shard.data.device
                found[device] = found.get(device, 0) + shard.data.nbytes
    return found


def _host_bytes(values: list[Any]) -> int:
    """Of those, what lies in host memory."""
    return sum(size for device, size in _device_bytes(values).items()
               if device.platform == "cpu")


def _copy(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return [Shard(shard.where, jnp.copy(shard.data)) for shard in shards(value)]
    return np.array(value) if isinstance(value, np.ndarray) else value


def _is_large(value: Any) -> bool:
    """Whether a snapshot is to hold it: an array in host memory, row by row, of whole rows."""
    return (isinstance(value, jax.Array) and value.ndim > 0 and value.nbytes > PACKED_BYTES
            and all(in_host_memory(shard.data) and shard.data.shape[1:] == value.shape[1:]
                    for shard in shards(value)))


def _in_place(value: Any, snapshot: Snapshot | None) -> Any:
    """The leaf read from where it lies, without a reference that would keep a step from
    changing it in place; as it is, where it lies elsewhere than in host memory."""
    if not _is_large(value):
        return value
    return [Shard(shard.where, InMemory(shard.data.unsafe_buffer_pointer(), shard.data.shape,
                                        np.dtype(shard.data.dtype), snapshot))
            for shard in shards(value)]


def _free(device: Any) -> float:
    stats = device.memory_stats() or {}
    return DEVICE_SHARE * (stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))


def _free_on_host() -> int:
    """Bytes that the host can still give; 0 where nobody says."""
    return free_on_host() or 0


@partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, first: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(data, first, size)
