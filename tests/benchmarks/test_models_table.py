"""The table of all models: what is in it, in which order, and that its numbers are comparable."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

MODELS: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "benchmarks" / "models.py"))


def run(seed: int, ndcg: float, machine: str = "here", **protocol: Any) -> dict[str, Any]:
    return {"seed": seed, "seconds": 2.0 + seed, "machine": machine, "from": "run",
            "test": {"hr@10": 2 * ndcg, "ndcg@10": ndcg, "mrr": 0.0},
            "protocol": {"split_hash": "a", "users": 3, **protocol}}


def model(*runs: dict[str, Any], parameters: int | None = None) -> dict[str, Any]:
    return {"parameters": parameters, "runs": list(runs), **MODELS["mean_of"](runs)}


def test_the_table_has_means_of_seeds_the_best_first() -> None:
    models = {"plain": model(run(0, 0.05, machine="another")),
              "good": model(run(0, 0.1), run(1, 0.3), parameters=1234)}
    lines = MODELS["table"](models).splitlines()
    assert lines[2] == ("| good | 0, 1 | 1,234 | 2.5 | 0.400 (0.200 to 0.600) | "
                        "0.200 (0.100 to 0.300) |")
    assert lines[3] == "| plain | 0 |  | 2.0 * | 0.100 | 0.050 |"


def test_runs_that_were_measured_otherwise_are_no_part_of_it() -> None:
    models = {"one": model(run(0, 0.1)), "other": model(run(0, 0.1, note="of no matter"))}
    assert MODELS["same_protocol"](models)["users"] == 3
    models["other"] = model(run(0, 0.1), run(2, 0.1, users=4))
    with pytest.raises(ValueError, match="other, seed 2: users is 4 where one has 3"):
        MODELS["same_protocol"](models)


def test_every_config_of_the_dataset_is_a_model() -> None:
    found = MODELS["configs"]()
    assert {"ml100k", "ml100k_mf", "lightgcn", "graphsage"} <= set(found)
    assert all(path.is_file() for path in found.values())
