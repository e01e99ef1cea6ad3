"""The benchmark of runs that go on: periods by time, both models, nothing done twice."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from rec_jax.data.dataset import Dataset

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "continual.py"


def test_periods_hold_all_interactions_in_the_order_of_time(tiny_dataset: Path,
                                                            tmp_path: Path) -> None:
    whole = Dataset.open(tiny_dataset)
    folders = runpy.run_path(str(BENCHMARK))["prepare_periods"](whole, tmp_path, 2, 0.5)
    found = [Dataset.open(folder) for folder in folders]
    sizes = [data.num_interactions for data in found]
    assert sizes[-1] == whole.num_interactions and sizes == sorted(sizes)
    assert abs(sizes[0] - whole.num_interactions / 2) <= 1
    for data in found[1:]:
        assert data.old_end is not None and data.times is not None
        new = np.arange(data.num_interactions) >= np.repeat(data.old_end, np.diff(data.offsets))
        assert data.times[new].min() >= data.times[~new].max()


@pytest.mark.slow
def test_it_asks_both_models_and_goes_on_where_it_was(
        tiny_mapping: Callable[..., dict[str, Any]], tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(tomli_w.dumps(tiny_mapping("train.steps=4")))
    run = runpy.run_path(str(BENCHMARK))["run"]
    options = argparse.Namespace(config=str(tmp_path / "c.toml"), data=str(tiny_dataset), periods=2,
                                 first=0.6, set=[], set_on=["train.steps=2"],
                                 work=str(tmp_path / "work"), out=str(tmp_path / "out.json"))
    result = run(options)
    assert [one["period"] for one in result["periods"]] == [0, 1, 2]
    for one in result["periods"]:
        for name in ("continual", "scratch"):
            assert 0 <= one[name]["test"]["ndcg@10"] <= 1
            assert ("next" in one[name]) == (one["period"] < 2)
    assert result["periods"][0]["continual"]["next"] == result["periods"][0]["scratch"]["next"]
    assert result["periods"][1]["continual"]["steps"] == 2
    assert (tmp_path / "out.png").stat().st_size > 1000
    kept = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "out.json").write_text(json.dumps({**kept, "periods": kept["periods"][:2]}))
    assert run(options)["periods"] == result["periods"]
