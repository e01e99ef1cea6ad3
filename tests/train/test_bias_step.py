"""A bias in the loss: fixed or trained, dense or streamed, with one label a position or several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import LENGTH, RATE, ROWS, Trained, V, log_softmax
from examples import example
from marks import alone_or_cut, fast_where

from rec_jax.errors import InputError
from rec_jax.objectives import next_item

BIAS = np.random.default_rng(8).standard_normal(V).astype(np.float32)
HISTORY = example("weighted_history").Config()


@pytest.mark.parametrize(("mode", "trained", "mesh"), fast_where(
    lambda mode, trained, mesh: alone_or_cut(mode, mesh), ["dense", "streamed"], [False, True],
    [(1, 1), (2, 4)]), ids=str)
def test_the_step_is_that_of_scores_with_a_bias(mode: str, trained: bool,
                                                mesh: tuple[int, int]) -> None:
    made = Trained(next_item.Config(backend="xla", scale=0.7), HISTORY, mode, mesh, bias=BIAS,
                   trains_bias=trained)
    batch = {name: value.reshape(-1, LENGTH) for name, value in made.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any, bias: Any = BIAS) -> Any:
        logs = log_softmax(0.7 * made.queries(params, items, users) @ items.T + bias)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    made.check(loss)
    with jax.enable_x64(True):
        before = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), made.before.parts)
        to_bias = jax.grad(loss, argnums=3)(*before, jnp.asarray(BIAS, jnp.float64))
    wanted = BIAS - RATE * np.asarray(to_bias) if trained else BIAS
    np.testing.assert_allclose(made.after.bias, wanted, atol=2e-6)
    assert np.abs(np.asarray(to_bias)).max() > 0.01


@pytest.mark.parametrize("mode", [pytest.param("dense", marks=pytest.mark.slow), "streamed"])
def test_several_labels_have_their_bias(mode: str) -> None:
    made = Trained(example("rating_distribution").Config(backend="xla"), HISTORY, mode, (1, 1),
                   bias=BIAS)
    batch = {name: value.reshape(-1, LENGTH) for name, value in made.batch.items()}

    def loss(params: Any, items: Any, users: Any) -> Any:
        queries, total, count = made.queries(params, items, users), 0.0, 0
        for row in range(ROWS):
            for segment, last in ((1, 2), (2, 4)):
                own = (batch["segments"][row] == segment) & (batch["targets"][row] >= 0)
                if own.any():
                    share = batch["values/rating"][row][own].astype(np.float64)
                    share /= share.sum()
                    logs = log_softmax(queries[row, last] @ items.T + BIAS)
                    logs = logs[batch["targets"][row][own]]
                    total, count = total + jnp.sum(share * (np.log(share) - logs)), count + 1
        return total / count

    made.check(loss)


def test_what_cannot_have_a_bias_says_so() -> None:
    with pytest.raises(InputError, match="trained bias in a streamed table"):
        Trained(example("rating_distribution").Config(backend="xla"), HISTORY, "streamed", (1, 1),
                bias=BIAS, trains_bias=True)
