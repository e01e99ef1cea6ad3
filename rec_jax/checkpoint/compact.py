"""A delta made full: every leaf is read through its chain and written whole, block by block.

The full one is written as a folder of its own, which its maker locks, and gets the name
`step_N.full` when it is complete. That name goes before the delta's, so that from then on there is
one checkpoint of the step, whether the delta could be removed or not.
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
from rec_jax.checkpoint.layout import (
    ARRAYS,
    INFO,
    LEAVES,
    PACKED,
    PACKED_BYTES,
    SEAL,
    Leaf,
    block_rows,
    compacted_name,
    write_info,
    write_leaves,
)
from rec_jax.checkpoint.opened import Opened
from rec_jax.checkpoint.read import Source, blocks
from rec_jax.checkpoint.remove import changing, settle
from rec_jax.checkpoint.seal import write_file, write_seal
from rec_jax.checkpoint.write import BlockWriter


def write_full(folder: Path, delta: Opened) -> None:
    """Write the leaves of a delta without a base as `step_N.full`, complete or not at all.

    Where the delta was made full by somebody else meanwhile, or replaced, nothing changes.

    Raises:
      OSError: as the system says.
    """
    final = folder / compacted_name(delta.info.step)
    with ExitStack() as held:
        with changing(folder):  # until the new folder is locked, it looks like a killed one's
            temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=folder))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            held.enter_context(locks.locked(temporary))
        whole = temporary / "whole"
        whole.mkdir()
        for name, sources in delta.items.items():
            _write_item(whole / name, sources)
        write_file(whole / INFO, write_info(dataclasses.replace(delta.info, base=None)))
        write_seal(whole)
        with changing(folder):
            if not final.exists() and delta.pin.is_of(delta.path / SEAL):
                os.rename(whole, final)
                files.flush(folder)
            delta.pin.close()
            settle(folder)


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
