"""The backend for Hopper GPUs, on JAX's Mosaic GPU (`plgpu.kernel`): TMA, wgmma, warpgroups.

Scores, their maximum and all sums are f32; exponentials are the hardware's 2^x (about 2 units
in the last place of f32); the coefficients of the second product of each kernel are rounded to
bf16 as they enter the tensor cores. A table is neither padded nor copied: TMA addresses it by
(row, column) with 64-bit strides, so that V * d may exceed 2^31, reads zeros past the end and
writes nothing there.

Exact ranks and top-k are left to the `xla` backend.
"""

from __future__ import annotations

import jax

from ..primitives import Backend, Problem
from .forward import forward
from .grad import item_grad
from .tiles import BLOCK
from .update import item_update

WIDEST = 256


def refuses(problem: Problem) -> str | None:
    """Why these kernels cannot solve a problem, or None."""
    if problem.platform != "gpu":
        return f"it needs a Hopper GPU, not {problem.platform}"
    if (found := _other_device()) is not None:
        return f"it needs a Hopper GPU (compute capability 9.0), found {found}"
    if problem.op not in ("softmax_loss", "softmax_item_update"):
        return f"it has no {problem.op}"
    if problem.item_dtype != "bfloat16":
        return f"its products take bfloat16 tables, not {problem.item_dtype}"
    if problem.query_dtype != problem.item_dtype:
        return f"queries are {problem.query_dtype} and items {problem.item_dtype}; cast the queries"
    if problem.dim % 32 or problem.dim > WIDEST:
        return f"d is {problem.dim}; expected a multiple of 32, at most {WIDEST}"
    if problem.num_rows % 8 or problem.num_rows < BLOCK:
        return (f"the table (or shard) has {problem.num_rows} rows; expected a multiple of 8, "
                f"at least {BLOCK}")
    return None


def _other_device() -> str | None:
    """The default device if it is a GPU but no Hopper; without a GPU one may still lower."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return None
    capability = str(getattr(device, "compute_capability", "unknown"))
    return None if capability == "9.0" else f"{device.device_kind} ({capability})"


BACKEND = Backend(
    name="mosaic_gpu", refuses=refuses, forward=forward, item_grad=item_grad,
    item_update=item_update,
)
