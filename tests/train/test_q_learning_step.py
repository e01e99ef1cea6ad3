"""Whole steps of Q-learning against its definition in f64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense_step import LENGTH, Trained, log_softmax, make_batch
from steps import MeanSoFar, compiled_sizes, make_step, new_state

from rec_jax.errors import InputError
from rec_jax.model.encoders import bag
from rec_jax.objectives.q_learning import Config
from rec_jax.tables import RowOptimizerConfig, TableConfig

CONFIGS = {
    "one step": Config(discount=0.8),
    "three steps": Config(discount=0.9, steps=2, huber=0.3, scale=1.5, reward_scale=0.4),
    "conservative": Config(conservative=0.6, discount=0.5, scale=2.0),
}


def targets(config: Config, batch: dict[str, np.ndarray], best: Any) -> Any:
    """Written out as loops over rows and places; best: `[R, L]`, each state's largest Q."""
    rows, length = batch["targets"].shape
    gained, share = np.zeros((rows, length)), np.zeros((rows, length, length))
    for row, place in np.ndindex(rows, length):
        segments = batch["segments"][row]
        for ahead in range(config.steps + 1):
            at = place + ahead
            if at >= length or segments[at] != segments[place] or segments[place] == 0:
                break
            if ahead == config.steps:
                share[row, place, at] = config.discount ** ahead
            else:
                gained[row, place] += config.discount ** ahead * config.reward_scale * np.float64(
                    batch["values/reward"][row, at])
    return gained + jnp.einsum("rpa,ra->rp", share, best)


def queries(batch: dict[str, np.ndarray], params: Any, items: Any) -> Any:
    """Means of the items so far, times a matrix: the bag of items, written out."""
    place = np.arange(LENGTH)
    same = ((place[:, None] >= place[None, :])
            & (batch["segments"][:, :, None] == batch["segments"][:, None, :]))
    share = same / (batch["positions"] + 1.0)[:, :, None]
    return (share @ items[batch["items"]]) @ params["kernel"]


def definition(config: Config, batch: dict[str, np.ndarray], q: Any, best: Any) -> Any:
    """Sum of losses over their number; q: `[R, L, V]` in f64."""
    live, actions = batch["targets"] >= 0, batch["targets"].clip(0)
    chosen = jnp.take_along_axis(q, actions[..., None], -1)[..., 0]
    error = chosen - jax.lax.stop_gradient(targets(config, batch, best))
    each = 0.5 * error ** 2
    if config.huber is not None:
        each = jnp.where(abs(error) > config.huber,
                         config.huber * (abs(error) - config.huber / 2), each)
    lost = -jnp.take_along_axis(log_softmax(q), actions[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(live, each + config.conservative * lost, 0.0)) / live.sum()


@pytest.mark.parametrize(("name", "mode", "mesh"), [
    ("one step", "dense", (1, 1)), ("three steps", "sparse", (1, 1)),
    ("conservative", "streamed", (2, 4)), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("three steps", "sparse", (2, 4)), ("one step", "dense", (2, 4)),
            ("conservative", "dense", (1, 1))))], ids=str)
def test_a_step_is_the_descent_of_its_definition(name: str, mode: str,
                                                 mesh: tuple[int, int]) -> None:
    config = CONFIGS[name]
    trained = Trained(config, bag.Config(linear=True), mode, mesh)
    batch = {key: value.reshape(-1, value.shape[-1]) for key, value in trained.batch.items()}

    def loss(params: Any, items: Any, users: Any) -> Any:
        q = config.scale * (queries(batch, params, items) @ items.T)
        return definition(config, batch, q, q.max(-1))

    trained.check(loss)


@pytest.mark.parametrize("double", [True, False])
def test_the_average_is_the_target_network(double: bool) -> None:
    """After some steps with an average its Q is another one than that of the weights."""
    config = Config(discount=0.9, double=double)
    table, rule = TableConfig(dim=8, init_scale=0.5), optax.sgd(0.5)
    params = {"kernel": jnp.eye(8) + 0.1}
    step = make_step(MeanSoFar(), config, rule, table, ema=0.9)  # type: ignore[arg-type]
    state = new_state(params, rule, table, "dense", 37, average=True)
    batch = make_batch(3)
    del batch["users"]
    flat = {key: value.reshape(-1, value.shape[-1]) for key, value in batch.items()}
    given = jax.tree.map(jnp.asarray, batch)
    for _ in range(3):
        state, _ = step(state, given)
    assert state.average is not None
    now, late = ((dict(encoder), np.array(tables["items"])[:37].astype(np.float64))
                 for encoder, tables in (
        (state.encoder, {"items": state.items.rows}),
        (state.average.encoder, state.average.tables)))

    def q_of(weights: Any) -> np.ndarray:
        kernel, rows = np.asarray(weights[0]["kernel"], np.float64), weights[1]
        count = np.arange(1, LENGTH + 1)[:, None]
        found: np.ndarray = np.cumsum(rows[flat["items"]], 1) / count @ kernel @ rows.T
        return found

    q, steady = q_of(now), q_of(late)
    best = (np.take_along_axis(steady, q.argmax(-1)[..., None], -1)[..., 0] if double
            else steady.max(-1))
    wanted = definition(config, flat, jnp.asarray(q), jnp.asarray(best))
    other = definition(config, flat, jnp.asarray(q), jnp.asarray(q.max(-1)))
    _, metrics = step(state, given)
    np.testing.assert_allclose(metrics.loss, wanted, rtol=1e-4)
    assert abs(float(metrics.loss) - float(other)) > 1e-3


def test_a_state_past_which_nothing_comes_has_its_reward_as_target() -> None:
    config = Config(discount=1.0)
    batch = jax.tree.map(jnp.asarray, make_batch(3))
    known = config.known(batch)
    last = np.asarray(batch["histories"][0, 0])
    ends = known["more"].reshape(8, LENGTH)[:, last[last >= 0]]
    np.testing.assert_array_equal(ends, 0.0)


@pytest.mark.parametrize(("settings", "message"), [
    ({"discount": 1.5}, "discount"), ({"steps": 0}, "steps"), ({"huber": 0.0}, "huber"),
    ({"conservative": -1.0}, "conservative"), ({"reward_scale": 0.0}, "reward_scale")])
def test_settings_that_make_no_sense_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**settings)


@pytest.mark.parametrize(("config", "mode", "average"), [
    (Config(discount=0.5, steps=2), "sparse", False),
    (Config(discount=0.5, conservative=0.3), "streamed", False),
    pytest.param(Config(discount=0.5), "dense", True, marks=pytest.mark.slow)],
    ids=["plain", "conservative", "average"])
def test_no_array_of_positions_times_items_is_compiled(config: Config, mode: str,
                                                       average: bool) -> None:
    """The best item of every state is of all items, and its search keeps no scores of them."""
    items, table = 40_000, TableConfig(dim=4, optimizer=RowOptimizerConfig(kind="sgd", rate=0.1))
    rule, params = optax.sgd(0.1), {"kernel": jnp.eye(4)}
    step = make_step(MeanSoFar(), config, rule, table, mode,  # type: ignore[arg-type]
                     ema=0.9 if average else None)
    state = new_state(params, rule, table, mode, items, average=average)
    batch = {key: jnp.asarray(value) for key, value in make_batch(0).items() if key != "users"}
    sizes, positions = compiled_sizes(step, state, batch), batch["items"].size
    assert items * 4 <= max(sizes) < positions * items // 2  # the table itself is seen
