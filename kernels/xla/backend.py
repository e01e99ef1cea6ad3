"""The `xla` backend: plain JAX scans. The default on CPU and the fallback everywhere."""

from __future__ import annotations

from functools import partial

from ..primitives import Backend, Problem
from .rank import label_scores, rank_count, top_k
from .softmax import forward, item_grad, item_update
from .tiles import DEFAULT, Sizes


def refuses(problem: Problem) -> str | None:
    """Never."""
    del problem
    return None


def make_backend(sizes: Sizes = DEFAULT) -> Backend:
    """The backend with tiles of other sizes than the default; keep it, it keys traces."""
    return Backend(
        "xla", refuses, partial(forward, sizes=sizes), partial(item_grad, sizes=sizes),
        partial(item_update, sizes=sizes), partial(label_scores, sizes=sizes),
        partial(rank_count, sizes=sizes), partial(top_k, sizes=sizes),
        partial(forward, sizes=sizes, with_moment=True), partial(item_grad, sizes=sizes),
        partial(item_update, sizes=sizes))


BACKEND = make_backend()
