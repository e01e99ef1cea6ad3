"""The files of one checkpoint: each process writes the shards of its own devices.

Orbax runs the save (temporary folder, barrier of all processes, commit in the background, rename)
and calls the handler here for the bytes. The state is staged (see `staging`) and streamed to the
disk in the background. Where there is no room to stage it, the blocks are written before `save`
returns: the training waits, and memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from rec_jax.checkpoint.block_writer import BlockWriter, rows_per_block, write_array
from rec_jax.checkpoint.delta import UpdatedRows
from rec_jax.checkpoint.index import CheckpointInfo, Leaf, write_info, write_leaves
from rec_jax.checkpoint.layout import ARRAYS, INFO, LEAVES, PACKED, PACKED_BYTES, block_rows
from rec_jax.checkpoint.manifest import write_file
from rec_jax.checkpoint.row_ranges import RowRanges
from rec_jax.checkpoint.snapshot import Snapshot
from rec_jax.checkpoint.staging import HostBuffer, Staged, host_rows, local_shards


class SaveRequest(NamedTuple):
    """items: pytrees by name, of arrays or `UpdatedRows`; stage: how their leaves are staged."""

    items: Mapping[str, Any]
    info: CheckpointInfo
    stage: Callable[[list[Any]], Staged]


class StateHandler(ocp.AsyncCheckpointHandler):
    """Writes the items of one checkpoint into the folder that orbax made."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    async def async_save(self, directory: Any, args: Any) -> list[Any]:
        request: SaveRequest = args.request
        folder = Path(directory)
        planned = {name: _plan_item(tree) for name, tree in request.items.items()}
        writes = [write for _, own in planned.values() for write in own]
        staged = request.stage([write.value for write in writes])
        for write, value in zip(writes, staged.values, strict=True):
            write.value = value
        work = partial(_write_staged, staged.snapshot, folder, planned, request.info)
        if staged.in_background:
            return [self._thread.submit(work)]
        work()
        return []

    def save(self, directory: Any, args: Any) -> None:
        raise NotImplementedError("saving is asynchronous")

    def restore(self, directory: Any, args: Any = None) -> Any:
        raise NotImplementedError("checkpoints are read by rec_jax.checkpoint.reader")

    def finalize(self, directory: Any) -> None:
        pass

    def close(self) -> None:
        self._thread.shutdown()


@ocp.args.register_with_handler(StateHandler, for_save=True, for_restore=True)
@dataclass
class StateSave(ocp.args.CheckpointArgs):
    """What orbax hands to the handler."""

    request: SaveRequest


@dataclass
class _LeafWrite:
    """One leaf, and the value that is written: first the array, then what is staged of it."""

    leaf: Leaf
    value: Any


def _plan_item(tree: Any) -> tuple[str, list[_LeafWrite]]:
    """The index of an item, and the writes of its leaves."""
    writes, offset = [], 0
    tree = jax.tree.map(_written, tree, is_leaf=lambda x: isinstance(x, UpdatedRows))
    paths = jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, UpdatedRows))
    for path, value in paths:
        name = jax.tree_util.keystr(path)
        if isinstance(value, UpdatedRows):
            count = len(value.ids)
            row_bytes = value.rows[:1].nbytes if count else 1
            leaf = Leaf(name, value.dtype, tuple(value.shape), "touched",
                        block=rows_per_block(count, row_bytes), count=count,
                        stored=np.dtype(value.rows.dtype).name)
            writes.append(_LeafWrite(leaf, value))
            continue
        shape, dtype = tuple(value.shape), np.dtype(value.dtype).name
        if _is_small(value):
            writes.append(_LeafWrite(Leaf(name, dtype, shape, "packed", offset=offset), value))
            offset += value.nbytes
        else:
            shard_rows = (value.sharding.shard_shape(shape)
                          if isinstance(value, jax.Array) else shape)[0]
            block = block_rows(shard_rows, value.nbytes // shape[0])
            writes.append(_LeafWrite(Leaf(name, dtype, shape, "array", block=block), value))
    return write_leaves([write.leaf for write in writes]), writes


def _written(value: Any) -> Any:
    """A leaf as it will be staged: what has no array in memory gets one if it is small."""
    if isinstance(value, RowRanges) and _is_small(value):
        value = value.read(0, value.shape[0])
    return value if isinstance(value, UpdatedRows | jax.Array | RowRanges) else _native(value)


def _native(value: Any) -> np.ndarray:
    """A host array in this machine's order of bytes, which is the disk's."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_small(value: Any) -> bool:
    has_all = not isinstance(value, jax.Array) or value.is_fully_replicated \
        or jax.process_count() == 1
    return (value.nbytes <= PACKED_BYTES and has_all) or value.ndim == 0 or value.size == 0


Plan = Mapping[str, tuple[str, list[_LeafWrite]]]
"""Of each item its index and its writes."""


def _write_staged(snapshot: Snapshot | None, folder: Path, planned: Plan,
                  info: CheckpointInfo) -> None:
    try:
        _write_all(folder, planned, info)
    finally:
        if snapshot is not None:
            snapshot.close()


def _write_all(folder: Path, planned: Plan, info: CheckpointInfo) -> None:
    first = jax.process_index() == 0
    for name, (index, writes) in planned.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        if first:
            write_file(own / LEAVES, index)
            with (own / PACKED).open("wb") as file:
                for write in writes:
                    if write.leaf.store == "packed":
                        file.write(_host_values(write).tobytes())
        for number, write in enumerate(writes):
            target = own / ARRAYS / str(number)
            if write.leaf.store == "array":
                _write_shards(target, write.leaf, write.value)
            elif write.leaf.store == "touched" and first:
                _write_updated(target, write.leaf, write.value)
            write.value = None  # its copy can be freed
    if first:
        write_file(folder / INFO, write_info(info))


def _host_values(write: _LeafWrite) -> np.ndarray:
    """All values of a small leaf."""
    parts = local_shards(write.value)
    if len(parts) == 1:
        return np.asarray(parts[0].data)
    whole = np.empty(write.leaf.shape, parts[0].data.dtype)
    for shard in parts:
        whole[shard.where] = np.asarray(shard.data)
    return whole


def _write_shards(target: Path, leaf: Leaf, value: Any) -> None:
    with BlockWriter(target, leaf.shape, leaf.dtype, leaf.block) as writer:
        for shard in local_shards(value):
            start, count = shard.where[0].start or 0, shard.data.shape[0]
            for first in range(0, count, leaf.block):
                if isinstance(shard.data, HostBuffer) and shard.data.snapshot is not None:
                    writer.write_snapshot(start + first, shard.data, first)
                else:
                    size = min(leaf.block, count - first)
                    writer.write(start + first, host_rows(shard.data, first, size), shard.where[1:])


def _write_updated(target: Path, leaf: Leaf, updated: UpdatedRows) -> None:
    if not leaf.count:
        return
    parts: list[tuple[str, np.ndarray]] = [("", updated.rows), (".rows", updated.ids)]
    if updated.scale is not None:
        parts.append((".scale", updated.scale))
    for suffix, values in parts:
        write_array(target.with_name(target.name + suffix), values, leaf.block)
