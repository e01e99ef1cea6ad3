"""Compaction of a delta: every leaf is read through its chain and written in full, in blocks.

The full checkpoint is written into a folder of its own, which the writing process locks, and gets
the name `step_N.full` when it is complete. A reader prefers this name to the delta's, so from then
on the step has one checkpoint, whether the delta could be removed or not.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rec_jax import files, locks
from rec_jax.checkpoint.array_source import ArraySource, read_blocks
from rec_jax.checkpoint.block_writer import BlockWriter
from rec_jax.checkpoint.index import Leaf, write_info, write_leaves
from rec_jax.checkpoint.layout import (
    ARRAYS,
    INFO,
    LEAVES,
    MANIFEST,
    PACKED,
    PACKED_BYTES,
    block_rows,
    compacted_name,
)
from rec_jax.checkpoint.manifest import write_file, write_manifest
from rec_jax.checkpoint.reader import CheckpointReader
from rec_jax.checkpoint.removal import folder_lock, remove_compacted


def write_full(folder: Path, delta: CheckpointReader) -> None:
    """Write the leaves of a delta without a base as `step_N.full`, complete or not at all.

    Where another process compacted or replaced the delta meanwhile, nothing changes.

    Raises:
      OSError: as the system says.
    """
    final = folder / compacted_name(delta.info.step)
    with ExitStack() as stack:
        with folder_lock(folder):  # until it is locked, the new folder looks abandoned
            temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=folder))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            stack.enter_context(locks.locked(temporary))
        full = temporary / "whole"
        full.mkdir()
        for name, sources in delta.items.items():
            _write_item(full / name, sources)
        write_file(full / INFO, write_info(dataclasses.replace(delta.info, base=None)))
        write_manifest(full)
        with folder_lock(folder):
            if not final.exists() and delta.pin.is_of(delta.path / MANIFEST):
                os.rename(full, final)
                files.flush(folder)
            delta.pin.close()
            remove_compacted(folder)


def _write_item(folder: Path, sources: dict[str, ArraySource]) -> None:
    folder.mkdir()
    leaves, offset = [], 0
    with (folder / PACKED).open("wb") as packed:
        for number, (path, source) in enumerate(sources.items()):
            shape, dtype = source.shape, source.dtype
            nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if nbytes <= PACKED_BYTES:
                leaves.append(Leaf(path, dtype.name, shape, "packed", offset=offset))
                offset += packed.write(
                    source.read(0, shape[0] if shape else 1).tobytes())
                continue
            leaf = Leaf(path, dtype.name, shape, "array",
                        block=block_rows(shape[0], nbytes // shape[0]))
            leaves.append(leaf)
            with BlockWriter(folder / ARRAYS / str(number), shape, dtype.name,
                             leaf.block) as writer:
                for first, values in read_blocks(source):
                    writer.write(first, values)
    write_file(folder / LEAVES, write_leaves(leaves))
