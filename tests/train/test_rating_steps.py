"""Whole steps of the objective of ratings against its definition in f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import Trained

from rec_jax.errors import InputError
from rec_jax.model.encoders import user
from rec_jax.objectives.rating import Config

CONFIGS = {
    "linear": Config(mean=3.2, penalty=0.1, bias_penalty=0.02),
    "no user bias": Config(user_bias=False),
    "sigmoid": Config(link="sigmoid", low=0.0, mean=4.0),
    "logistic": Config(link="sigmoid", error="logistic", penalty=0.02),
}


def written_out(config: Config, queries: Any, rows: Any, rating: Any) -> Any:
    """The loss of each rating, as in the definition."""
    z = jnp.sum(queries * rows, -1) + (queries[..., 0] if config.user_bias else 0.0)
    mean = (config.low + config.high) / 2 if config.mean is None else config.mean
    span = config.high - config.low
    middle = jnp.log((mean - config.low) / (config.high - mean))
    chance = 1 / (1 + jnp.exp(-(middle + z)))
    if config.error == "logistic":
        place = (rating - config.low) / span
        loss = -place * jnp.log(chance) - (1 - place) * jnp.log(1 - chance)
    else:
        found = mean + z if config.link == "linear" else config.low + span * chance
        loss = (rating - found) ** 2
    light = config.penalty if config.bias_penalty is None else config.bias_penalty
    user = config.penalty if not config.user_bias else light
    return (loss + user * queries[..., 0]**2 + light * rows[..., -1]**2 + config.penalty * (
        jnp.sum(queries[..., 1:]**2, -1) + jnp.sum(rows[..., :-1]**2, -1)))


@pytest.mark.parametrize(("name", "mode", "mesh"), [
    ("linear", "dense", (1, 1)), ("linear", "sparse", (2, 4)), ("no user bias", "sparse", (1, 1)),
    ("sigmoid", "sparse", (1, 1)), ("logistic", "dense", (1, 1)),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("linear", "sparse", (1, 1)), ("linear", "dense", (2, 4)),
        ("no user bias", "dense", (1, 1)), ("sigmoid", "dense", (1, 1)),
        ("logistic", "sparse", (1, 1))))], ids=str)
def test_a_step_is_the_descent_of_its_definition(name: str, mode: str,
                                                 mesh: tuple[int, int]) -> None:
    config = CONFIGS[name]
    trained = Trained(config, user.Config(item_bias=True), mode, mesh)
    batch = {key: value.reshape(-1, value.shape[-1]) for key, value in trained.batch.items()}
    live, targets = batch["targets"] >= 0, batch["targets"].clip(0)

    def loss(params: Any, items: Any, users: Any) -> Any:
        people = users[batch["users"]]
        queries = jnp.concatenate([people[..., :-1], jnp.ones_like(people[..., :1])], -1)
        each = written_out(config, queries, items[targets],
                           batch["values/rating"].astype(np.float64))
        return jnp.sum(jnp.where(live, each, 0.0)) / live.sum()

    trained.check(loss)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_order_of_scores_is_that_of_ratings(config: Config) -> None:
    """Recommending by q . w is recommending by predicted rating."""
    random = np.random.default_rng(0)
    query, rows = random.standard_normal(6), random.standard_normal((40, 6))
    ratings = np.asarray(config.predicted(jnp.asarray(config.scores(query[None], rows))))
    np.testing.assert_array_equal(np.argsort(ratings), np.argsort(rows @ query))
    mean = (config.low + config.high) / 2 if config.mean is None else config.mean
    np.testing.assert_allclose(config.predicted(jnp.zeros(1)), mean, rtol=1e-5)
    if config.link == "sigmoid":
        assert config.low < ratings.min() and ratings.max() < config.high


@pytest.mark.parametrize(("settings", "message"), [
    ({"low": 5.0}, "expected a range"), ({"mean": 0.5}, "expected 1 to 5"),
    ({"error": "logistic"}, r"objective\.link = 'sigmoid'"), ({"penalty": -1.0}, "penalty"),
    ({"low": float("nan")}, "low")])
def test_settings_that_make_no_sense_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**settings)


def test_a_mean_at_the_end_of_the_range_is_finite() -> None:
    config = Config(link="sigmoid", mean=5.0)
    assert np.isfinite(np.asarray(jax.jit(config.predicted)(jnp.array([0.0, 3.0, -3.0])))).all()
