"""What an agent became: returns beside those of other policies, a page with curves, a trajectory.

All policies meet the same users with the same chance, so differences have narrower intervals than
the returns themselves.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax import streams
from rec_jax.checkpoint import Checkpoints
from rec_jax.config import load as load_config
from rec_jax.errors import InputError
from rec_jax.files import write_atomic
from rec_jax.run import Run
from rec_jax.simulate.acting import any_items, make_act
from rec_jax.simulate.agent import Agent, build_agent, chooser, evaluated
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.rollout import play, watch
from rec_jax.simulate.train_agent import restored
from rec_jax.train.log import read_metrics
from rec_jax.train.report import image, png_of, two_axes
from rec_jax.train.state import TrainState

Floats = np.ndarray
_CATALOGUE = ("kind", "items", "seed", "topics", "trashy")
"""Settings that a catalogue is drawn by, where an environment has them."""


def load_agent(run: Run, step: int | None = None) -> tuple[Agent, TrainState, int]:
    """An agent with the weights of its best checkpoint, or of `step`, and which it is.

    Raises:
      InputError: the folder is no run in an environment, or has no such checkpoint.
    """
    if "environment" not in run.saved_config():
        raise InputError(f"{run.folder} does not play in an environment; expected a run with "
                         "[environment]")
    config = load_config(AgentConfig, run.config_path, trust_code=run.trust_code)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        chosen = checkpoints.best() if step is None else step
        if chosen is None or chosen not in checkpoints.steps():
            raise InputError(f"{run.folder} has no checkpoint{'' if step is None else f' {step}'}; "
                             f"it has {', '.join(map(str, checkpoints.steps())) or 'none'}")
        agent = build_agent(config)
        return agent, evaluated(restored(agent, checkpoints.open(chosen)).training), chosen


def compare_policies(run: Run, *, step: int | None = None, against: Sequence[Run] = (),
                     users: int = 1024, confidence: float = 0.95, seed: int = 0
                     ) -> dict[str, Any]:
    """Returns of simulated users by policy, with normal intervals.

    Policies: the run's best items, draws from it, any items, the items that are taken most where
    any are shown, and the best items of the runs `against`, which must know the same catalogue.
    """
    if users < 2:
        raise InputError(f"users is {users}; expected at least 2")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence:g}; expected more than 0 and less than 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; expected at least 0 and at most {2**32 - 1}")
    agent, state, chosen = load_agent(run, step)
    environment, slate = agent.environment, agent.environment.slate
    key = streams.of_run(seed, streams.PLAY)

    def returns(choose: Any) -> Floats:
        return np.asarray(jax.jit(lambda key: play(environment, choose, key, users).returns)(key),
                          np.float64)

    def anything(items: Any, place: Any, seed: Any) -> Any:
        return any_items(items.shape[0], slate, environment.num_items, seed)

    found = {"best items": returns(chooser(make_act(agent.setting, "greedy", slate), state)),
             "draws": returns(chooser(make_act(agent.setting, "sample", slate), state))}
    found["any items"] = returns(anything)
    taken = np.asarray(play(environment, anything, jax.random.fold_in(key, 1), users).targets)
    counts = np.bincount(taken[taken >= 0], minlength=environment.num_items)
    popular = jnp.asarray(np.argsort(-counts, kind="stable")[:slate], jnp.int32)
    found["popular items"] = returns(lambda items, place, seed: jnp.broadcast_to(
        popular, (items.shape[0], slate)))
    for other in against:
        rival, weights, _ = load_agent(other)
        check_rival(agent, rival, str(other.folder))
        found[name_of(other.folder, found)] = returns(
            chooser(make_act(rival.setting, "greedy", slate), weights))
    own = found["best items"]
    policies = {name: {
        "return": float(values.mean()), "interval": _interval(values, confidence),
        "less_than_best": float((own - values).mean()),
        "less_than_best_interval": _interval(own - values, confidence)}
        for name, values in found.items()}
    return {"run": str(run.folder), "step": chosen, "users": users, "confidence": confidence,
            "policies": policies, "trajectory": trajectory(agent, state, key)}


def check_rival(agent: Agent, rival: Agent, name: str) -> None:
    """Raises InputError where the agent in folder `name` cannot meet the users of `agent`."""
    here, there = ({"num_items": each.environment.num_items, **{
        key: getattr(each.config.environment, key) for key in _CATALOGUE
        if hasattr(each.config.environment, key)}} for each in (agent, rival))
    for key in {**here, **there}:
        if here.get(key) != there.get(key):
            raise InputError(f"{name} was trained with another catalogue (environment.{key} is "
                             f"{there.get(key)}, and {here.get(key)} here); expected one catalogue")
    if rival.environment.horizon < agent.environment.horizon:
        raise InputError(f"{name} was trained on histories of {rival.environment.horizon} places "
                         f"(environment.horizon), and users here have "
                         f"{agent.environment.horizon}; expected at least so many")


def name_of(folder: Path, taken: Collection[str]) -> str:
    """What a rival is called: by its folder, with the folders above where that is taken.

    Raises:
      InputError: both are taken.
    """
    for name in (folder.name, str(folder)):
        if name not in taken:
            return name
    raise InputError(f"run {folder} is given twice; expected each once")


def trajectory(agent: Agent, state: TrainState, key: jax.Array) -> list[dict[str, Any]]:
    """One user who meets the best items, turn by turn: the slate, what was taken and earned, and
    what the environment says of the user."""
    act = make_act(agent.setting, "greedy", agent.environment.slate)
    episodes, states, slates = jax.jit(
        lambda key: watch(agent.environment, chooser(act, state), key, agent.mesh.size))(key)
    told = jax.vmap(jax.vmap(agent.environment.tell))(states)
    episodes, slates, told = jax.device_get((episodes, slates, told))
    return [{"turn": turn + 1, "slate": slates[turn, 0].tolist(),
             "taken": int(episodes.targets[0, turn]), "reward": float(episodes.rewards[0, turn]),
             **{name: values[turn, 0].item() for name, values in told.items()}}
            for turn in range(int(episodes.segments[0].sum()))]


def write_agent_report(run: Run, summary: Mapping[str, Any]) -> None:
    """Write `report.html` and `curves.png` of a finished run, each whole or not at all."""
    agent, state, _ = load_agent(run)
    turns = trajectory(agent, state, streams.of_run(agent.config.seed, streams.PLAY))
    picture = curves(run.metrics_path)
    write_atomic(run.curves_path, picture)
    rows = [[html.escape(_shown(value)) for value in turn.values()] for turn in turns]
    head = "".join(f"<th>{html.escape(name)}" for name in turns[0]) if turns else ""
    facts = "".join(f"<tr><th>{html.escape(name.replace('_', ' '))}<td>"
                    f"{html.escape(_shown(value))}" for name, value in summary.items())
    title = html.escape(run.folder.name)
    page = "".join([
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem}"
        "td,th{padding:.1rem .8rem .1rem 0;text-align:left}img{max-width:100%}</style>",
        f"<h1>{title}</h1><table>{facts}</table>",
        f"<p>{image('returns and loss by episodes played', picture)}",
        "<h2>One user who meets the best items</h2>",
        f"<table><tr>{head}", *("<tr><td>" + "<td>".join(row) for row in rows), "</table>",
        f"<h2>Config</h2><pre>{html.escape(run.config_path.read_text())}</pre></html>\n"])
    write_atomic(run.report_path, page)


def curves(metrics: Path) -> bytes:
    """Learning curves as PNG: returns, and loss, by episodes played."""
    lines = read_metrics(metrics)
    figure, left, right = two_axes()
    for axis, kind, name, label in (
            (left, "train", "earned", "while it learns"), (left, "valid", "return", "best items"),
            (left, "valid", "return_sampled", "draws"), (right, "train", "loss", "loss")):
        points = [(line["episodes"], line[name]) for line in lines
                  if line["kind"] == kind and name in line]
        if points:
            axis.plot(*zip(*points, strict=True), lw=1, label=label)
    left.set(xlabel="episodes", ylabel="return")
    right.set(xlabel="episodes", ylabel="loss")
    if left.lines:
        left.legend(frameon=False)
    return png_of(figure)


def _interval(values: Floats, confidence: float) -> list[float]:
    """Of the mean of independent `values [n]`, normal."""
    half = NormalDist().inv_cdf((1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
