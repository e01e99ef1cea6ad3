"""What a kernel backend computes: folds over the rows of one table, or of one shard of it.

The public functions (`softmax.py`, `update.py`, `rank.py`, `topk.py`) check shapes, choose a
backend, merge shards and turn the folds into losses, gradients and ranks. A backend only folds.

    raw_ij = scale * (h_i . w_j) + bias_j
    s_ij   = raw_ij                      without softcap
           = cap * tanh(raw_ij / cap)    with it;  c'_ij = ds/draw = 1 - (s_ij / cap)^2
    s_ij   = -inf                        where row j is no item: its global id is num_items or
                                         more, or bias_j = -inf; `Scores.is_item`

Products are accumulated in f32 whatever the input type, and every fold must compute the same
s_ij from the same inputs. Row r of `items` has the global id `row_offset + r`; `targets` hold
global ids, which may lie outside this shard.

The label is masked out of the sums: sum_j p_j w_j - w_y cancels as p_y -> 1, and a sum without
the label does not.

What is no number, or does not count, has one rule:

- A row that is no item does not exist. Whatever it holds (NaN, inf, any bias behind num_items)
  changes no result; its own gradient is exactly 0; no rank counts it and top-k never returns it.
  A label that is no item has the score -inf and the loss inf, whose gradient is that of lse.
- A query whose two cotangents are 0, or that pads a tile, does not exist for the gradients.
- A score that is NaN or inf makes loss and lse of its query NaN, whichever item it belongs to,
  and so the gradients that this query takes part in; other queries stay what they are. inf in a
  row or a query may count as NaN, since inf - inf is one when a product is made of parts.
- A rank counts a NaN candidate against the target, and a NaN target ranks behind every candidate.
  top-k never returns a NaN score, and it hides no other. Both take inf as the largest number.
- A query without any item has lse -inf, loss inf, no gradient, rank 1, and no best item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
AxisName = str | tuple[str, ...]
"""One mesh axis, or several that cut the rows together, the first one coarsest."""

RowUpdate = Callable[[Array, Array, Any, Any], tuple[Array, Any]]
"""`update(rows f32 [T, d], grads f32 [T, d], state, hyper) -> (rows f32 [T, d], state)`: a
row-wise optimizer step on a tile of rows. The leaves of `state` are the tile's slices
`[T, ...]`; `hyper` is a pytree of scalars. Row t of the result depends on row t alone."""


@dataclass(frozen=True)
class Scores:
    """How a score follows from a query and a row. Not a pytree: close over it.

    scale: f32 `[]`.
    bias: f32 `[V]` of this shard, or None.
    num_items: number of items of the whole table; a Python int where it is known.
    row_offset: global id of this shard's row 0; a Python int where it is known.
    softcap: positive float or None.
    """

    scale: Array
    bias: Array | None
    num_items: int | Array
    row_offset: int | Array
    softcap: float | None

    def is_item(self, rows: Array) -> Array:
        """Whether rows of this shard, int32 local indices in [0, V), are items; bool."""
        here = rows < self.num_items - self.row_offset
        return here if self.bias is None else here & (self.bias[rows] != -jnp.inf)


class Partials(NamedTuple):
    """What one shard knows about its softmax; all f32, sums without the label.

    m: `[N]`, reference of the exponents: at least the largest s_ij, j != y_i, of the shard
      (finite; any finite value where the shard has no such row, and then l_minus is 0).
    l_minus: `[N]`, sum over j != y_i of exp(s_ij - m_i).
    o_minus: `[N, d]`, sum over j != y_i of exp(s_ij - m_i) * c'_ij * w_j; None if not asked.
      The factor `scale` is not in it.
    s_y: `[N]`, score of the label; -inf where the label is not an item of this shard.
    l_moment, o_moment: as l_minus and o_minus, with the factor s_ij - m_i on every term: what the
      entropy needs besides (`EntropyForward`); None if not asked.
    """

    m: Array
    l_minus: Array
    o_minus: Array | None
    s_y: Array
    l_moment: Array | None = None
    o_moment: Array | None = None


LEAST = -120.0
"""A difference of a score to its reference is at least this in a moment: its exponential is 0 in
f32, and 0 times it is 0, where 0 times -inf is NaN."""


class SparseRows(NamedTuple):
    """Gradients of some rows, from elsewhere in the model (tied input embeddings).

    ids: int32 `[M]`, global ids, ascending; duplicates add up; ids that are not a row of
      this shard (padding too) are ignored.
    grads: `[M, d]`.
    """

    ids: Array
    grads: Array


class Excluded(NamedTuple):
    """Pairs (query, item) that are no candidates, ascending by (item, query), distinct.

    query: int32 `[E]` in [0, N); item: int32 `[E]`, global id; an unused pair has an item id
    of at least `num_items`, so that all of them stand at the end.
    """

    query: Array
    item: Array


class Forward(Protocol):
    """Sums of the softmax: `m`, `l_minus`, `s_y` and, if asked, `o_minus`."""

    def __call__(self, queries: Array, items: Array, targets: Array, scores: Scores, *,
                 with_expected: bool) -> Partials: ...


class ItemGrad(Protocol):
    """Gradient of the rows from the known normaliser.

    With C_ij = weight_i * exp(s_ij - lse_i) * c'_ij for j != y_i, and C_ij = label_weight_i
    for j = y_i: d_items = scale * C^T H, f32 `[V, d]`; d_bias = sum_i C_ij, f32 `[V]`, or
    None without a bias. Rows that are no items get 0. `lse`, `weight`, `label_weight` are
    f32 `[N]`; `lse` is that of the whole table, and inf for a query that takes no part.
    """

    def __call__(self, queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
                 label_weight: Array, scores: Scores) -> tuple[Array, Array | None]: ...


class ItemUpdate(Protocol):
    """`ItemGrad` whose tiles go straight into a row optimizer, in place.

    Each tile's gradient, plus the `sparse` rows that fall into it, is handed to `update` with
    the tile's rows in f32 and its state; the results replace rows and state. Rows of type
    bf16 are written with stochastic rounding from `seed` (uint32 `[]`, see `rounding.py`), or
    to nearest if it is None. Returns (items, state, d_bias).
    """

    def __call__(self, queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                 weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                 hyper: Any, sparse: SparseRows | None, seed: Array | None
                 ) -> tuple[Array, Any, Array | None]: ...


class EntropyForward(Protocol):
    """`Forward` with `l_moment`, and with `o_moment` where `o_minus` is asked for."""

    def __call__(self, queries: Array, items: Array, targets: Array, scores: Scores, *,
                 with_expected: bool) -> Partials: ...


class EntropyGrad(Protocol):
    """`ItemGrad` with C_ij = (weight_i + log_weight_i * (s_ij - lse_i)) * exp(s_ij - lse_i) * c'_ij
    for j != y_i; log_weight: f32 `[N]`."""

    def __call__(self, queries: Array, items: Array, targets: Array, lse: Array, weight: Array,
                 label_weight: Array, scores: Scores, *, log_weight: Array | None
                 ) -> tuple[Array, Array | None]: ...


class EntropyUpdate(Protocol):
    """`ItemUpdate` with the gradient of `EntropyGrad`."""

    def __call__(self, queries: Array, items: Array, state: Any, targets: Array, lse: Array,
                 weight: Array, label_weight: Array, scores: Scores, *, update: RowUpdate,
                 hyper: Any, sparse: SparseRows | None, seed: Array | None,
                 log_weight: Array | None) -> tuple[Array, Any, Array | None]: ...


class LabelScores(Protocol):
    """s_y f32 `[N]`, bitwise what `RankCount` computes for the same row; -inf if not here."""

    def __call__(self, queries: Array, items: Array, targets: Array, scores: Scores) -> Array: ...


class RankCount(Protocol):
    """int32 `[N]`: items j of this shard that are not excluded, with not s_ij < s_y.

    The caller puts the target among the excluded. "Not less" rather than "at least": a NaN
    score counts against the target, so that a diverged model never looks perfect.
    """

    def __call__(self, queries: Array, items: Array, s_y: Array, excluded: Excluded,
                 scores: Scores) -> Array: ...


class TopK(Protocol):
    """Best k rows of this shard: scores f32 `[N, k]` descending, global ids int32 `[N, k]`.

    Ties: the lower id first; 0 and -0 tie. A candidate that scores NaN or -inf is none. Where
    fewer than k candidates exist: id -1, score -inf.
    """

    def __call__(self, queries: Array, items: Array, k: int, excluded: Excluded | None,
                 scores: Scores) -> tuple[Array, Array]: ...


def ordered(s: Array) -> Array:
    """Scores as `jax.lax.top_k` may see them: it puts NaN first, and -0 behind 0."""
    return jnp.where(s == 0, 0.0, jnp.where(s == s, s, -jnp.inf))


@dataclass(frozen=True)
class Problem:
    """What dispatch and a backend's `refuses` may look at; all of it is static.

    op: one of `dispatch.FOLDS`.
    platform: cpu, gpu or tpu.
    queries, items: shapes and types; softcap, bias: whether they are there.
    """

    op: str
    platform: str
    num_queries: int
    num_rows: int
    dim: int
    query_dtype: str
    item_dtype: str
    has_bias: bool = False
    has_softcap: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute the folds; `dispatch.py` names them. A module ends with `BACKEND`.

    refuses: why this backend cannot solve a problem (one clause), or None if it can. A fold
    that a backend does not have is None, and `refuses` says so for the functions that need it.
    """

    name: str
    refuses: Callable[[Problem], str | None]
    forward: Forward | None = None
    item_grad: ItemGrad | None = None
    item_update: ItemUpdate | None = None
    label_scores: LabelScores | None = None
    rank_count: RankCount | None = None
    top_k: TopK | None = None
    entropy_forward: EntropyForward | None = None
    entropy_grad: EntropyGrad | None = None
    entropy_update: EntropyUpdate | None = None
