"""Every config of the project loads whole, and what differs from its sibling is what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import uses_times
from rec_jax.run import RunConfig
from rec_jax.simulate.agent import build_agent
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.train.stream_config import StreamRunConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EVERY = sorted(CONFIGS.glob("*.toml"))
AGENTS = [path for path in EVERY if "environment" in config.read_mapping(path)]
STREAMS = [path for path in EVERY if "stream" in config.read_mapping(path)]
ALL = [path for path in EVERY if path not in AGENTS + STREAMS]
LOSSES = ["bce", "gbce", "hard_negatives", "in_batch", "sampled_softmax", "sce"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_config_builds_its_model_and_comes_back_from_a_run(path: Path, tmp_path: Path) -> None:
    loaded = config.load(RunConfig, path)
    encoder, params = build_encoder(
        loaded.encoder, dim=loaded.table.dim, length=loaded.data.length,
        causal=loaded.objective.causal, precision=loaded.train.precision, seed=loaded.seed)
    assert set(encoder.paths) <= set(params)
    config.save(loaded, tmp_path / "saved.toml")
    assert config.load(RunConfig, tmp_path / "saved.toml") == loaded


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.stem)
def test_a_config_of_an_agent_builds_it_and_comes_back_from_a_run(path: Path,
                                                                  tmp_path: Path) -> None:
    loaded = config.load(AgentConfig, path)
    assert build_agent(loaded).environment.num_items == loaded.environment.items
    config.save(loaded, tmp_path / "saved.toml")
    assert config.load(AgentConfig, tmp_path / "saved.toml") == loaded
    assert f"rec-jax train configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_config_of_a_stream_loads_and_says_how_it_is_used(path: Path, tmp_path: Path) -> None:
    loaded = config.load(StreamRunConfig, path)
    assert loaded.data.files and loaded.data.seconds == 604_800
    config.save(loaded, tmp_path / "saved.toml")
    assert config.load(StreamRunConfig, tmp_path / "saved.toml") == loaded
    assert f"rec-jax train configs/{path.name}" in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_config_of_a_stream_learns_its_weeks_and_comes_back_from_a_run(
        path: Path, tmp_path: Path) -> None:
    """On some rows in the form of its file, and with its own sizes but for a batch."""
    random, week = np.random.default_rng(0), 604_800
    lines = [f"{random.integers(9)}\t{random.integers(12)}\t4\t{880_000_000 + when}"
             for when in random.integers(0, 3 * week, 90)]
    (tmp_path / "u.data").write_text("\n".join(lines) + "\n")
    found = api.train(path, run=tmp_path / "run", stream=[tmp_path / "u.data"], overrides=[
        "stream.positions=16", "stream.negatives=16", "stream.users.capacity=30",
        "stream.items.capacity=30", "stream.table.dim=4"])
    assert sum(one["interactions"] for one in found["periods"]) == 90
    assert len(found["periods"]) in (3, 4) and "ndcg@10" in found["periods"][1]
    saved = config.load(StreamRunConfig, tmp_path / "run" / "config.toml")
    own = config.load(StreamRunConfig, path)
    assert dataclasses.replace(saved, stream=own.stream, data=own.data) == own


@pytest.mark.parametrize("path", [path for path in ALL if path.stem.startswith(("ml", "beauty"))],
                         ids=lambda path: path.stem)
def test_configs_of_one_data_set_share_data_and_protocol(path: Path) -> None:
    base = config.load(RunConfig, CONFIGS / f"{path.stem.split('_')[0]}.toml")
    own = config.load(RunConfig, path)
    assert (own.data, own.evaluate, own.table.dim) == (base.data, base.evaluate, base.table.dim)
    assert f"rec-jax train configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", [path for path in ALL if path.stem.startswith("ml100k")],
                         ids=lambda path: path.stem)
def test_the_quality_of_each_small_config_is_recorded_and_told(path: Path) -> None:
    root = CONFIGS.parent
    recorded = json.loads((root / "benchmarks" / "results" / f"{path.stem}.json").read_text())
    own = config.to_mapping(config.load(RunConfig, path))
    defaults = config.to_mapping(config.build(RunConfig, {"data": own["data"]} | {
        part: {"kind": own[part]["kind"]} for part in ("encoder", "objective")}))
    # How it is computed, not what; older records do not have it.
    own["encoder"].pop("backend", None)
    for settings in (own, recorded["config"]):
        settings["train"].pop("lookahead", None)
    for section in ("encoder", "objective", "optimizer", "train"):
        # A record names every key of its day; what came since has its default.
        new = own[section].keys() - recorded["config"][section].keys()
        assert new <= defaults[section].keys()
        assert recorded["config"][section] | {
            key: defaults[section][key] for key in new} == own[section]
    line = next(line for line in (root / "README.md").read_text().splitlines()
                if line.startswith(f"| [{path.stem}]("))
    for metric in ("hr@10", "ndcg@10"):
        assert f"| {recorded['test'][metric]:.3f} ".replace("0.", ".") in line


def test_only_data_with_times_is_read_with_times() -> None:
    reads = {path.stem for path in ALL if uses_times(config.load(RunConfig, path).encoder)}
    assert reads == {"ml100k_hstu"}


@pytest.mark.slow
def test_the_config_of_a_graph_trains_and_validates(tiny_mapping: Any, tmp_path: Path) -> None:
    own = config.to_mapping(config.load(RunConfig, CONFIGS / "gowalla_lightgcn.toml"))
    mapping = tiny_mapping("train.steps=3", "train.log_every=1", "evaluate.users=8")
    mapping["evaluate"] |= {name: own["evaluate"][name] for name in ("ks", "metric")}
    found = api.train(config.build(RunConfig, mapping | {
        name: own[name] for name in ("table", "encoder", "objective", "optimizer", "bias")}),
        run=tmp_path / "run")
    assert found["steps"] == 3 and found["table_update"] == "dense" and 0 <= found["best"] <= 1


@pytest.mark.slow
def test_the_config_of_items_with_neighbours_trains_and_validates(tiny_mapping: Any, tmp_path: Path
                                                                  ) -> None:
    own = config.to_mapping(config.load(RunConfig, CONFIGS / "item_graph_ml100k.toml"))
    mapping = tiny_mapping("train.steps=2", "train.log_every=1", "evaluate.users=8")
    small = {"encoder": own["encoder"] | {"layers": 1}, "table": own["table"] | {"dim": 16}}
    found = api.train(config.build(RunConfig, mapping | small | {
        name: own[name] for name in ("item_graph", "objective", "optimizer")}),
        run=tmp_path / "run")
    assert found["steps"] == 2 and found["table_update"] == "dense" and 0 <= found["best"] <= 1


@pytest.mark.parametrize("loss", LOSSES)
def test_configs_of_losses_differ_in_the_objective_alone(loss: str) -> None:
    base = config.load(RunConfig, CONFIGS / "ml100k.toml")
    own = config.load(RunConfig, CONFIGS / f"ml100k_{loss}.toml")
    assert own.objective.kind == loss
    if loss == "gbce":  # says why
        own = dataclasses.replace(own, encoder=base.encoder, optimizer=base.optimizer)
    assert dataclasses.replace(own, objective=base.objective) == base


@pytest.mark.parametrize("loss", [
    pytest.param(loss, marks=() if loss == "sce" else pytest.mark.slow)
    for loss in LOSSES])
def test_their_objectives_train_and_validate(loss: str, tiny_mapping: Any,
                                             tmp_path: Path) -> None:
    """Three steps on the tiny data, with as many negatives as its items allow."""
    settings = dataclasses.asdict(config.load(RunConfig, CONFIGS / f"ml100k_{loss}.toml").objective)
    small = {name: min(value, 16) if isinstance(value, int) and not isinstance(value, bool)
             else value for name, value in settings.items()}
    mapping = {**tiny_mapping("train.steps=3", "train.log_every=1", "evaluate.users=8"),
               "objective": small}
    found = api.train(config.build(RunConfig, mapping), run=tmp_path / "run")
    assert found["steps"] == 3 and 0 <= found["best"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text()
             .splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
