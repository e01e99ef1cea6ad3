"""One named mesh for everything: `("data", "items")`; a laptop is the 1 x 1 mesh.

Batches are cut over both axes, table rows over `items`: row shards of one `data` group form the
whole table, and every group holds the same one. Rows of a streamed table are cut over both axes,
since every device would otherwise make the same gradient as its like in the other groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rec_jax.errors import InputError, first_line
from rec_jax.ranges import at_least, check

DATA, ITEMS = "data", "items"
BOTH = (DATA, ITEMS)
Axes = tuple[str, ...]


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; `data * items` of them are used.

    data: groups that hold a whole table each and split the batch.
    items: shards of the table's rows within a group; they split the batch further.
    """

    data: int = 1
    items: int = 1

    def __post_init__(self) -> None:
        check(self, "mesh.", data=at_least(1, 2**20), items=at_least(1, 2**20))

    def __str__(self) -> str:
        return f"{self.data}x{self.items}"


def start_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Join the processes of a multi-host run (`jax.distributed`); call it before any other use
    of JAX.

    coordinator: `host:port` of process 0; count, index: processes, and which one this is. All
    None on a cluster that JAX knows (SLURM, TPU pods, Kubernetes, MPI), which tells them.

    Raises:
      InputError: the values contradict each other, or no process could be joined.
    """
    given = [coordinator is not None, count is not None, index is not None]
    if any(given) and not all(given):
        raise InputError("a multi-host run needs all of coordinator, processes and process, or "
                         "none of them on a cluster that JAX detects")
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(f"process {index} of {count}; expected 0 to {count - 1}")
    try:
        jax.distributed.initialize(coordinator_address=coordinator, num_processes=count,
                                   process_id=index)
    except (ValueError, RuntimeError) as error:
        raise InputError("the processes of the run cannot be joined: "
                         f"{first_line(error)}") from None


def is_first() -> bool:
    """Whether this process writes and speaks for all; one that is alone opens no device to say."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def parse_mesh(text: str) -> MeshConfig:
    """`1x8`: data x items.

    Raises:
      InputError: it is no such text.
    """
    found = re.fullmatch(r"(\d{1,7})x(\d{1,7})", text.strip())
    if found is None:
        raise InputError(f"mesh is {text!r}; expected DATAxITEMS, such as 1x8")
    return MeshConfig(int(found[1]), int(found[2]))


def fit_mesh(wanted: MeshConfig, divides: Callable[[MeshConfig], bool]) -> MeshConfig:
    """`wanted` where the devices here form it, or else the one that is most like it.

    Rows are cut into as many pieces as `wanted` does, or, with several processes, which must all
    take part, into the next larger number; where that cannot be, into as many as can be.

    divides: whether a mesh cuts the table's rows evenly.

    Raises:
      InputError: no mesh of all devices does.
    """
    several, count = jax.process_count() > 1, jax.device_count()
    needed = wanted.data * wanted.items
    if needed == count or (needed < count and not several):
        return wanted
    meshes = ([MeshConfig(count // items, items) for items in range(1, count + 1)
               if count % items == 0] if several else
              [MeshConfig(min(wanted.data, count // items), items)
               for items in range(1, min(wanted.items, count) + 1)])
    possible = [mesh for mesh in meshes if divides(mesh)]
    if not possible:
        raise InputError(f"the rows of the table cannot be cut evenly over the {count} devices of "
                         f"{jax.process_count()} processes; expected 2^a or 3 * 2^a devices")
    enough = [mesh for mesh in possible if mesh.items >= wanted.items]
    return enough[0] if enough else possible[-1]


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of `config` over the devices of all processes.

    Devices that are neighbours in hardware become neighbours along `items`, where most of the
    traffic is.

    Raises:
      InputError: more devices are asked for than there are, or, with several processes, fewer:
        a process without a device in the mesh cannot take part.
    """
    needed, devices = config.data * config.items, jax.devices()
    several = jax.process_count() > 1
    if needed > len(devices) or (several and needed != len(devices)):
        raise InputError(
            f"mesh.data = {config.data} times mesh.items = {config.items} needs {needed} "
            f"devices; expected {'exactly' if several else 'at most'} {len(devices)} "
            f"({devices[0].platform}, {jax.process_count()} process(es))")
    shape = (config.data, config.items)
    grid = (mesh_utils.create_device_mesh(shape, devices) if needed == len(devices)
            else np.asarray(devices[:needed]).reshape(shape))
    return Mesh(grid, BOTH, axis_types=(AxisType.Auto, AxisType.Auto))


def device_memory(mesh: Mesh) -> float | None:
    """Bytes of the smallest device of `mesh` here; None where they have the host's memory."""
    sizes = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices
             if device.platform != "cpu"]
    known = [float(size) for size in sizes if size]
    return min(known, default=None)


def row_sharding(mesh: Mesh, over: Axes = (ITEMS,)) -> NamedSharding:
    """Arrays `[V_padded, ...]`: contiguous row ranges over the axes `over`; over `items` alone
    they are the same in every group."""
    # An axis of one device cuts nothing. XLA leaves it out of what it returns, and a state whose
    # placement has another form than the last step's would have the step compiled again.
    cutting = tuple(axis for axis in over if mesh.shape[axis] > 1)
    return NamedSharding(mesh, PartitionSpec(cutting) if cutting else PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays of a batch: dimension `axis` over both mesh axes."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BOTH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def island(body: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any, *,
           check: bool = False) -> Callable[..., Any]:
    """`body` under `shard_map`, or as it is on one device."""
    if mesh.size == 1:
        return body
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs,
                         check_vma=check)
