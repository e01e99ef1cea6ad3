"""The bias of a table: a number for each item that is added to its scores.

    score of item j for query h = scale * (h . w_j) + b_j

Popular items are labels more often, and a softmax over queries and rows alone has to spend the
directions of its vectors on that. A bias takes it from them: fixed to the log of an item's share
of the labels, or trained. What is added while training and what is added when items are ranked may
differ: with all of it in the loss and none at serving it is the logit adjustment of Menon et al.
(2021, "Long-tail learning via logit adjustment"), and between both lies less popularity in the
lists.

By item it is f32 `[V]` on the host; beside the rows of a table it is f32 `[V_padded]`, one number
a row, cut as the rows are. A bias of -inf takes an item out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.kernels import RowUpdate
from rec_jax.mesh import ITEMS, Axes, row_sharding
from rec_jax.ranges import above, at_least, check
from rec_jax.tables.row_map import RowMap
from rec_jax.tables.row_optimizers import RowOptimizer

Array = jax.Array
Floats = npt.NDArray[np.float32]

STRENGTHS = at_least(-100, 100)
PRIORS = above(0, 1e9)


@dataclass(frozen=True)
class BiasConfig:
    """What is added to the score of each item; by default nothing.

    trained: the bias is a parameter, one f32 an item; otherwise it stays as it began.
    strength: how many times the log of an item's share of the training labels the loss adds; of a
      trained bias, what it starts from.
    serve_strength: the same where items are ranked and recommended; none: as in training. What a
      trained bias has learned beyond its start is added in any case.
    prior: labels that each item is given beyond its own, so that no share is 0.
    """

    trained: bool = False
    strength: float = 0.0
    serve_strength: float | None = None
    prior: float = 1.0

    def __post_init__(self) -> None:
        check(self, "bias.", strength=STRENGTHS, serve_strength=STRENGTHS, prior=PRIORS)

    @property
    def in_loss(self) -> bool:
        """Whether the loss adds a bias."""
        return self.trained or self.strength != 0

    @property
    def when_served(self) -> float:
        """The strength where items are ranked."""
        return self.strength if self.serve_strength is None else self.serve_strength

    @property
    def serving_strength(self) -> float:
        """The strength of what serving adds to the trained bias, or by itself where there is
        none."""
        return self.when_served - (self.strength if self.trained else 0)


def log_popularity(counts: npt.NDArray[Any], prior: float = 1.0) -> Floats:
    """Log of each item's share of the labels, f32 `[V]`, which sum to 1.

    counts: labels of each item `[V]`, see `rec_jax.data.label_frequency`; prior: more than 0,
    added to each of them.
    """
    smoothed = np.asarray(counts, np.float64) + prior
    return (np.log(smoothed) - np.log(smoothed.sum())).astype(np.float32)


def first_bias(config: BiasConfig, counts: npt.NDArray[Any]) -> Floats | None:
    """What the loss adds at the first step, and at every one unless it is trained: f32 `[V]` by
    item, or None."""
    if not config.in_loss:
        return None
    return np.float32(config.strength) * log_popularity(counts, config.prior)


def serving_part(config: BiasConfig, counts: npt.NDArray[Any]) -> Floats | None:
    """What serving adds to the trained bias, or by itself where there is none: f32 `[V]` by item,
    or None for nothing."""
    strength = config.serving_strength
    return np.float32(strength) * log_popularity(counts, config.prior) if strength else None


def served_bias(trained: Array | None, part: Array | None, scale: float) -> Array | None:
    """The bias by which items are ranked, where scores are h . w and not `scale` times that.

    trained, part: `[V_padded]`, those there are; both belong to the scaled scores of the loss.
    """
    found = [bias for bias in (trained, part) if bias is not None]
    return sum(found[1:], start=found[0]) / scale if found else None


def place_bias(total: int, mesh: Mesh, *, values: npt.NDArray[Any] | None = None,
               barred: npt.NDArray[np.bool_] | None = None, over: Axes = (ITEMS,),
               row_map: RowMap | None = None) -> Array:
    """Numbers by item beside the rows of a table: f32 `[total]`, cut as the rows are; 0 for
    padding.

    values: `[V]`, by default 0; barred: bool `[V]`, items that are taken out: -inf.

    Each device gets its own part; every process has to know all of `values` and `barred`.
    """
    order = RowMap() if row_map is None else row_map
    given = values if values is not None else barred
    num_items = 0 if given is None else len(given)

    def part(index: Any) -> Floats:
        first, last, _ = index[0].indices(total)
        ids = order.ids(np.arange(first, last))
        known = ids < num_items
        ids = ids[known]
        here = np.zeros(len(ids), np.float32) if values is None else values[ids]
        found = np.zeros(last - first, np.float32)
        found[known] = here if barred is None else np.where(barred[ids], -np.inf, here)
        return found

    return jax.make_array_from_callback((total,), row_sharding(mesh, over), part)


def bias_state(optimizer: RowOptimizer, total: int) -> Any:
    """The row optimizer's state for a bias of `total` rows: of rows that are one wide."""
    return optimizer.init((total, 1))


def update_bias(bias: Array, grads: Array, state: Any, update: RowUpdate, hyper: Any
                ) -> tuple[Array, Any]:
    """One step of the row optimizer on bias and gradient f32 `[V_padded]`; (bias, state).

    Elementwise, so that what is sharded stays where it is. An item that is out stays out.
    """
    rows, state = update(bias[:, None], grads[:, None], state, hyper)
    return jnp.where(bias == -jnp.inf, bias, rows[:, 0]), state
