"""The recipe's constants are those that the other datasets ask for, whichever is left out."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rec_jax.plan.statistics import Statistics

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    path = ROOT / "benchmarks" / "recipe.py"
    spec = importlib.util.spec_from_file_location("recipe_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load()
# Of the sets that have a hand-tuned config: what `statistics_of` says of them.
SETS = {
    "ml-100k": Statistics(943, 1682, 98_114, 97_171, (63, 146, 242, 308.9, 440), 943, 0.0),
    "ml-1m": Statistics(6040, 3416, 987_531, 981_491, (94, 205, 398, 554, 904), 6040, 0.0),
    "beauty-s3": Statistics(22_363, 12_101, 153_776, 131_413, (4, 7, 12, 19, 41), 22_363, 0.0),
    "beauty-bert4rec": Statistics(40_226, 54_542, 273_510, 233_284, (4, 7, 12, 18, 39), 40_226,
                                  0.0)}


def votes() -> dict[str, Any]:
    return {name: recipe.vote_of(found, recipe.KNOWN[name].records[0])
            for name, found in SETS.items()}


def test_a_dataset_has_the_recipe_that_the_others_alone_would_give_it() -> None:
    table = recipe.table_of_votes(votes())["sets"]
    assert set(table) == set(SETS)
    for name, row in table.items():
        assert row["same"], (name, row)


def test_a_constant_that_hangs_on_one_dataset_is_seen() -> None:
    changed = votes()
    changed["beauty-s3"] = dataclasses.replace(changed["beauty-s3"], smoothing=0.4, dropout=0.2)
    table = recipe.table_of_votes(changed)["sets"]
    assert not table["beauty-bert4rec"]["same"] and table["beauty-s3"]["same"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe.api, "train", None)  # nobody may call it
    found = {"test": {"hr@10": 0.5, "ndcg@10": 0.25}}
    (tmp_path / "wikipedia-seed1.json").write_text(json.dumps(found))
    assert recipe.run_of("wikipedia", tmp_path, 1, tmp_path, {}) == found


def test_a_run_is_trained_measured_by_the_asked_protocol_and_kept(
        tiny_dataset: Path, tmp_path: Path, tiny_training: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    run = tmp_path / "wikipedia-seed2"

    def train(**named: Any) -> dict[str, Any]:
        asked.append(named)
        run.symlink_to(tiny_training["run"])
        return tiny_training

    monkeypatch.setattr(recipe.api, "train", train)
    found = recipe.run_of("wikipedia", tiny_dataset, 2, tmp_path, {"filter_seen": False})
    assert asked[0]["data"] == tiny_dataset and asked[0]["overrides"] == ["seed=2"]
    assert found["protocol"]["seen_items_filtered"] is False
    assert found["best_step"] == tiny_training["best_step"] and 0 <= found["test"]["ndcg@10"] <= 1
    assert json.loads((tmp_path / "wikipedia-seed2.json").read_text()) == found


def test_the_reference_is_the_mean_of_the_recorded_seeds() -> None:
    found = recipe.reference_of("ml-1m", Path("nowhere"), True)
    assert found["mean"]["ndcg@10"] == pytest.approx(0.1952, abs=5e-5)
    assert found["protocol"] == {"filter_seen": True, "filter_cold": False}
