"""Checkpoints of a run: written in the background, complete or absent, restored bit for bit.

A checkpoint is a few named pytrees of arrays and one JSON object beside them. A reader takes the
pytrees, or the rows, that it needs: evaluation and export never read the optimizer. What is
promised, and against what, is in `docs/durability.md`.

    checkpoints    the checkpoints of a folder: save, retain, compact, and all of `folder`
    folder         finding and reading the checkpoints of a folder
    saver          one save at a time, run by orbax
    save_handler   the files of one checkpoint
    block_writer   an array in blocks, a few at a time
    staging        the values of one step, kept while they are written
    snapshot       memory of one moment, kept by a forked process
    reader         one checkpoint as it is read
    array_source   ranges of rows, also through a chain of deltas
    load           arrays onto the devices of any mesh
    reorder        rows in another order than the file's
    delta          the rows that changed since another checkpoint
    compact        a delta made full
    retention      which checkpoints stay
    removal        removing checkpoints while others read, and what killed processes left
    manifest       sizes and hashes of all files, flushing, the rename
    layout, index  names on the disk, and the index of a checkpoint
    blocks, memory one block as a file; arrays in host memory
"""

from rec_jax.checkpoint.array_source import ArraySource, read_blocks
from rec_jax.checkpoint.checkpoints import Checkpoints
from rec_jax.checkpoint.delta import updated_rows
from rec_jax.checkpoint.errors import Damaged, Missing
from rec_jax.checkpoint.index import CheckpointInfo
from rec_jax.checkpoint.reader import CheckpointReader
from rec_jax.checkpoint.reorder import ordered_blocks, scatter_rows
from rec_jax.checkpoint.retention import best_step
from rec_jax.checkpoint.staging import COPY_BYTES

__all__ = ["COPY_BYTES", "ArraySource", "CheckpointInfo", "CheckpointReader", "Checkpoints",
           "Damaged", "Missing", "best_step", "ordered_blocks", "read_blocks", "scatter_rows",
           "updated_rows"]
