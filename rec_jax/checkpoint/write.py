"""Writing arrays: each device's shard in blocks of rows, by the process that holds it.

Orbax runs the save (temporary folder, waiting for all processes, background commit, rename) and
calls the handler here for the bytes. The state is held as it is (see `hold`) and streamed to disk
behind the training, at most `IN_FLIGHT` blocks at a time. Where there is no room to hold it, the
blocks are written before `save` returns: the training waits, and memory stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from rec_jax.checkpoint.blocks import block_path, flush, write_rows
from rec_jax.checkpoint.hold import Held, InMemory, rows, shards
from rec_jax.checkpoint.layout import (
    ARRAYS,
    BLOCK_BYTES,
    INFO,
    LEAVES,
    PACKED,
    PACKED_BYTES,
    Info,
    Leaf,
    array_spec,
    block_rows,
    write_info,
    write_leaves,
)
from rec_jax.checkpoint.seal import write_file
from rec_jax.checkpoint.snapshot import Snapshot

IN_FLIGHT = 4
"""Blocks that are on their way to the disk at once."""


class Touched(NamedTuple):
    """Rows of an array `[V, ...]` that changed: a leaf of a delta.

    ids: int `[T]`, ascending; rows: `[T, ...]`; shape: of the whole array; scale: f32 `[T]` where
    the rows are int8 to be multiplied by it, else None; dtype: of the whole array.
    """

    ids: np.ndarray
    rows: np.ndarray
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray | None = None


class HandlerArgs(NamedTuple):
    """items: pytrees by name, of arrays or `Touched`; hold: how their leaves are held."""

    items: Mapping[str, Any]
    info: Info
    hold: Callable[[list[Any]], Held]


class StateHandler(ocp.AsyncCheckpointHandler):
    """Writes the items of one checkpoint into the folder that orbax made."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    async def async_save(self, directory: Any, args: Any) -> list[Any]:
        given: HandlerArgs = args.given
        folder = Path(directory)
        planned = {name: _plan(tree) for name, tree in given.items.items()}
        writes = [leaf for _, own in planned.values() for leaf in own]
        held = given.hold([write.source for write in writes])
        for write, value in zip(writes, held.values, strict=True):
            write.source = value
        work = partial(_write_held, held.snapshot, folder, planned, given.info)
        if held.behind:
            return [self._thread.submit(work)]
        work()
        return []

    def save(self, directory: Any, args: Any) -> None:
        raise NotImplementedError("saving is asynchronous")

    def restore(self, directory: Any, args: Any = None) -> Any:
        raise NotImplementedError("checkpoints are read by rec_jax.checkpoint.read")

    def finalize(self, directory: Any) -> None:
        pass

    def close(self) -> None:
        self._thread.shutdown()


@ocp.args.register_with_handler(StateHandler, for_save=True, for_restore=True)
@dataclass
class StateSave(ocp.args.CheckpointArgs):
    """What orbax hands to the handler."""

    given: HandlerArgs


@dataclass
class _Write:
    """One leaf with what it is written from; see `hold`."""

    leaf: Leaf
    source: Any


