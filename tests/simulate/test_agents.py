"""Agents that play: what they learn, that they go on with the same bits, and their verbs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rec_jax import api, streams
from rec_jax import config as configs
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.run import Run
from rec_jax.simulate.agent import agent_items, build_agent, make_player
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.agent_report import check_rival, name_of
from rec_jax.simulate.train_agent import run_agent
from rec_jax.train.log import read_metrics

BASE = ["environment.items=24", "environment.horizon=6", "environment.sensitivity=1.0",
        "environment.memory=0.5", "table.dim=4", "table.init_scale=0.1", 'encoder.kind="bag"',
        "encoder.item_bias=true", "optimizer.warmup=0", "optimizer.rate=0.05",
        "acting.episodes=8", "train.episodes=64", "train.evaluate_every=3", "train.steps=6",
        "train.log_every=2", "checkpoint.keep=5"]
REINFORCE = [*BASE, "objective.discount=0.9", 'objective.baseline="place"',
             "objective.entropy=0.01"]
DQN = [*BASE, 'objective.kind="q_learning"', "objective.reward_scale=0.1", "train.ema=0.9",
       'acting.policy="greedy"', "acting.explore=0.1", "acting.explore_from=1.0",
       "acting.explore_steps=4", "replay.capacity=40", "replay.begin=16", "replay.rows=8",
       "replay.updates=2", "replay.priority=0.6"]


def config(lines: list[str], *more: str) -> AgentConfig:
    return configs.build(AgentConfig, configs.override({}, [*lines, *more]))


@pytest.mark.parametrize("lines", [
    pytest.param(REINFORCE, id="reinforce", marks=pytest.mark.slow), pytest.param(DQN, id="dqn")])
def test_a_resumed_run_has_the_bits_of_one_that_was_left_alone(
        lines: list[str], tmp_path: Path) -> None:
    own = config(lines)
    whole = run_agent(Run(tmp_path / "whole"), own)
    assert whole["steps"] == 6 and whole["best_step"] in (3, 6)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(next((tmp_path / "cut" / "checkpoints").glob("*6*")))
    again = run_agent(Run(tmp_path / "cut"), own)
    assert again["best"] == whole["best"]
    like = agent_items(build_agent(own).first())
    one, two = (Checkpoints(tmp_path / name / "checkpoints", read_only=True).open(6).restore(like)
                for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert ("replay" in one["agent"]) == (lines is DQN)
    first, second = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert len(first) == 6
    assert [{**line, "seconds": 0} for line in first] == [
        {**line, "seconds": 0} for line in second]
    with pytest.raises(InputError, match=r"optimizer\.rate"):
        run_agent(Run(tmp_path / "cut"), config(lines, "optimizer.rate=0.1"))
    run_agent(Run(tmp_path / "cut"), config(lines, "train.log_every=1"))  # may differ


def test_the_verbs_train_and_compare(tmp_path: Path) -> None:
    configs.save(config(REINFORCE, "train.steps=2"), tmp_path / "agent.toml")
    done = api.train(tmp_path / "agent.toml", run=tmp_path / "run")
    assert done["steps"] == done["best_step"] == 2 and done["episodes"] == 16
    page = (tmp_path / "run" / "report.html").read_text()
    assert "chocolate" in page and "data:image/png" in page
    with pytest.raises(InputError, match="holds a run already"):
        api.train(tmp_path / "agent.toml", run=tmp_path / "run")
    with pytest.raises(InputError, match="another config"):
        api.train(tmp_path / "agent.toml", resume=tmp_path / "run",
                  overrides=["optimizer.rate=0.1"])
    found = api.simulate(tmp_path / "run", users=64, against=[tmp_path / "run"])
    policies = found["policies"]
    assert list(policies) == ["best items", "draws", "any items", "popular items", "run"]
    assert policies["run"]["less_than_best_interval"] == [0.0, 0.0]
    low, high = policies["any items"]["interval"]
    assert low < policies["any items"]["return"] < high
    assert len(found["trajectory"]) == 6 and "exposure" in found["trajectory"][0]
    with pytest.raises(InputError, match="no checkpoint 7"):
        api.simulate(tmp_path / "run", step=7)
    for wrong, said in (({"users": 1}, "users is 1; expected at least 2"),
                        ({"confidence": 1.0}, "confidence is 1; expected more than 0"),
                        ({"seed": -1}, "seed is -1; expected at least 0"),
                        ({"seed": 2**32}, "and at most 4294967295")):
        with pytest.raises(InputError, match=said):
            api.simulate(tmp_path / "run", **wrong)  # type: ignore[arg-type]


def test_what_asks_a_dataset_refuses_an_agent_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[environment]\nkind = "choc_kale"\n')
    with pytest.raises(InputError, match="is a run in an environment; expected one on a dataset"):
        Run(tmp_path).config()


def test_rivals_of_one_name_are_told_apart() -> None:
    taken = {"best items", "run"}
    assert name_of(Path("a/other"), taken) == "other"
    assert name_of(Path("a/run"), taken) == "a/run"
    assert name_of(Path("b/best items"), taken) == "b/best items"
    with pytest.raises(InputError, match="run run is given twice"):
        name_of(Path("run"), taken)


def returns(agent: Any, state: Any, policy: str) -> float:
    key = streams.of_run(1, streams.PLAY)
    return float(np.mean(make_player(agent, policy)(state.training, key)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("lines", "steps"), [
    pytest.param(REINFORCE, 60, id="reinforce"),
    pytest.param(DQN, 60, id="dqn", marks=pytest.mark.slow)])
def test_an_agent_earns_much_more_than_any_items(lines: list[str], steps: int) -> None:
    agent = build_agent(config(lines, f"train.steps={steps}"))
    state = agent.first()
    anything = returns(agent, state, "random")
    for _ in range(steps):
        state, metrics = agent.step(state)
    assert int(metrics.bad_ids) == 0
    assert returns(agent, state, "greedy") > 1.4 * anything


@pytest.mark.slow
@pytest.mark.parametrize("lines", [
    pytest.param(REINFORCE, id="reinforce", marks=pytest.mark.slow), pytest.param(DQN, id="dqn")])
def test_a_mesh_plays_and_learns_the_same(lines: list[str]) -> None:
    found = []
    for mesh in ((1, 1), (2, 4)):
        agent = build_agent(config(lines, f"mesh.data={mesh[0]}", f"mesh.items={mesh[1]}"))
        state = agent.first()
        for _ in range(2):
            state, metrics = agent.step(state)
        found.append((np.asarray(state.training.items.rows), float(metrics.earned)))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-4)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-4)


@pytest.mark.parametrize(("lines", "message"), [
    (['objective.kind="masked_item"'], "predicts what is next"),
    (['objective.behaviour="propensity"'], "does not give"),
    (["replay.rows=8"], r"replay\.capacity above 0"),
    (["replay.capacity=3"], "expected room"),
    (["acting.explore_from=0.5"], "belong together"),
    (["acting.episodes=12", "mesh.items=8"], "on 8 devices")])
def test_settings_that_do_not_fit_are_one_line(lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_agent(config(BASE, *lines))


@pytest.mark.parametrize(("line", "message"), [
    ("environment.seed=1", "r was trained with another catalogue .environment.seed is 1, and 0"),
    ("environment.items=23", "environment.num_items is 23, and 24 here"),
    ("environment.horizon=5", "r was trained on histories of 5 places .* and users here have 6")])
def test_a_rival_of_another_catalogue_or_of_shorter_histories_is_refused(line: str, message: str
                                                                         ) -> None:
    own = build_agent(config(REINFORCE))
    for same in ("environment.horizon=7", "environment.memory=0.4"):
        check_rival(own, build_agent(config(REINFORCE, same)), "r")
    with pytest.raises(InputError, match=message):
        check_rival(own, build_agent(config(REINFORCE, line)), "r")
