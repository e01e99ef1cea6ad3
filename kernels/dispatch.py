"""Which backend solves a problem: an ordered preference for each platform, and loud refusals."""

from __future__ import annotations

import importlib
import logging

import jax

from . import auto, measured
from .primitives import Array, Backend, Problem

BACKENDS = {
    "reference": ".reference",
    "xla": ".xla.backend",
    "native": ".native.backend",
    "mosaic_gpu": ".mosaic_gpu.backend",
    "mosaic_tpu": ".mosaic_tpu.backend",
}
"""Name of a backend and the module (of this package) whose `BACKEND` it is."""

PREFERENCE = {
    "cpu": ("native", "xla"),
    # mosaic_gpu is compiled for Hopper and interpreted in the tests, but no run on the hardware is
    # recorded yet (benchmarks/gpu_softmax.py makes it): until then it is taken by name only.
    "gpu": ("xla",),
    "tpu": ("mosaic_tpu", "xla"),
}
"""What "auto" tries, in this order; the first that does not refuse is taken. On CPUs one that was
measured to be slower than the last (`auto.py`) is passed over."""

FOLDS = {
    "softmax_loss": ("forward", "item_grad"),
    "softmax_item_update": ("item_update",),
    "target_rank": ("label_scores", "rank_count"),
    "top_k": ("top_k",),
    "softmax_entropy": ("entropy_forward", "entropy_grad"),
    "softmax_entropy_update": ("entropy_update",),
}
"""Folds that a public function needs from its backend."""

log = logging.getLogger("rec_jax.kernels")


def load(name: str) -> Backend:
    """The backend of this name; its module is imported at the first use.

    Raises:
      ValueError: no backend has this name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; expected auto or one of {', '.join(BACKENDS)}")
    backend: Backend = importlib.import_module(BACKENDS[name], __package__).BACKEND
    return backend


def describe(op: str, queries: Array, items: Array, *, bias: Array | None,
             softcap: float | None, platform: str | None = None) -> Problem:
    """The static facts of a call; `platform` is that of the default device if not given."""
    return Problem(
        op=op, platform=platform or jax.default_backend(), num_queries=queries.shape[0],
        num_rows=items.shape[0], dim=items.shape[1], query_dtype=queries.dtype.name,
        item_dtype=items.dtype.name, has_bias=bias is not None, has_softcap=softcap is not None)


def refusal(backend: Backend, problem: Problem) -> str | None:
    """Why the backend cannot solve the problem, or None."""
    return _lacks(backend, problem) or backend.refuses(problem)


def _lacks(backend: Backend, problem: Problem) -> str | None:
    missing = [name for name in FOLDS[problem.op] if getattr(backend, name) is None]
    return f"it has no {' and no '.join(missing)}" if missing else None


def explain(problem: Problem) -> tuple[str, list[str]]:
    """What "auto" takes for a problem, and one line for each backend that refused before it."""
    refused: list[str] = []
    for name in PREFERENCE.get(problem.platform, ("xla",)):
        reason = _lacks(load(name), problem)
        if name == "native" and reason is None:  # the library may still be being built
            reason = auto.behind(problem.op)
        reason = reason or load(name).refuses(problem)
        if reason is None:
            return name, refused
        refused.append(f"{name}: {reason}")
    raise ValueError(f"no backend can run {problem.op} on {problem.platform}: "
                     f"{'; '.join(refused)}")


def taken() -> dict[str, str]:
    """By fold of `measured.FOLDS`, what "auto" takes on the default device; waits on a CPU until
    that is known. An encoder's folds have no backends but XLA elsewhere."""
    platform = jax.default_backend()
    if platform == "cpu":
        return auto.choices()
    found = dict.fromkeys(measured.FOLDS, "xla")
    for op in ("softmax_loss", "target_rank"):
        found[auto.FOLDS[op]] = explain(Problem(op, platform, 1024, 8192, 64, "float32",
                                                "float32"))[0]
    return found


def choose(problem: Problem, backend: str | Backend) -> Backend:
    """The backend that solves `problem`; "auto" takes the first of `PREFERENCE` that can.

    The choice is logged (logger `rec_jax.kernels`, level DEBUG) when a call is traced.

    Raises:
      ValueError: a backend that was asked for cannot run; the message says why.
    """
    if backend == "auto":
        name, refused = explain(problem)
        log.debug("%s on %s [%d x %d, %d queries, %s]: %s%s", problem.op, problem.platform,
                  problem.num_rows, problem.dim, problem.num_queries, problem.item_dtype, name,
                  f" ({'; '.join(refused)})" if refused else "")
        return load(name)
    chosen = load(backend) if isinstance(backend, str) else backend
    reason = refusal(chosen, problem)
    if reason is not None:
        raise ValueError(f"backend {chosen.name} cannot run {problem.op}: {reason}")
    return chosen