def _plan(tree: Any) -> tuple[str, list[_Write]]:
    """The index of an item, and its leaves."""
    writes, offset = [], 0
    tree = jax.tree.map(lambda x: x if isinstance(x, Touched | jax.Array) else _native(x),
                        tree, is_leaf=lambda x: isinstance(x, Touched))
    paths = jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Touched))
    for path, value in paths:
        name = jax.tree_util.keystr(path)
        if isinstance(value, Touched):
            count = len(value.ids)
            row_bytes = value.rows[:1].nbytes if count else 1
            writes.append(_Write(Leaf(name, value.dtype, tuple(value.shape), "touched",
                                      block=block_rows_of(count, row_bytes), count=count,
                                      stored=np.dtype(value.rows.dtype).name), value))
            continue
        shape, dtype = tuple(value.shape), np.dtype(value.dtype).name
        if _is_small(value):
            writes.append(_Write(Leaf(name, dtype, shape, "packed", offset=offset), value))
            offset += value.nbytes
        else:
            cut = (value.sharding.shard_shape(shape) if isinstance(value, jax.Array) else shape)[0]
            rows = block_rows(cut, value.nbytes // shape[0])
            writes.append(_Write(Leaf(name, dtype, shape, "array", block=rows), value))
    return write_leaves([write.leaf for write in writes]), writes


def _native(value: Any) -> np.ndarray:
    """A host array in this machine's order of bytes, which is the disk's."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def block_rows_of(count: int, row_bytes: int) -> int:
    """Rows of a block where one process writes all of them: no divisor is needed."""
    return max(1, min(count, BLOCK_BYTES // max(1, row_bytes)))


def _is_small(value: Any) -> bool:
    whole = not isinstance(value, jax.Array) or value.is_fully_replicated \
        or jax.process_count() == 1
    return (value.nbytes <= PACKED_BYTES and whole) or value.ndim == 0 or value.size == 0


def _write_held(snapshot: Snapshot | None, folder: Path,
                planned: Mapping[str, tuple[str, list[_Write]]], info: Info) -> None:
    try:
        _write_all(folder, planned, info)
    finally:
        if snapshot is not None:
            snapshot.close()


def _write_all(folder: Path, planned: Mapping[str, tuple[str, list[_Write]]], info: Info) -> None:
    first = jax.process_index() == 0
    for name, (index, writes) in planned.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        if first:
            write_file(own / LEAVES, index)
            with (own / PACKED).open("wb") as file:
                for write in writes:
                    if write.leaf.store == "packed":
                        file.write(_host(write).tobytes())
        for number, write in enumerate(writes):
            target = own / ARRAYS / str(number)
            if write.leaf.store == "array":
                _write_shards(target, write.leaf, write.source)
            elif write.leaf.store == "touched" and first:
                _write_touched(target, write.leaf, write.source)
            write.source = None  # its copy can go
    if first:
        write_file(folder / INFO, write_info(info))


def _host(write: _Write) -> np.ndarray:
    """A small leaf, whole."""
    parts = shards(write.source)
    if len(parts) == 1:
        return np.asarray(parts[0].data)
    whole = np.empty(write.leaf.shape, parts[0].data.dtype)
    for shard in parts:
        whole[shard.where] = np.asarray(shard.data)
    return whole


def _write_shards(target: Path, leaf: Leaf, source: Any) -> None:
    with BlockWriter(target, leaf.shape, leaf.dtype, leaf.block) as writer:
        for shard in shards(source):
            start, count = shard.where[0].start or 0, shard.data.shape[0]
            for first in range(0, count, leaf.block):
                if isinstance(shard.data, InMemory) and shard.data.snapshot is not None:
                    writer.write_frozen(start + first, shard.data, first)
                else:
                    size = min(leaf.block, count - first)
                    writer.write(start + first, rows(shard.data, first, size), shard.where[1:])


def _write_touched(target: Path, leaf: Leaf, touched: Touched) -> None:
    if not leaf.count:
        return
    parts: list[tuple[str, np.ndarray]] = [("", touched.rows), (".rows", touched.ids)]
    if touched.scale is not None:
        parts.append((".scale", touched.scale))
    for suffix, values in parts:
        write_array(target.with_name(target.name + suffix), values, leaf.block)


def write_array(target: Path, values: np.ndarray, block: int) -> None:
    """A host array `[T, ...]` in blocks of rows."""
    with BlockWriter(target, values.shape, values.dtype.name, block) as writer:
        writer.write(0, values)


class BlockWriter:
    """Writes an array in blocks of rows, at most `IN_FLIGHT` under way; leaving it waits for all.

    Raises, there or at a later write, what the first failed one raised.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, block: int) -> None:
        self._folder, self._shape, self._block = folder, shape, block
        self._store = ts.open(array_spec(folder, shape, dtype, block),
                              create=True, open=True).result()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="blocks")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for one in self._waiting:
                one.result()

    def write(self, first: int, rows: np.ndarray, columns: tuple[slice, ...] = ()) -> None:
        """Rows from `first` on, or only these columns of them; must not change meanwhile."""
        edges = range(first - first % self._block, first + len(rows), self._block)
        for begin in edges:
            low, high = max(begin, first), min(begin + self._block, first + len(rows))
            part = rows[low - first:high - first]
            if part.shape == (self._block, *self._shape[1:]):
                self._submit(write_rows, self._file(begin), part)
            else:
                self._submit(self._write_part, (slice(low, high), *columns), part)

    def write_frozen(self, first: int, data: InMemory, begin: int) -> None:
        """The block from row `first` on, of a frozen shard: from its row `begin` on."""
        path = self._file(first)
        data.write(path, begin, self._block)
        self._submit(flush, path)

    def _file(self, first: int) -> Path:
        path = block_path(self._folder, first // self._block, len(self._shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_part(self, where: tuple[slice, ...], values: np.ndarray) -> None:
        self._store[where].write(values).result()

    def _submit(self, work: Callable[..., None], *args: Any) -> None:
        if len(self._waiting) == IN_FLIGHT:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work, *args))
