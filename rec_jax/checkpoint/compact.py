"""A delta made full: every leaf is read through its chain and written whole, block by block."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np

from rec_jax.checkpoint.blocks import flush
from rec_jax.checkpoint.layout import (
    ARRAYS,
    INFO,
    LEAVES,
    PACKED,
    PACKED_BYTES,
    Info,
    Leaf,
    block_rows,
    compacted_name,
    write_info,
    write_leaves,
)
from rec_jax.checkpoint.read import Source, blocks
from rec_jax.checkpoint.seal import write_file, write_seal
from rec_jax.checkpoint.write import BlockWriter


def write_full(folder: Path, info: Info, items: dict[str, dict[str, Source]]) -> None:
    """Write the leaves of a delta without a base as `step_N.full`, complete or not at all."""
    final = folder / compacted_name(info.step)
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, sources in items.items():
            _write_item(temporary / name, sources)
        write_file(temporary / INFO, write_info(dataclasses.replace(info, base=None)))
        write_seal(temporary)
        os.rename(temporary, final)
        flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_item(folder: Path, sources: dict[str, Source]) -> None:
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
                for first, values in blocks(source):
                    writer.write(first, values)
    write_file(folder / LEAVES, write_leaves(leaves))
