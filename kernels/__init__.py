"""Streaming folds over the rows of a catalogue: loss, update, rank and retrieval.

Nothing here builds an array of queries x items. Knows arrays only; imports nothing from the
rest of the project. `docs/kernels.md` explains the mathematics and the backends.
"""

from .dispatch import BACKENDS, PREFERENCE, describe, explain
from .exclusion import Exclude
from .parts import Folded, fold_part, loss_of_parts, no_part, softmax_in_parts
from .primitives import Backend, Problem, RowUpdate, SparseRows
from .rank import count_ahead, target_rank, target_scores
from .sampling import sample
from .softmax import softmax_entropy, softmax_loss
from .topk import join_top_k, top_k
from .update import Updated, softmax_item_update

__all__ = [
    "BACKENDS",
    "PREFERENCE",
    "Backend",
    "Exclude",
    "Folded",
    "Problem",
    "RowUpdate",
    "SparseRows",
    "Updated",
    "count_ahead",
    "describe",
    "explain",
    "fold_part",
    "join_top_k",
    "loss_of_parts",
    "no_part",
    "sample",
    "softmax_entropy",
    "softmax_in_parts",
    "softmax_item_update",
    "softmax_loss",
    "target_rank",
    "target_scores",
    "top_k",
]
