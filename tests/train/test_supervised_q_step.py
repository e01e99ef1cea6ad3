"""Whole steps with two heads, a softmax and values, against their definition in f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from dense_step import Trained, log_softmax
from test_q_learning_step import queries, targets

from rec_jax.errors import InputError
from rec_jax.model.encoders import bag
from rec_jax.objectives.q_learning import Config as QLearning
from rec_jax.objectives.supervised_q import Config

CONFIGS = {
    "sqn": Config(discount=0.7, value_weight=0.4, scale=1.5, softcap=2.0),
    "sac": Config(form="sac", cap=0.3, discount=0.5, steps=2, huber=0.2, reward_scale=2.0),
    "advantage": Config(form="advantage", cap=0.2, compared=1000),
}


@pytest.mark.parametrize(("name", "mode", "mesh"), [
    ("sqn", "dense", (1, 1)), ("sqn", "streamed", (2, 4)), ("sac", "dense", (2, 4)),
    ("advantage", "streamed", (1, 1)),
    pytest.param("advantage", "dense", (1, 1), marks=pytest.mark.slow)], ids=str)
def test_a_step_is_the_descent_of_its_definition(name: str, mode: str,
                                                 mesh: tuple[int, int]) -> None:
    config = CONFIGS[name]
    trained = Trained(config, bag.Config(linear=True), mode, mesh)
    batch = {key: value.reshape(-1, value.shape[-1]) for key, value in trained.batch.items()}
    live, actions = batch["targets"] >= 0, batch["targets"].clip(0)
    plain = QLearning(discount=config.discount, steps=config.steps,
                      reward_scale=config.reward_scale)

    def chosen(values: Any) -> Any:
        return jnp.take_along_axis(values, actions[..., None], -1)[..., 0]

    def loss(params: Any, items: Any, users: Any) -> Any:
        h = queries(batch, params, items)
        scores = config.scale * h @ items.T
        if config.softcap is not None:
            scores = config.softcap * jnp.tanh(scores / config.softcap)
        q = h @ params["heads/value"] @ items.T
        each = -chosen(log_softmax(scores))
        if config.form == "sac":
            each = each * jax.lax.stop_gradient(jnp.minimum(jnp.maximum(chosen(q), 0), config.cap))
        if config.form == "advantage":  # all items are drawn, each once
            above = chosen(q) - q.mean(-1)
            assert (above[live] > 0).any() and (above[live] < 0).any()
            each = each * jax.lax.stop_gradient(jnp.minimum(jnp.maximum(above, 0), config.cap))
        error = chosen(q) - jax.lax.stop_gradient(targets(plain, batch, q.max(-1)))
        cost = 0.5 * error ** 2
        if config.huber is not None:
            cost = jnp.where(abs(error) > config.huber,
                             config.huber * (abs(error) - config.huber / 2), cost)
        each = each + config.value_weight * cost
        return jnp.sum(jnp.where(live, each, 0.0)) / live.sum()

    trained.check(loss)


def test_an_encoder_has_no_parameter_that_is_called_a_head(
        monkeypatch: pytest.MonkeyPatch) -> None:
    from rec_jax.model import encoder

    monkeypatch.setattr(encoder, "_name", lambda path: "heads/value")
    with pytest.raises(InputError, match="expected another name"):
        encoder.build_encoder(bag.Config(linear=True), dim=4, length=3, causal=True,
                              precision="f32", seed=0)


@pytest.mark.parametrize(("settings", "message"), [
    ({"form": "both"}, "form"), ({"value_weight": 0.0}, "value_weight"), ({"cap": 0.0}, "cap")])
def test_settings_that_make_no_sense_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**settings)
