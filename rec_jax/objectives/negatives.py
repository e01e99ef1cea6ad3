"""Sampled softmax: negatives that all positions share, and the correction for how they came.

With a sample S of items in which item j is expected n_j times,

    Z_i ~ exp(s_iy) + sum over j in S, j != y, of exp(s_ij - log n_j),   loss_i = log Z_i - s_iy

estimates the softmax over the whole catalogue without bias in Z. The label's own term is in the
sum for certain, not by chance, so it is not corrected; a label that was drawn as well (an
accidental hit) is masked. Bengio & Senecal (2008) gave the estimate; Yi et al. (2019) use it for
in-batch negatives.

Nothing here builds an array of positions x negatives: the sum is `softmax_loss` over the drawn
rows with -log n_j as their bias. The kernel carries one item of each query apart from its sums;
that is the label where it was drawn, so that taking it out again cancels nothing.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.errors import InputError
from rec_jax.kernels.rounding import mix
from rec_jax.objectives.base import Catalogue, Task
from rec_jax.objectives.sampled import NEGATIVES, Negatives

Array = jax.Array

_HIDDEN = -1e30  # exp gives 0, and unlike -inf a difference of two is a number
_NO_LOSS = 1e-30  # below it the other negatives weigh nothing against the label


def uniform(key: Array, num_items: int, count: int) -> Negatives:
    """`count` different items, every one as likely: the first of a keyed permutation.

    With `count = num_items` it is every item once, and the loss is the full softmax.

    Raises:
      InputError: there are fewer items than `count`.
    """
    if not 1 <= count <= num_items:
        raise InputError(f"{count} different negatives of {num_items} items; "
                         f"expected 1 to {num_items}")
    # A Feistel network over a grid [a, b] just larger than the catalogue permutes its cells;
    # a cell beyond the catalogue is permuted on until it falls inside.
    a = math.isqrt(num_items - 1) + 1
    b = -(-num_items // a)
    keys = jax.random.bits(key, (4,), jnp.uint32)

    def permute(x: Array) -> Array:
        left, right = x // b, x % b
        for turn in range(0, 4, 2):
            left = (left + mix(right ^ keys[turn]) % jnp.uint32(a)) % jnp.uint32(a)
            right = (right + mix(left ^ keys[turn + 1]) % jnp.uint32(b)) % jnp.uint32(b)
        return left * jnp.uint32(b) + right

    ids = jax.lax.while_loop(
        lambda x: jnp.any(x >= num_items),
        lambda x: jnp.where(x >= num_items, permute(x), x),
        permute(jax.lax.iota(jnp.uint32, count)))
    return Negatives(ids.astype(jnp.int32), jnp.full(count, math.log(count / num_items), "f4"))


def log_uniform(key: Array, num_items: int, count: int) -> Negatives:
    """`count` draws with repetition, more of the popular: items are ranked by falling popularity.

    Zipf's law in steps: rank r (from 1) lies in octave floor(log2 r); octaves are drawn by the
    logarithm of their ends, and ranks within one evenly. Every item can be drawn, and its
    probability is exact, at any catalogue size, which inverting the smooth law in f32 is not.
    """
    edges, share = _octaves(num_items)
    which, within = jax.random.split(key)
    cumulative = jnp.asarray(np.cumsum(share), jnp.float32)
    octave = jnp.searchsorted(cumulative[:-1], jax.random.uniform(which, (count,)), side="right")
    low, high = jnp.asarray(edges[:-1])[octave], jnp.asarray(edges[1:])[octave]
    ids = jax.random.randint(within, (count,), low, high, jnp.int32)
    return Negatives(ids, log_uniform_log_q(ids, num_items) + math.log(count))


def log_uniform_log_q(ids: Array, num_items: int) -> Array:
    """Log of the probability that `log_uniform` draws each id in one draw; f32."""
    edges, share = _octaves(num_items)
    octave = jnp.searchsorted(jnp.asarray(edges[1:-1]), ids, side="right")
    return jnp.asarray(np.log(share / np.diff(edges)), jnp.float32)[octave]


def in_batch(targets: Array, weights: Array, log_q: Array) -> Negatives:
    """The labels of all positions as negatives of each other.

    targets: int32 `[N]`; weights: f32 `[N]`, 0 where a position has no label; log_q: f32 `[N]`,
    log of each target's share of all labels in the data.
    """
    labelled = weights != 0
    count = jnp.log(jnp.maximum(jnp.sum(labelled), 1).astype(jnp.float32))
    return Negatives(targets, jnp.where(labelled, log_q + count, jnp.inf))


def sampled_softmax(queries: Array, task: Task, catalogue: Catalogue, *, scale: float = 1.0,
                    backend: str = "auto") -> Array:
    """Loss of each position, f32 `[N]`; the formula is at the top of this file.

    queries: `[N, d]`; the task has shared negatives (`sampled.against`). Scores are
    `scale * q . w`.
    """
    own = scale * jnp.sum(queries.astype(jnp.float32)
                          * catalogue.rows("labels").astype(jnp.float32), axis=-1)
    bias, slots = _merge(task.constants, task.targets)
    rows = catalogue.rows(NEGATIVES).astype(queries.dtype)
    loss, lse = catalogue.softmax_among(queries, rows, slots, bias=bias, scale=scale,
                                        backend=backend)
    # The kernel's loss is -log p(slot), and its lse has the slot: leave lse + log(1 - p). Where
    # the label was not drawn, p is 0 and the loss inf.
    counts = loss > _NO_LOSS
    share = -jnp.expm1(-jnp.where(counts, loss, 1.0))
    others = jnp.where(counts, lse + jnp.log(share), _HIDDEN)
    return jax.nn.softplus(jnp.maximum(others, _HIDDEN) - own)


def first_of_each(ids: Array) -> Array:
    """Bool `[K]`: whether no earlier entry of `ids` int `[K]` is equal."""
    keys, order = jax.lax.sort((ids, jax.lax.iota(jnp.int32, ids.size)), num_keys=1,
                               is_stable=True)
    return jnp.zeros(ids.shape, bool).at[order].set(_begins(keys), unique_indices=True)


def _merge(negatives: Negatives, targets: Array) -> tuple[Array, Array]:
    """Repeated negatives as one, and where each target is among them.

    Returns:
      bias f32 `[K]`: log sum of exp(-log_expected) over all draws of an item at the first of
      them, -inf at the others; and slots int32 `[N]` of `targets`, -1 where not drawn.
    """
    size = negatives.ids.size
    weights = jnp.exp(-negatives.log_expected)
    # An empty slot may have no row, so it must not stand for an item.
    known = jnp.where(weights > 0, negatives.ids, -1)
    ids, order, weight = jax.lax.sort((known, jax.lax.iota(jnp.int32, size), weights),
                                      num_keys=1, is_stable=True)
    first = _begins(ids)
    run = jnp.cumsum(first.astype(jnp.int32)) - 1
    total = jnp.zeros(size, jnp.float32).at[run].add(weight, indices_are_sorted=True)
    sorted_bias = jnp.where(first, jnp.log(total[run]), -jnp.inf)
    bias = jnp.zeros(size, jnp.float32).at[order].set(sorted_bias, unique_indices=True)
    # Where no slot is in use the sum must still have a logarithm.
    bias = jnp.where(jnp.any(bias > -jnp.inf), bias, _HIDDEN)
    place = jnp.minimum(jnp.searchsorted(ids, targets), size - 1)
    return bias, jnp.where(ids[place] == targets, order[place], -1)


def _begins(keys: Array) -> Array:
    """Bool `[K]`: where a run of equal sorted keys begins."""
    return jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])


def _octaves(num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(first id of each octave and the end, int32 `[E + 1]`; its probability, `[E]`)."""
    count = num_items.bit_length()
    edges = np.minimum(2 ** np.arange(count + 1, dtype=np.int64) - 1, num_items)
    logs = np.log2(edges + 1.0)
    keep = np.diff(edges) > 0
    edges = np.append(edges[:-1][keep], num_items)
    return edges.astype(np.int32), np.diff(logs)[keep] / logs[-1]
