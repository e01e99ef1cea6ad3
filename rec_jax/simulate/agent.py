"""An agent: a model that plays in an environment and learns from what came of it.

    play     `acting.episodes` users to their end, with the current weights
    store    in the replay, where there is one
    update   the engine's own step on those episodes, or on some drawn from the store

All of that is one jitted function of a state, so nothing leaves the device between two of them. Its
chance is a function of the run's seed and of how many steps it has made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rec_jax import streams
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.mesh import batch_sharding, make_mesh, replicated
from rec_jax.model.encoder import build_encoder
from rec_jax.model.optimizer import dense_optimizer, schedule
from rec_jax.run import modes_of, tables_of, update_of
from rec_jax.simulate.acting import Act, Policy, exploring, make_act
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.environments import Environment
from rec_jax.simulate.replay import Replay, ReplayConfig, add, draw, judged, new_replay
from rec_jax.simulate.rollout import Episodes, play
from rec_jax.tables import init_table, row_optimizer, rows_over
from rec_jax.tables.choose import Choice
from rec_jax.tables.row_map import row_map_of
from rec_jax.train.mode import Setting
from rec_jax.train.state import TrainState, from_items, init_state, to_items
from rec_jax.train.step import Step, StepMetrics, make_train_step

Array = jax.Array


class AgentState(NamedTuple):
    """Everything that a step of the run changes. steps: int32 `[]`, steps done; replay: None
    without a store."""

    training: TrainState
    replay: Replay | None
    steps: Array


class AgentMetrics(NamedTuple):
    """Scalars of a step: loss and gradient norm of its updates (means), the mean return of the
    users that were played, the share of explored places, and ids that are no items."""

    loss: Array
    gradient_norm: Array
    earned: Array
    explored: Array
    bad_ids: Array


@dataclass(frozen=True)
class Agent:
    """The parts of a run. first: makes the state before the first step, or, with `fill=False`, one
    of the same shapes without any episode; step: donates its argument."""

    config: AgentConfig
    environment: Environment
    mesh: Mesh
    setting: Setting
    choice: Choice
    first: Callable[..., AgentState]
    step: Callable[[AgentState], tuple[AgentState, AgentMetrics]]


def build_agent(config: AgentConfig) -> Agent:
    """Draw the environment, choose how the table trains, and compile nothing yet.

    Raises:
      InputError: the config does not fit the devices, or its parts not each other.
    """
    environment = config.environment.open()
    mesh, run = make_mesh(config.mesh), config.as_run(environment.horizon)
    for name, count in (("acting.episodes", config.acting.episodes), ("replay.rows", config.rows)):
        if count % mesh.size:
            raise InputError(f"{name} is {count}, on {mesh.size} devices; expected a multiple")
    encoder, params = build_encoder(
        config.encoder, dim=config.table.dim, length=environment.horizon, causal=True,
        precision=config.train.precision, seed=config.seed, scale=config.table.init_scale,
        heads=config.objective.needs.heads)
    choice = update_of(run, environment.num_items)
    optimizer = dense_optimizer(config.optimizer, config.updates)
    tables, modes = tables_of(run), modes_of(run, choice.mode)
    setting = Setting(encoder, config.objective, tables, modes, mesh,
                      DTYPES[config.train.precision])
    update = make_train_step(
        encoder, config.objective, optimizer, precision=config.train.precision,
        ema=config.train.ema, tables=tables, modes=modes, mesh=mesh,
        rate=schedule(config.optimizer, config.updates), losses=config.replay.priority > 0)

    def first(fill: bool = True) -> AgentState:
        rows = {name: init_table(
            table, environment.num_items, config.seed, mesh, name=name,
            over=rows_over(choice.mode), row_map=row_map_of(choice.mode, environment.num_items),
            optimizer=None if modes[name] == "dense" else row_optimizer(table.optimizer))
            for name, table in tables.items()}
        training = init_state(params, rows, optimizer, seed=config.seed, modes=modes, mesh=mesh,
                              average=config.train.ema is not None)
        replay = None
        if config.replay.capacity:
            replay = new_replay(config.replay.capacity, environment.horizon)
            if fill and config.replay.begin:
                replay = _filled(config, environment, setting, training, replay)
        return AgentState(training, *jax.device_put((replay, jnp.int32(0)), replicated(mesh)))

    step = jax.jit(functools.partial(_step, config, environment, setting, update),
                   donate_argnums=0)
    return Agent(config, environment, mesh, setting, choice, first, step)


def chooser(act: Act, state: TrainState) -> Callable[[Array, Array, Array], Array]:
    """`act` with its weights, as `rollout.play` wants it."""
    return functools.partial(act, state)


def make_player(agent: Agent, policy: Policy) -> Callable[[TrainState, Array], Array]:
    """A jitted (weights, key) -> returns f32 `[train.episodes]` of users who meet that policy."""
    act = make_act(agent.setting, policy, agent.environment.slate)
    return jax.jit(lambda state, key: play(
        agent.environment, chooser(act, state), key, agent.config.train.episodes).returns)


def evaluated(state: TrainState) -> TrainState:
    """The state whose weights are the average, where there is one."""
    if state.average is None:
        return state
    tables = {name: table.replace(rows=state.average.tables[name].astype(table.rows.dtype))
              for name, table in state.tables.items()}
    return state._replace(encoder=state.average.encoder, tables=tables)


def agent_items(state: AgentState) -> dict[str, Any]:
    """The state as a checkpoint's named pytrees: those of a training, and the agent's own."""
    own: dict[str, Any] = {"steps": state.steps}
    if state.replay is not None:
        own["replay"] = state.replay._asdict() | {"episodes": state.replay.episodes._asdict()}
    return {**to_items(state.training), "agent": own}


def from_agent_items(items: dict[str, Any], like: AgentState) -> AgentState:
    """The inverse of `agent_items`, for tables of the sizes of `like`."""
    own = items["agent"]
    replay = None
    if "replay" in own:
        stored = own["replay"]
        replay = Replay(Episodes(**stored["episodes"]), stored["written"], stored["priority"])
    return AgentState(from_items(items, like.training.tables), replay, own["steps"])


def _step(config: AgentConfig, environment: Environment, setting: Setting, update: Step,
          state: AgentState) -> tuple[AgentState, AgentMetrics]:
    training, replay, done = state
    keys = jax.random.split(streams.of_step(streams.of_run(config.seed, streams.AGENT), done, 0), 2)
    explored = config.acting.explored(done)
    act = make_act(setting, config.acting.policy, environment.slate)
    act = exploring(act, explored, environment.num_items)
    episodes = play(environment, chooser(act, training), keys[0], config.acting.episodes)
    if replay is None:
        training, found = update(training, _placed(episodes.batch(), setting.mesh))
    else:
        training, replay, found = _replayed(config.replay, setting, update, training,
                                            add(replay, episodes), keys[1])
    metrics = AgentMetrics(jnp.mean(found.loss), jnp.mean(found.gradient_norm),
                           jnp.mean(episodes.returns), explored, jnp.sum(found.bad_ids))
    return AgentState(training, replay, done + 1), metrics


def _replayed(config: ReplayConfig, setting: Setting, update: Step, training: TrainState,
              replay: Replay, key: Array) -> tuple[TrainState, Replay, StepMetrics]:
    """Updates from the store; their metrics, stacked."""
    def one(carry: tuple[TrainState, Replay], key: Array) -> Any:
        training, replay = carry
        chosen, places, factors = draw(replay, config, key)
        batch = chosen.batch()
        batch["importance"] = jnp.broadcast_to(factors[:, None], chosen.items.shape)[None]
        training, metrics = update(training, _placed(batch, setting.mesh))
        if metrics.losses is not None:
            replay = judged(replay, places, metrics.losses.reshape(chosen.items.shape),
                            chosen.targets >= 0)
        return (training, replay), metrics._replace(losses=None)

    (training, replay), found = jax.lax.scan(one, (training, replay),
                                             jax.random.split(key, config.updates))
    return training, replay, found


def _filled(config: AgentConfig, environment: Environment, setting: Setting, state: TrainState,
            replay: Replay) -> Replay:
    """The store with the episodes that are there before the first step."""
    act = make_act(setting, "random", environment.slate)
    return jax.jit(lambda replay, key: add(replay, play(
        environment, chooser(act, state), key, config.replay.begin)))(
        replay, streams.of_run(config.seed, streams.REPLAY))


def _placed(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh, axis=1))
