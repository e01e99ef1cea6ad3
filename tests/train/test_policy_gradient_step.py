"""Whole steps of the policy gradient against its definition in f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense_step import RATE, Trained, log_softmax, make_batch
from steps import MeanSoFar, compiled_sizes, make_step, new_state

from rec_jax.errors import InputError
from rec_jax.model.encoders import user
from rec_jax.objectives.policy_gradient import Config
from rec_jax.tables import RowOptimizerConfig, TableConfig

CONFIGS = {
    "plain": Config(constant=0.3),
    "returns": Config(discount=0.8, baseline="mean", scale=2.0),
    "log": Config(behaviour="propensity", cap=1.5, baseline="place", discount=0.5),
    "popularity": Config(behaviour="popularity", cap=None),
    "slate": Config(slate=4, behaviour="propensity", softcap=0.7),
    "entropy": Config(entropy=0.7, scale=3.0),
    "capped entropy": Config(entropy=0.4, softcap=0.6, slate=2),
}


def returns(rewards: np.ndarray, segments: np.ndarray, discount: float) -> np.ndarray:
    found = rewards.astype(np.float64)
    for place in range(rewards.shape[1] - 2, -1, -1):
        same = segments[:, place] == segments[:, place + 1]
        found[:, place] += np.where(same, discount * found[:, place + 1], 0.0)
    return found


def definition(config: Config, batch: dict[str, np.ndarray], scores: Any) -> Any:
    """Sum of losses over their number; scores `[R, L, V]` without scale and cap, in f64."""
    live, targets = batch["targets"] >= 0, batch["targets"].clip(0)
    gained = returns(batch["values/reward"], batch["segments"], config.discount)
    baseline: Any = config.constant
    if config.baseline == "mean":
        baseline = gained[live].mean()
    if config.baseline == "place":
        baseline = np.array([
            gained[live & (batch["positions"] == place)].mean()
            if (live & (batch["positions"] == place)).any() else 0.0
            for place in range(6)])[batch["positions"]]
    scores = config.scale * scores
    if config.softcap is not None:
        scores = config.softcap * jnp.tanh(scores / config.softcap)
    logs = log_softmax(scores)
    chosen = jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
    chance = jax.lax.stop_gradient(jnp.exp(chosen))
    factor = gained - baseline
    beta = {"own": None, "propensity": batch["values/propensity"],
            "popularity": np.exp(batch["log_q"].astype(np.float64))}[config.behaviour]
    if beta is not None:
        ratio = chance / np.where(live, beta, 1.0)
        factor = factor * (ratio if config.cap is None else jnp.minimum(ratio, config.cap))
    factor = factor * config.slate * (1 - chance) ** (config.slate - 1)
    entropy = -jnp.sum(jnp.exp(logs) * logs, -1)
    each = -factor * chosen - config.entropy * entropy
    return jnp.sum(jnp.where(live, each, 0.0)) / live.sum()


@pytest.mark.parametrize(("name", "mode", "mesh"), [
    ("plain", "dense", (1, 1)), ("returns", "streamed", (1, 1)),
    ("popularity", "streamed", (1, 1)), ("slate", "dense", (1, 1)),
    ("capped entropy", "dense", (1, 1)), ("entropy", "streamed", (2, 4)),
    pytest.param("log", "streamed", (2, 4), marks=pytest.mark.slow),
    pytest.param("capped entropy", "streamed", (1, 1), marks=pytest.mark.slow),
    pytest.param("entropy", "dense", (2, 4), marks=pytest.mark.slow)],
    ids=str)
def test_a_step_is_the_descent_of_its_definition(name: str, mode: str,
                                                 mesh: tuple[int, int]) -> None:
    config = CONFIGS[name]
    trained = Trained(config, user.Config(), mode, mesh)
    batch = {key: value.reshape(-1, value.shape[-1]) for key, value in trained.batch.items()}

    def loss(params: Any, items: Any, users: Any) -> Any:
        return definition(config, batch, users[batch["users"]] @ items.T)

    trained.check(loss)


@pytest.mark.parametrize("mode", ["dense", "streamed"])
def test_a_bias_is_a_part_of_the_policy(mode: str) -> None:
    """It is trained where the table is streamed, by the pass that updates the rows."""
    start = np.linspace(-1, 1, 37).astype(np.float32)
    config = Config(entropy=0.5)
    trained = Trained(config, user.Config(), mode, (1, 1), bias=start,
                      trains_bias=mode == "streamed")
    batch = {key: value.reshape(-1, value.shape[-1]) for key, value in trained.batch.items()}

    def loss(params: Any, items: Any, users: Any, bias: Any = start) -> Any:
        return definition(config, batch, users[batch["users"]] @ items.T + bias)

    trained.check(loss)
    if mode == "streamed":
        with jax.enable_x64(True):
            to_bias = jax.grad(loss, argnums=3)(*trained.before.parts,
                                                jnp.asarray(start, jnp.float64))
        np.testing.assert_allclose(trained.after.bias, start - RATE * np.asarray(to_bias),
                                   atol=2e-6)


def test_micro_batches_share_their_baseline_and_divisor() -> None:
    config = CONFIGS["returns"]
    one, two = (Trained(config, user.Config(), "streamed", (1, 1), count) for count in (1, 2))
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), two.after.parts,
                 one.after.parts)


def test_a_sparse_table_has_no_policy() -> None:
    with pytest.raises(InputError, match="does not fit objective 'policy_gradient'"):
        Trained(Config(), user.Config(), "sparse", (1, 1))


@pytest.mark.parametrize(("settings", "message"), [
    ({"discount": 1.1}, "discount"), ({"cap": 0.0}, "cap"), ({"slate": 0}, "slate"),
    ({"behaviour": "mine"}, "behaviour"), ({"entropy": -1.0}, "entropy"),
    ({"backend": "none"}, "backend")])
def test_settings_that_make_no_sense_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**settings)


def test_no_array_of_positions_times_items_is_compiled() -> None:
    """Nor of the table's gradient: of a streamed step with all corrections and the entropy."""
    items, table = 40_000, TableConfig(dim=4, optimizer=RowOptimizerConfig(kind="sgd", rate=0.1))
    config = Config(behaviour="propensity", slate=3, entropy=0.1, discount=0.5)
    rule, params = optax.sgd(0.1), {"kernel": jnp.eye(4)}
    step = make_step(MeanSoFar(), config, rule, table, "streamed")  # type: ignore[arg-type]
    state = new_state(params, rule, table, "streamed", items)
    batch = {key: jnp.asarray(value) for key, value in make_batch(0).items() if key != "users"}
    sizes, positions = compiled_sizes(step, state, batch), batch["items"].size
    assert max(sizes) < positions * items // 2
    assert max(sizes) >= items * 4  # the table itself is seen
