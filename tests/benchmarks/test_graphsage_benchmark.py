"""The benchmark of new items runs from its command to its record, on a tiny dataset."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, Withheld, prepare
from rec_jax.run import RunConfig

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "graphsage.py"


@pytest.mark.slow
def test_every_model_is_measured_on_the_same_users(
        tiny_csv: Path, tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "d"
    prepare(PrepareConfig(source=str(tiny_csv), out=str(data), columns=Columns(time="time"),
                          withheld=Withheld(0.3)))
    ids = Dataset.open(data).item_ids()
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal(
        (len(ids), 3)).astype(np.float32))
    api.embed(data, name="text", vectors=tmp_path / "v.npy", ids=tmp_path / "ids.txt")
    mapping = tiny_mapping("train.steps=2", "evaluate.ks=[3,10]", "evaluate.metric='ndcg@10'") | {
        "encoder": {"kind": "graphsage", "fan_out": [3]}}
    config.save(config.build(RunConfig, mapping), tmp_path / "c.toml")

    spec = importlib.util.spec_from_file_location("graphsage_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "restart_with_tuned_malloc", lambda: None)
    monkeypatch.setattr(sys, "argv", [
        "graphsage.py", str(data), "--config", str(tmp_path / "c.toml"), "--runs",
        str(tmp_path / "runs"), "--out", str(tmp_path / "o.json"), "--ridge", "5"])
    module.main()
    found = json.loads((tmp_path / "o.json").read_text())
    assert set(found["mean"]) == {"graphsage", "graphsage_content", "ease_content", "ease_edges",
                                  "popularity"}
    for one in found["mean"].values():
        assert 0 <= one["among_cold"]["ndcg@10"] <= 1
    assert found["results"][0]["protocol"]["cold_items"]["fill"] == "edges"
    assert 0 <= found["results"][0]["warm"]["metrics"]["ndcg@10"] <= 1
