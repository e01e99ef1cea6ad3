"""The `native` backend: the folds of the softmax in C++, for CPUs, where a compiler is found.

XLA runs a loop one operation at a time, so that a tile of scores goes through the caches several
times. `cpp/fold.h` finishes it in the first of them. On CPUs with AMX the products of f32 are
made from bf16 parts whose sum is the f32 number (`cpp/engine_amx.h`), which keeps the rounding of
f32 and is several times faster; elsewhere they are vector instructions (`cpp/engine_vector.h`).
The library is built at the first use (`build.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compat import result_like
from ..primitives import Array, Backend, Excluded, Partials, Problem, RowUpdate, Scores, SparseRows
from ..shards import align
from ..xla import rank
from ..xla.softmax import update_tiles
from ..xla.tiles import Tile, pair_scores
from . import build

_UPDATE_ROWS = 4096
"""Rows of an update's tile: many to a call, and their state stays in the cache."""


def refuses(problem: Problem) -> str | None:
    """The platform is not cpu, or no library can be built here."""
    if problem.platform != "cpu":
        return f"it runs on cpu, not {problem.platform}"
    return build.problem()


def forward(queries: Array, items: Array, targets: Array, scores: Scores, *,
            with_expected: bool, with_moment: bool = False, amx: bool | None = None) -> Partials:
    """See `primitives.Forward`, and `primitives.EntropyForward` for the moment; `amx` None takes
    AMX where the CPU has it."""
    count, width = queries.shape
    expected, nothing = (count, width) if with_expected else (0, 0), (0, 0)
    shapes = ((count,), (count,), expected, (count if with_moment else 0,),
              expected if with_moment else nothing)
    m, l_minus, o_minus, l_moment, o_moment = _call(
        "softmax_forward", shapes, amx, queries, items, scores, targets)
    parts = Partials(m, l_minus, o_minus if with_expected else None,
                     pair_scores(queries, items, targets, scores))
    return parts if not with_moment else parts._replace(
        l_moment=l_moment, o_moment=o_moment if with_expected else None)


def item_grad(queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
              label_weight: Array, scores: Scores, *, log_weight: Array | None = None,
              amx: bool | None = None) -> tuple[Array, Array | None]:
    """See `primitives.ItemGrad` and `primitives.EntropyGrad`."""
    rows = items.shape[0]
    log_weight = jnp.zeros((0,), jnp.float32) if log_weight is None else log_weight
    grad, bias = _call(
        "softmax_item_grad", (items.shape, (0,) if scores.bias is None else (rows,)), amx,
        queries, items, scores, targets, lse, weight, label_weight, log_weight)
    return grad, None if scores.bias is None else bias


def item_update(queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                hyper: Any, sparse: SparseRows | None, seed: Array | None,
                log_weight: Array | None = None, amx: bool | None = None,
                rows: int = _UPDATE_ROWS) -> tuple[Array, Any, Array | None]:
    """See `primitives.ItemUpdate` and `primitives.EntropyUpdate`: XLA's loop, whose tiles get
    their gradient from C++."""

    def tile_grad(tile: Tile) -> tuple[Array, Array | None]:
        bias = None if scores.bias is None else jax.lax.dynamic_slice_in_dim(
            scores.bias, tile.start, tile.ids.shape[0])
        here = Scores(scores.scale, bias, scores.num_items, tile.ids[0], scores.softcap)
        return item_grad(queries, tile.rows, targets, lse, weight, label_weight, here, amx=amx,
                         log_weight=log_weight)

    return update_tiles(items, state, scores, tile_grad, targets[0], size=min(rows, len(items)),
                        update=update, hyper=hyper, sparse=sparse, seed=seed)


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores, *,
                 amx: bool | None = None) -> Array:
    """See `primitives.LabelScores`."""
    return _call("label_scores", ((queries.shape[0],),), amx, queries, items, scores, targets)[0]


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded, scores: Scores, *,
               amx: bool | None = None) -> Array:
    """See `primitives.RankCount`. Counts all rows, and takes back the excluded pairs."""
    return _call("rank_count", ((queries.shape[0],),), amx, queries, items, scores, s_y,
                 excluded.query, excluded.item, dtypes=(jnp.int32,))[0]


def top_k(queries: Array, items: Array, k: int, excluded: Excluded | None, scores: Scores, *,
          amx: bool | None = None) -> tuple[Array, Array]:
    """See `primitives.TopK`. The best one is a maximum; more than one, or with pairs that are
    excluded, is XLA's."""
    if k > 1 or excluded is not None:
        return rank.top_k(queries, items, k, excluded, scores)
    shape = (queries.shape[0],)
    best, ids = _call("best_item", (shape, shape), amx, queries, items, scores,
                      dtypes=(jnp.float32, jnp.int32))
    return best[:, None], ids[:, None]


def _call(name: str, results: tuple[tuple[int, ...], ...], amx: bool | None, queries: Array,
          items: Array, scores: Scores, *others: Array, dtypes: Sequence[Any] = ()
          ) -> list[Array]:
    """others: f32, or ids; dtypes: of the results, f32 by default."""
    bias = jnp.zeros((0,), jnp.float32) if scores.bias is None else scores.bias
    num_items, offset = (jnp.asarray(x, jnp.int32) for x in (scores.num_items, scores.row_offset))
    others = tuple(x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x
                   for x in others)
    arguments = align(queries, items, scores.scale, bias, num_items, offset, *others)
    call = build.function(
        name, [result_like(arguments[0], shape, dtype) for shape, dtype in zip(
            results, dtypes or [jnp.float32] * len(results), strict=True)])
    return call(*arguments, amx=build.has_amx() if amx is None else amx,
                softcap=np.float32(scores.softcap or 0.0))


def make_backend(amx: bool | None = None, rows: int = _UPDATE_ROWS) -> Backend:
    """The backend with or without AMX, and other tiles for the update; keep it, it keys traces."""
    return Backend("native", refuses, partial(forward, amx=amx), partial(item_grad, amx=amx),
                   partial(item_update, amx=amx, rows=rows), partial(label_scores, amx=amx),
                   partial(rank_count, amx=amx), partial(top_k, amx=amx),
                   partial(forward, amx=amx, with_moment=True), partial(item_grad, amx=amx),
                   partial(item_update, amx=amx, rows=rows))


BACKEND = make_backend()
