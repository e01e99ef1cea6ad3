"""Are the softmax kernels right on this GPU: each complication against float64, one at a time.

A complication that fails says where the fault is, so that they are not mixed: bias and padding
rows, softcap, a negative scale, a shard whose rows do not start at 0, rows with a gradient from
elsewhere. Errors are norms relative to the norm of the float64 result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gpu_times import Shape, inputs, total_loss, training_step

from rec_jax.kernels import dispatch, softmax_item_update, softmax_loss
from rec_jax.kernels.primitives import Scores, SparseRows


class Case(NamedTuple):
    """A complication. rows: V, of which the last `pads` are padding; offset: id of row 0."""

    scale: float = 1.7
    bias: bool = True
    softcap: float | None = None
    offset: int = 0
    rows: int = 4104
    pads: int = 5


CASES = {
    "plain": Case(bias=False, pads=0),
    "bias and padding": Case(),
    "softcap": Case(softcap=4.0),
    "negative scale": Case(scale=-1.7),
}
SHARD = Case(offset=2048, softcap=4.0)


class Problem(NamedTuple):
    """Arrays in float64 and as the kernels take them; raw scores are before the cap."""

    h: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    slope: np.ndarray
    scores: np.ndarray
    weight: np.ndarray


def make(case: Case, d: int, seed: int, n: int = 192) -> Problem:
    rng = np.random.default_rng(seed)
    h = np.asarray(jnp.asarray(rng.normal(size=(n, d)), jnp.bfloat16), np.float64)
    w = np.asarray(jnp.asarray(rng.normal(size=(case.rows, d)) / math.sqrt(d), jnp.bfloat16),
                   np.float64)
    bias = rng.normal(size=case.rows).astype(np.float32).astype(np.float64) * case.bias
    items = case.rows - case.pads
    y = rng.integers(0, items, n)
    y[:7] = items - 1  # several labels share a row
    scores = case.scale * h @ w.T + bias
    slope = np.ones_like(scores)
    if case.softcap is not None:
        scores = case.softcap * np.tanh(scores / case.softcap)
        slope = 1 - (scores / case.softcap) ** 2
    scores[:, items:] = -np.inf
    weight = rng.normal(size=n).astype(np.float32).astype(np.float64)
    return Problem(h, w, bias, y, slope, scores, weight)


def error(found: Any, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))


def lse_of(scores: np.ndarray) -> np.ndarray:
    top = scores.max(1)
    return np.log(np.exp(scores - top[:, None]).sum(1)) + top


def loss_and_gradients(name: str, d: int, case: Case, seed: int) -> dict[str, float]:
    """`softmax_loss` and its three gradients; whether a second run has the same bits."""
    p = make(case, d, seed)
    lse = lse_of(p.scores)
    each = np.arange(len(p.y))
    c = np.exp(p.scores - lse[:, None])
    c[each, p.y] -= 1
    c *= p.weight[:, None] * p.slope
    wanted = {"loss": lse - p.scores[each, p.y], "lse": lse, "queries": case.scale * c @ p.w,
              "items": case.scale * c.T @ p.h}
    if case.bias:
        wanted["bias"] = c.sum(0)
    bias = jnp.asarray(p.bias, jnp.float32) if case.bias else None
    weight = jnp.asarray(p.weight, jnp.float32)

    def run(h: Any, w: Any, b: Any) -> Any:
        loss, lse = softmax_loss(
            h, w, jnp.asarray(p.y), bias=b, logit_scale=case.scale, softcap=case.softcap,
            num_items=case.rows - case.pads, backend=name)
        return jnp.sum(weight * loss), (loss, lse)

    step = jax.jit(jax.grad(run, (0, 1, 2) if case.bias else (0, 1), has_aux=True))
    arguments = jnp.asarray(p.h, jnp.bfloat16), jnp.asarray(p.w, jnp.bfloat16), bias
    grads, aux = step(*arguments)
    names = ("queries", "items", "bias")[:len(grads)]
    found = dict(zip((*names, "loss", "lse"), (*grads, *aux), strict=True))
    return {**{key: error(found[key], want) for key, want in wanted.items()},
            "bits_differ_in_second_run": bits_differ((grads, aux), step(*arguments))}


def one_shard(name: str, d: int, seed: int) -> dict[str, float]:
    """The folds of a shard whose first row is not item 0; some labels lie elsewhere."""
    case, backend = SHARD, dispatch.load(name)
    assert backend.forward is not None and backend.item_grad is not None
    p = make(case, d, seed)
    elsewhere = np.arange(len(p.y)) % 3 == 0
    ids = np.where(elsewhere, 5, p.y + case.offset)
    here = np.flatnonzero(~elsewhere)
    rest = p.scores.copy()
    rest[here, p.y[here]] = -np.inf
    lse = lse_of(rest)
    o = (np.exp(rest - lse[:, None]) * p.slope) @ p.w
    c = p.weight[:, None] * np.exp(rest - lse[:, None]) * p.slope
    c[here, p.y[here]] = 0.5
    rule = Scores(jnp.float32(case.scale), jnp.asarray(p.bias, jnp.float32),
                  case.offset + case.rows - case.pads, case.offset, case.softcap)
    h, w = jnp.asarray(p.h, jnp.bfloat16), jnp.asarray(p.w, jnp.bfloat16)
    y = jnp.asarray(ids, jnp.int32)
    known = [jnp.asarray(x, jnp.float32) for x in (lse, p.weight, np.full_like(lse, 0.5))]

    @jax.jit
    def folds(h: Any, w: Any) -> Any:
        parts = backend.forward(h, w, y, rule, with_expected=True)
        rows, bias = backend.item_grad(h, w, y, *known, rule)
        return (parts.m + jnp.log(parts.l_minus), parts.o_minus / parts.l_minus[:, None],
                parts.s_y, rows, bias)

    found_lse, expected, s_y, rows, bias = folds(h, w)
    return {"lse": error(found_lse, lse), "expected": error(expected, o),
            "label": error(np.asarray(s_y)[here], p.scores[here, p.y[here]]),
            "items": error(rows, case.scale * c.T @ p.h), "bias": error(bias, c.sum(0))}


def update_with_sparse_rows(name: str, d: int, seed: int) -> dict[str, float]:
    """One step of plain descent with rows that also get a gradient from elsewhere."""
    case = CASES["bias and padding"]
    p = make(case, d, seed)
    rng = np.random.default_rng(seed + 1)
    ids = np.sort(rng.integers(0, case.rows - case.pads, 40))
    ids[1] = ids[0]  # duplicates add up
    more = rng.normal(size=(40, d)).astype(np.float32)
    lse, each = lse_of(p.scores), np.arange(len(p.y))
    c = np.exp(p.scores - lse[:, None])
    c[each, p.y] -= 1
    c *= p.weight[:, None]
    want = case.scale * c.T @ p.h
    np.add.at(want, ids, more.astype(np.float64))
    loss = lse - p.scores[each, p.y]

    def keep_gradient(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
        return rows, grads  # the new "state" is the gradient that the optimizer saw

    @jax.jit
    def run(w: Any, h: Any) -> Any:
        return softmax_item_update(
            w, jnp.zeros(w.shape, jnp.float32), h, jnp.asarray(p.y, jnp.int32),
            *(jnp.asarray(x, jnp.float32) for x in (loss, lse, p.weight, 0 * p.weight)),
            update=keep_gradient, sparse=SparseRows(jnp.asarray(ids, jnp.int32),
                                                    jnp.asarray(more)),
            bias=jnp.asarray(p.bias, jnp.float32), logit_scale=case.scale,
            num_items=case.rows - case.pads, backend=name)

    w, h = jnp.asarray(p.w, jnp.bfloat16), jnp.asarray(p.h, jnp.bfloat16)
    new = run(w, h)
    return {"items": error(new.state, want), "bias": error(new.d_bias, c.sum(0)),
            "rows_moved": float(jnp.sum(new.items != w)),
            "bits_differ_in_second_run": bits_differ(new, run(w, h))}


def bits_differ(first: Any, second: Any) -> float:
    """How many numbers of two results are not the same bits."""
    return float(sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in zip(
        jax.tree.leaves(first), jax.tree.leaves(second), strict=True)))


def oracle(name: str, d: int, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(what, check) of each complication, the simplest first."""
    for what, case in CASES.items():
        yield what, lambda case=case: loss_and_gradients(name, d, case, seed)
    yield "shard", lambda: one_shard(name, d, seed)
    yield "sparse", lambda: update_with_sparse_rows(name, d, seed)


def at_scale(name: str, shape: Shape) -> dict[str, float]:
    """Against the `xla` backend, on the device, at a size with many blocks and splits."""
    h, w, y = inputs(shape)

    def results(name: str) -> Any:
        value, grads = jax.jit(jax.value_and_grad(total_loss(name), (0, 1)))(h, w, y)
        start = jnp.copy(w), jnp.ones(shape.v, jnp.float32)
        return value, *grads, training_step(name)(*start, h, y)[0].astype(jnp.float32) - w

    def difference(found: Any, want: Any) -> float:
        found, want = found.astype(jnp.float32), want.astype(jnp.float32)
        return float(jnp.linalg.norm(found - want) / jnp.linalg.norm(want))

    pairs = zip(("loss", "queries", "items", "step"), results(name), results("xla"), strict=True)
    return {key: difference(*pair) for key, *pair in pairs}
