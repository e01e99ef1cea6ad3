"""Ratings: what value a user gives to an item, as in matrix factorisation for rating prediction.

    z_ui = b_u + q_u . w_i,      r_ui = mean + z_ui                               (linear)
                                 r_ui = low + (high - low) sigmoid(m + z_ui)      (sigmoid)

with m where z = 0 gives the mean. The loss of a known rating is (r - r_ui)^2, or the logistic one
of its place t = (r - low) / (high - low) in the range, both with an L2 penalty on what it used.
Koren, Bell & Volinsky, 2009; only the rows of the rated items are read.

The biases are columns, so whatever carries queries and rows carries them. With the encoder's
`item_bias` the last column of a query is 1 and that of a row is the item's bias. The user's bias is
the first column of the query, which counts once more: b_u = q_u1, as if every item had one 1 added
to its first column. It is the same for all items, so recommending by q . w is recommending by
predicted rating, and ranks, lists and exports need to know nothing of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.objectives.base import Batch, Catalogue, Keys, Needs, Task, next_items
from rec_jax.ranges import at_least, check

Array = jax.Array
_EDGE = 1e-6  # of the range: a mean at its very end has no place on a sigmoid


@dataclass(frozen=True)
class Config:
    """Settings of the objective.

    low, high: range of the ratings; predictions stay in it.
    mean: of the ratings, from which predictions begin; none: the middle of the range.
    link: how a score becomes a rating.
    error: squared, or the logistic loss, which needs the sigmoid.
    user_bias: whether the first column of a query is the user's bias.
    penalty: weight of the squared lengths of a rating's query and row.
    bias_penalty: that of the biases among their columns: the first one of a query (with
      `user_bias`) and the last one of a row; none: `penalty`. As each rating has its share, that of
      a bias shrinks it by as much however many ratings it has, and should be small.
    """

    kind: str = "rating"
    low: float = 1.0
    high: float = 5.0
    mean: float | None = None
    link: Literal["linear", "sigmoid"] = "linear"
    error: Literal["squared", "logistic"] = "squared"
    user_bias: bool = True
    penalty: float = 0.0
    bias_penalty: float | None = None

    def __post_init__(self) -> None:
        check(self, "objective.", low=at_least(-1e6, 1e6), high=at_least(-1e6, 1e6),
              mean=at_least(-1e6, 1e6), penalty=at_least(0, 1e6),
              bias_penalty=at_least(0, 1e6))
        if not self.low < self.high:
            raise InputError(f"objective.low is {self.low:g} and objective.high {self.high:g}; "
                             "expected a range")
        if self.mean is not None and not self.low <= self.mean <= self.high:
            raise InputError(f"objective.mean is {self.mean:g}; expected {self.low:g} to "
                             f"{self.high:g}")
        if self.error == "logistic" and self.link != "sigmoid":
            raise InputError("objective.error = 'logistic' is of probabilities; expected "
                             "objective.link = 'sigmoid'")

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def needs(self) -> Needs:
        """The rows of the rated items, and the ratings."""
        return Needs(labels=True, values=("rating",), rates=True)

    def drawn(self, positions: int) -> int:
        """No row but those of the labels."""
        del positions
        return 0

    def pairs(self, positions: int, num_items: int) -> int:
        """A score each."""
        del num_items
        return positions

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every position that has an item predicts its rating."""
        del keys, num_items
        task = next_items(batch["targets"])
        return task._replace(values={"rating": batch["values/rating"].reshape(task.weights.shape)})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`."""
        precise, rows = queries.astype(jnp.float32), catalogue.rows("labels").astype(jnp.float32)
        scores, rating = self.scores(precise, rows), task.values["rating"]
        if self.error == "logistic":
            place = (rating - self.low) / (self.high - self.low)
            logits = self._middle + scores
            loss = jax.nn.softplus(logits) - place * logits
        else:
            loss = jnp.square(rating - self.predicted(scores))
        if not (self.penalty or self.bias_penalty):
            return loss
        # A column that is 1 by construction adds the same to every rating, and no slope.
        loss += self.penalty * (jnp.sum(precise**2, -1) + jnp.sum(rows**2, -1))
        if self.bias_penalty is None:
            return loss
        biases = rows[..., -1] ** 2 + (precise[..., 0] ** 2 if self.user_bias else 0.0)
        return loss + (self.bias_penalty - self.penalty) * biases

    def scores(self, queries: Any, rows: Any) -> Any:
        """z `[...]` of queries and rows `[..., d]`, by whichever of numpy and jax they are of."""
        found = (queries * rows).sum(axis=-1)
        return found + queries[..., 0] if self.user_bias else found

    def predicted(self, scores: Any) -> Any:
        """Ratings of scores z, which a linear link may put out of the range."""
        if self.link == "linear":
            return self._mean + scores
        return self.low + (self.high - self.low) * jax.nn.sigmoid(self._middle + scores)

    @property
    def _mean(self) -> float:
        return (self.low + self.high) / 2 if self.mean is None else self.mean

    @property
    def _middle(self) -> float:
        """The logit of the mean's place in the range."""
        place = min(max((self._mean - self.low) / (self.high - self.low), _EDGE), 1 - _EDGE)
        return math.log(place / (1 - place))
