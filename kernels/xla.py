"""The `xla` backend: plain JAX scans. The default on CPU and the fallback everywhere."""

from __future__ import annotations

from .primitives import Backend, Problem
from .xla_rank import label_scores, rank_count, top_k
from .xla_softmax import forward, item_grad, item_update


def refuses(problem: Problem) -> str | None:
    """Never."""
    del problem
    return None


BACKEND = Backend("xla", refuses, forward, item_grad, item_update, label_scores, rank_count,
                  top_k)
