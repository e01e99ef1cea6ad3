"""Checkpoints of a run: saved behind the training, complete or absent, restored bit for bit.

A checkpoint is a few named pytrees of arrays and one JSON object beside them. A reader takes the
pytrees, or the rows, that it needs: evaluation and export never read the optimizer. What is
promised, and against what, is in `docs/durability.md`.

    layout       files and their index
    seal         sizes and hashes, flushing, the rename
    hold         the state of one moment, kept while it is written: copied, frozen or waited for
    snapshot     memory frozen by a forked process
    memory       views of arrays that live in host memory
    write        blocks to the disk, run by orbax
    read         ranges of rows, and onto devices of any mesh
    reorder      rows in another order than the file's
    keep         which checkpoints stay
    delta        the rows that changed since another checkpoint
    opened       a checkpoint as it is read
    remove       taking checkpoints away beside readers, and what killed processes left
    compact      a delta made full
"""

from rec_jax.checkpoint.checkpoints import COPY_BYTES, Checkpoints
from rec_jax.checkpoint.delta import touched_rows
from rec_jax.checkpoint.keep import best_step
from rec_jax.checkpoint.layout import Damaged, Info, Missing
from rec_jax.checkpoint.opened import Opened
from rec_jax.checkpoint.read import Source, blocks
from rec_jax.checkpoint.reorder import lay_rows, ordered_blocks
from rec_jax.checkpoint.write import Touched

__all__ = ["COPY_BYTES", "Checkpoints", "Damaged", "Info", "Missing", "Opened", "Source", "Touched",
           "best_step", "blocks", "lay_rows", "ordered_blocks", "touched_rows"]
