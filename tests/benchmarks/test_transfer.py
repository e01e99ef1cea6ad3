"""The ways of the transfer benchmark are configs whose rules match; its table takes means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from rec_jax import config
from rec_jax.data.content import Content
from rec_jax.model.encoder import build_encoder
from rec_jax.model.lora import adapted_in
from rec_jax.model.tuning import Tuning, find_tuning
from rec_jax.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("transfer", ROOT / "benchmarks" / "transfer.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


transfer = load()


def tuning_of(lines: tuple[str, ...]) -> tuple[dict[str, Any], Tuning]:
    found = config.load(RunConfig, ROOT / "configs" / "transfer_ml100k.toml", lines)
    params = jax.eval_shape(lambda: build_encoder(
        found.encoder, dim=found.table.dim, length=found.data.length, causal=True,
        precision="f32", seed=0, lora=found.lora,
        content=[Content(f"content/{part.name}", 384, part.drop) for part in found.content])[1])
    return params, find_tuning(found.tune, params, ["items"], adapted_in(params))


@pytest.mark.parametrize(("way", "trains"), [
    ("full", {"blocks", "norm", "content", "tables"}), ("rows", {"tables"}),
    ("layer_wise", {"blocks", "norm", "content", "tables"}), ("adapters", {"lora"}),
    ("adapters_rows", {"lora", "tables"}), ("zero_shot", set()), ("scratch_ids",
                                                                  {"blocks", "norm", "tables"})])
def test_a_way_trains_what_it_is_called(way: str, trains: set[str]) -> None:
    params, tuning = tuning_of(transfer.WAYS[way].lines)
    moving = {path for path in (*params, "tables/items") if not tuning.frozen(path)}
    assert {path.partition("/")[0] for path in moving} == trains


def test_a_pre_trained_encoder_fits() -> None:
    first, second = (config.load(RunConfig, ROOT / "configs" / f"{name}.toml")
                     for name in ("ml1m_content", "transfer_ml100k"))
    assert (first.encoder, first.table.dim, first.content) == (
        second.encoder, second.table.dim, second.content)


def test_the_table_has_the_mean_of_the_seeds() -> None:
    each = {"parameters": {"trained": 1234, "frozen": 5, "optimizer_bytes": 2**20},
            "peak_memory_bytes": 2**30, "best_step": 30, "steps_per_epoch": 10.0,
            "train_seconds": 2.0, "popularity_baseline": {"ndcg@10": 0.01}}
    results = [{**each, "way": "full", "test": {"hr@10": value, "ndcg@10": value / 2}}
               for value in (0.1, 0.3)]
    line = transfer.table(results).splitlines()[-1]
    assert line == "| full | 2 | 1,234 | 5 | 1.00 | 1,024 | 3.0 | 2 | 0.2000 | 0.1000 | 0.0100 |"
