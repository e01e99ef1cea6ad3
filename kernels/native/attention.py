"""Attention within segments on a CPU, from the `native` library: no array of queries x keys.

Of an encoder, attention is what gains from the tiles of `cpp/`: XLA writes scores, mask and
weights of every head to memory several times, and copies queries, keys and values by head first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..by_rows import by_rows
from ..primitives import Array
from . import build


class Seen(NamedTuple):
    """Who may look at whom; int arrays.

    own: `[B, C]`, segments of the queries; segments: `[B, L]`, of the keys. A query attends the
    keys of its segment, and if attention is causal those alone whose index in the row is at most
    its place; places: `[B, C]`. A query that may attend nothing gets 0.
    """

    own: Array
    segments: Array
    places: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def segment_attention(q: Array, k: Array, v: Array, seen: Seen, causal: bool) -> Array:
    """Softmax attention of queries `[B, C, h, c]` over keys and values `[B, L, h, c]`.

    q, k, v: f32 or bf16, of one type; scores are scaled by c^-1/2 and f32. Gives `[B, C, h, c]` in
    that type. Rows of the batch are independent, and XLA may cut axis B over devices. Forward and
    backward are those of flash attention (Dao et al., 2022).
    """
    return _forward(q, k, v, seen, causal)[0]


def _forward(q: Array, k: Array, v: Array, seen: Seen, causal: bool) -> tuple[Array, Any]:
    heads, dim = q.shape[2:]
    one, two, three = (x.reshape(*x.shape[:2], heads * dim) for x in (q, k, v))
    out, log_total = _attend(one, two, three, seen, causal, _Columns(heads, dim))
    return out.reshape(q.shape), ((one, two, three), seen, out, log_total)


def _backward(causal: bool, kept: Any, gradient: Array) -> Any:
    flat, seen, out, log_total = kept
    results = [_Result(x.shape[1:], x.dtype) for x in flat]
    found = _differentiate(flat, seen, out, log_total, gradient, causal,
                           _Columns(*gradient.shape[2:]), results)
    return (*(x.reshape(*x.shape[:2], *gradient.shape[2:]) for x in found), None)


segment_attention.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def self_attention(qkv: Array, seen: Seen, heads: int, causal: bool) -> Array:
    """`segment_attention` of a row with itself: queries, keys and values side by side.

    qkv `[B, L, 3 d]`, each `[h, c]` to a place, gives `[B, L, d]`. Nothing is cut or copied.
    """
    return _self_forward(qkv, seen, heads, causal)[0]


def _self_forward(qkv: Array, seen: Seen, heads: int, causal: bool) -> tuple[Array, Any]:
    out, log_total = _attend(qkv, qkv, qkv, seen, causal, _side_by_side(qkv, heads))
    return out, (qkv, seen, out, log_total)


def _self_backward(heads: int, causal: bool, kept: Any, gradient: Array) -> Any:
    qkv, seen, out, log_total = kept
    nothing = _Result((0, 0), qkv.dtype)
    found = _differentiate([qkv] * 3, seen, out, log_total, gradient, causal,
                           _side_by_side(qkv, heads),
                           [_Result(qkv.shape[1:], qkv.dtype), nothing, nothing])
    return found[0], None


self_attention.defvjp(_self_forward, _self_backward)


class _Columns(NamedTuple):
    """Where heads `[h, c]` begin in the last axis of the arrays of q, k and v."""

    heads: int
    dim: int
    q_at: int = 0
    k_at: int = 0
    v_at: int = 0


class _Result(NamedTuple):
    """shape: of one row of the batch."""

    shape: tuple[int, ...]
    dtype: Any


def _side_by_side(qkv: Array, heads: int) -> _Columns:
    dim = qkv.shape[-1] // 3
    return _Columns(heads, dim // heads, 0, dim, 2 * dim)


def _attend(q: Array, k: Array, v: Array, seen: Seen, causal: bool, at: _Columns) -> Any:
    count = seen.own.shape[1]
    return _call("attention_forward", causal, at, [
        _Result((count, at.heads * at.dim), q.dtype),
        _Result((at.heads, count), jnp.float32)], q, k, v, *_ints(seen))


def _differentiate(qkv: Any, seen: Seen, out: Array, log_total: Array, gradient: Array,
                   causal: bool, at: _Columns, results: Any) -> Any:
    gradient = gradient.reshape(out.shape).astype(out.dtype)
    return _call("attention_backward", causal, at, results, *qkv, *_ints(seen), out, gradient,
                 log_total, joint=qkv[0] is qkv[1])


def _ints(seen: Seen) -> list[Array]:
    return [x.astype(jnp.int32) for x in seen]


def _call(name: str, causal: bool, at: _Columns, results: Sequence[_Result], *arguments: Array,
          **attributes: bool) -> list[Array]:
    def rows(*arguments: Array) -> list[Array]:
        batch = arguments[0].shape[0]
        call = build.function(name, [
            jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in results])
        return call(*arguments, amx=build.has_amx(), causal=causal, **attributes,
                    **{key: np.int64(value) for key, value in at._asdict().items()})

    return by_rows(rows, arguments, [1 + len(shape) for shape, _ in results])
