"""Whole runs whose content is codes: trained, resumed, exported and ranked as vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_models_of_rows import arrays, lists_agree, resumed_like

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_codes import open_item_codes
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.run import RunConfig
from rec_jax.tables.row_map import read_row_map


@pytest.mark.slow
@pytest.mark.parametrize("given", [
    ('table.update="dense"',), ('table.update="sparse"', 'objective.kind="sampled_softmax"',
                                "objective.count=32")], ids=["dense", "sparse"])
def test_a_run_with_codes_is_resumed_and_served(
        given: tuple[str, ...], some_vectors: Path, tmp_path: Path,
        tiny_mapping: Callable[..., dict[str, Any]]) -> None:
    mapping = tiny_mapping("train.steps=8", "train.checkpoint_every=4",
                           "train.evaluate_every=1000.0", *given, f"data.path='{some_vectors}'")
    mapping["content"] = [{"name": "text", "codes": 2, "centres": 8}]
    resumed_like(mapping, tmp_path / "runs")
    run = tmp_path / "runs" / "whole"
    found = arrays(run)
    codes = open_item_codes(Dataset.open(some_vectors), "text", 2, 8)
    order = json.loads(json.dumps(Checkpoints(run / "checkpoints", read_only=True).extra(8)))
    rows = found["model['tables']['items']"][
        read_row_map(order["row_map"], 50).rows(np.arange(50))]
    np.testing.assert_array_equal(rows[:, 16:], codes)
    matrix = np.pad(found["model['encoder']['content/text']"], ((1, 0), (0, 0)))
    vectors = rows[:, :16] + sum(
        np.where(codes[:, piece, None] > 0, matrix[piece * 8 + codes[:, piece].astype(int)], 0)
        for piece in range(2))
    for name, model in (("disk", run), ("mesh", api.load(run))):
        out = api.export(model, out=tmp_path / name, what="items")
        np.testing.assert_allclose(load_embeddings(out).vectors, vectors, atol=1e-5)
    lists_agree(run)
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in said if "ndcg@10" in line][-1]
    again = api.evaluate(run, split="valid")["metrics"]
    assert again["ndcg@10"] == pytest.approx(valid["ndcg@10"], abs=1e-6)
    with pytest.raises(InputError, match="a streamed table is scored as it is stored"):
        built = config.override(mapping, ['table.update="streamed"', 'objective.kind="next_item"'])
        built["objective"].pop("count", None)
        api.train(config.build(RunConfig, built), run=tmp_path / "x")
