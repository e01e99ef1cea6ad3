"""Texts led to the items that were clicked after them: a matrix, learned by a softmax.

    score(q, i) = cos(f(q) A, v_i) / temperature,    loss = lse_i score(q, i) - score(q, clicked)

f(q) is the vector of a text and v_i that of an item; both stay as they are, and A `[c, d]` learns.
The log-normaliser is over every item of the catalogue (`exact`), or over the items of the batch's
clicks (`in_batch`). There an item that is clicked more often is a negative more often, so each time
it counts 1 / (n q_j), with q_j its share of all clicks and n those of the batch, and the label
itself counts in full, once (Yi et al., RecSys 2019; as `rec_jax.objectives.in_batch`). A begins
where a search without clicks stands, and weight decay pulls it back there, so that few clicks
change little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from rec_jax.errors import InputError, TrainingError
from rec_jax.kernels import softmax_loss
from rec_jax.ranges import above, at_least, below, check
from rec_jax.text.clicks import Clicks
from rec_jax.text.known_items import ranks_of, reciprocal_ranks

Floats = npt.NDArray[np.float32]
Loss = Literal["exact", "in_batch"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
_MOST = 1 << 24  # scores that are held at once


@dataclass(frozen=True)
class ClickConfig:
    """How a matrix learns from clicks.

    loss: exact: over the whole catalogue; in_batch: over the clicked items of a batch.
    epochs: passes over the clicks; rows: clicks of a batch; rate: peak of the learning rate, which
      falls to 0 along a cosine (Adam); decay: back to where the matrix began (AdamW's);
      temperature: of the softmax, in cosines.
    held_out: share of the texts that figures are of; seed: of what is held out, and of the order.
    """

    loss: Loss = "exact"
    epochs: int = 20
    rows: int = 256
    rate: float = 0.01
    decay: float = 0.1
    temperature: float = 0.05
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
        check(self, "", epochs=at_least(1), rows=at_least(2, 2**16), rate=above(0, 1e3),
              decay=at_least(0, 1e3), temperature=above(0, 1e3), held_out=below(0, 1),
              seed=at_least(0, 2**32 - 1))


def learn_matrix(config: ClickConfig, clicks: Clicks, vectors: Floats, items: Floats,
                 begin: Floats) -> tuple[Floats, list[float]]:
    """The matrix f32 `[c, d]` after all epochs, and the mean loss of each of them.

    vectors: f32 `[Q, c]`, of the texts of `clicks`; items: f32 `[V, d]`, of length 1, or 0 for
    items that are no negatives; begin: f32 `[c, d]`. The same bits every time on one machine.

    Raises:
      InputError: no item that was clicked has a vector.
      TrainingError: the loss or the matrix is no number any more.
    """
    there = np.any(items != 0, axis=1)
    known = there[clicks.item]
    if not known.any():
        raise InputError("no item that was clicked has a vector; expected clicks on items that "
                         "can be found")
    query, item = clicks.query[known], clicks.item[known]
    count = len(query)
    rows = min(config.rows, count)
    steps = -(-count // rows)
    share = np.bincount(item, minlength=len(items)) / count
    log_share = np.log(np.maximum(share, 1e-30)).astype(np.float32)
    data = tuple(map(jnp.asarray, (vectors, items, begin, log_share, there)))
    rule, epoch = _rule(config, steps), _epoch(config, steps)
    moved = jnp.zeros_like(data[2])
    state, random = (moved, rule.init(moved)), np.random.default_rng(config.seed)
    means = []
    for _ in range(config.epochs):
        order = np.concatenate([random.permutation(count), np.zeros(steps * rows - count, int)])
        weights = np.arange(steps * rows) < count
        state, total = epoch(state, tuple(jnp.asarray(each.reshape(steps, rows)) for each in (
            query[order].astype(np.int32), item[order].astype(np.int32),
            weights.astype(np.float32))), data)
        means.append(float(total) / count)
    found = np.asarray(data[2] + state[0], np.float32)
    if not (np.isfinite(found).all() and np.isfinite(means).all()):
        raise TrainingError(f"the loss or the matrix is no number any more (rate {config.rate:g}, "
                            f"decay {config.decay:g}); expected a smaller rate or decay")
    return found, means


def _rule(config: ClickConfig, steps: int) -> optax.GradientTransformation:
    """steps: batches of an epoch."""
    return optax.adamw(optax.cosine_decay_schedule(config.rate, steps * config.epochs),
                       weight_decay=config.decay)


@functools.cache
def _epoch(config: ClickConfig, steps: int) -> Any:
    """`(state, batches, data)` -> the state after an epoch, and the sum of its losses; jitted."""
    rule = _rule(config, steps)

    @jax.jit
    def epoch(state: Any, batches: Any, data: Any) -> Any:
        texts, catalogue, start, shares, exists = data

        def step(state: Any, batch: Any) -> Any:
            moved, optimizer = state
            query, item, weights = batch
            value, gradient = jax.value_and_grad(lambda moved: batch_loss(
                config.loss, jnp.take(texts, query, axis=0) @ (start + moved), catalogue, item,
                weights, log_share=shares, there=exists, temperature=config.temperature))(moved)
            updates, optimizer = rule.update(gradient, optimizer, moved)
            return (optax.apply_updates(moved, updates), optimizer), value * jnp.sum(weights)

        state, losses = jax.lax.scan(step, state, batches)
        return state, jnp.sum(losses)

    return epoch


def batch_loss(loss: Loss, led: jax.Array, items: jax.Array, targets: jax.Array,
               weights: jax.Array, *, log_share: jax.Array, there: jax.Array,
               temperature: float) -> jax.Array:
    """Mean loss of a batch's clicks, f32 `[]`.

    led: f32 `[n, d]`, vectors of texts where the matrix led them; items: f32 `[V, d]`, of length 1;
    targets: int32 `[n]`; weights: f32 `[n]`, 1 or 0; log_share: f32 `[V]`, log of each item's share
    of all clicks; there: bool `[V]`, items that have a vector.
    """
    queries = led * jax.lax.rsqrt(jnp.maximum(jnp.sum(led * led, axis=1, keepdims=True), 1e-24))
    if loss == "exact":
        found, _ = softmax_loss(queries, items, targets, logit_scale=1 / temperature,
                                bias=jnp.where(there, 0.0, -jnp.inf))
    else:
        own = jnp.take(items, targets, axis=0)
        scores = jnp.matmul(queries, own.T, precision="highest") / temperature
        same = targets[:, None] == targets[None, :]
        often = jnp.take(log_share, targets) + jnp.log(jnp.sum(weights))
        against = jnp.where(~same & (weights > 0)[None, :], scores - often[None, :], -jnp.inf)
        label = jnp.diagonal(scores)
        found = jax.nn.logsumexp(jnp.concatenate([label[:, None], against], axis=1), axis=1) - label
    return jnp.sum(jnp.where(weights > 0, found, 0.0)) / jnp.sum(weights)


def mrr_of(clicks: Clicks, scores: Callable[[Sequence[str]], Floats], num_items: int, k: int = 10
           ) -> float:
    """MRR@k of the clicked items among all, the mean over the clicks; ties count against an item.

    scores: texts -> f32 `[n, V]`, of a search.
    """
    total, block = 0.0, max(1, _MOST // num_items)
    for first in range(0, len(clicks.texts), block):
        found = scores(clicks.texts[first:first + block])
        own = (clicks.query >= first) & (clicks.query < first + len(found))
        for start in range(0, int(own.sum()), block):
            query, item = (each[own][start:start + block] for each in (clicks.query, clicks.item))
            total += float(reciprocal_ranks(ranks_of(found[query - first], item), k).sum())
    return total / len(clicks.item)


def regressed(texts: Floats, items: Floats, ridge: float = 1.0) -> Floats:
    """The matrix f32 `[c, d]` that leads texts `[n, c]` nearest to items `[n, d]`, with a penalty
    of so many items: where a search begins of which nothing else is known."""
    wide = texts.astype(np.float64)
    gram = wide.T @ wide + ridge * np.eye(wide.shape[1])
    return np.asarray(np.linalg.solve(gram, wide.T @ items), np.float32)
