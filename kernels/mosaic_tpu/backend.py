"""The TPU backend: Pallas kernels that Mosaic compiles.

`make_backend` also gives the same kernels interpreted, for machines without a TPU.
"""

from __future__ import annotations

import functools
from typing import Any

from ..primitives import Backend, Problem
from . import forward, grad, rank, topk
from .tiles import VMEM_BUDGET, row_bytes
from .update import TEMPORARIES, item_update

FLOATS = {"float32": 4, "bfloat16": 2}


def make_backend(*, interpret: Any = False, budget: int = VMEM_BUDGET) -> Backend:
    """The backend, compiled or interpreted.

    interpret: what `pallas_call` takes: True or a `pltpu.InterpretParams` runs on any device.
    budget: bytes of VMEM that the buffers of one tile may take; a small one gives small tiles.
    """
    given = {"budget": budget, "interpret": interpret}
    return Backend(
        name="mosaic_tpu",
        refuses=functools.partial(refuses, anywhere=bool(interpret), budget=budget),
        forward=functools.partial(forward.forward, **given),
        item_grad=functools.partial(grad.item_grad, **given),
        item_update=functools.partial(item_update, **given),
        label_scores=functools.partial(rank.label_scores, **given),
        rank_count=functools.partial(rank.rank_count, **given),
        top_k=functools.partial(topk.top_k, **given),
    )


def refuses(problem: Problem, *, anywhere: bool = False, budget: int = VMEM_BUDGET) -> str | None:
    """Another platform than TPU, another type than f32 or bf16, rows too wide for VMEM."""
    if problem.platform != "tpu" and not anywhere:
        return f"it runs on tpu, not on {problem.platform}"
    for dtype in (problem.query_dtype, problem.item_dtype):
        if dtype not in FLOATS:
            return f"it computes in float32 or bfloat16, not in {dtype}"
    sizes = (FLOATS[problem.query_dtype], FLOATS[problem.item_dtype])
    shape = (problem.num_queries, problem.num_rows, problem.dim)
    try:
        forward.tiling_of(*shape, *sizes, budget)
        # An optimizer with two more f32 values an entry, such as Adam.
        state = 2 * row_bytes(problem.num_rows, problem.dim, 4, 4, turned=2)
        grad.tiling_of(*shape, *sizes, budget, turned=TEMPORARIES, state=state)
    except ValueError as error:
        return str(error)
    return None


BACKEND = make_backend()
