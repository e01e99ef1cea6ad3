"""Whole runs whose content goes through an MLP: resumed, frozen, served as vectors, cold items."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from item_vectors import give_vectors
from test_models_of_rows import arrays, lists_agree, resumed_like, trained

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, Withheld, prepare
from rec_jax.errors import InputError
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.cold_rule import ColdRule, Known, cold_vectors
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.search import item_space
from rec_jax.model.content_mlp import mlp
from rec_jax.run import RunConfig

Mapping = Callable[..., dict[str, Any]]
MLP = {"name": "text", "kind": "mlp", "hidden": [8]}
STEPS = ("train.steps=3", "train.evaluate_every=1000.0")


def added(found: dict[str, np.ndarray], content: np.ndarray) -> np.ndarray:
    """f(x) by the weights of a checkpoint."""
    weights = [found[f"model['encoder']['content/text/{layer}/{part}']"]
               for layer in range(2) for part in ("kernel", "bias")]
    return np.asarray(mlp(weights, content))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_is_ranked_exported_and_filled_by_its_vectors(
        tiny_csv: Path, tmp_path: Path, tiny_mapping: Mapping) -> None:
    data = tmp_path / "d"  # a fifth of its items are withheld, and the last ones have no vector
    prepare(PrepareConfig(source=str(tiny_csv), out=str(data), columns=Columns(time="time"),
                          withheld=Withheld(0.2)))
    give_vectors(data, np.random.default_rng(0).standard_normal((
        Dataset.open(data).num_items - 3, 6)))
    mapping = tiny_mapping(*STEPS, f"data.path='{data}'")
    mapping |= {"content": [MLP], "tune": [{"match": "content/text/1/*", "rate": 0.0}]}
    run = tmp_path / "r"
    trained(mapping, run)
    found = arrays(run, 3)
    dataset = Dataset.open(data)
    count = dataset.num_items
    content = np.load(data / "item_vectors" / "text.npy")
    rows = found["model['tables']['items']"][:count]
    np.testing.assert_array_equal(rows[:, 16:], content)
    assert not found["model['encoder']['content/text/1/bias']"].any()  # frozen
    assert found["model['encoder']['content/text/0/bias']"].any()
    vectors = rows[:, :16] + added(found, content)
    model = api.load(run)
    for name, given in (("disk", run), ("mesh", model)):
        out = load_embeddings(api.export(given, out=tmp_path / name, what="items"))
        np.testing.assert_allclose(out.vectors, vectors, atol=1e-5)
    assert 0 <= api.evaluate(model)["metrics"]["hr@10"] <= 1
    space = item_space(model.served, None)
    np.testing.assert_allclose(space.vectors, vectors, atol=1e-5)
    np.testing.assert_allclose(space.lead(content[:9]), added(found, content[:9]), atol=1e-6)
    rule = ColdRule("projection")
    filled = api.load(run, cold=ColdFill(rule)).served
    has = np.load(data / "item_vectors" / "text.mask.npy")
    met = dataset.popularity() > 0
    warm, cold = np.flatnonzero(met & has), np.flatnonzero(~met & has)
    assert len(cold) >= 5 and not has[-3:].any()
    alone = added(found, content)
    wanted = cold_vectors(rule, Known(vectors[warm], alone[warm], content[warm]), alone[cold],
                          content[cold])
    now = np.asarray(filled.rows)[:count]
    np.testing.assert_allclose(now[cold], wanted, atol=1e-5)
    np.testing.assert_array_equal(np.delete(now, cold, axis=0),
                                  np.delete(np.asarray(model.served.rows)[:count], cold, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_a_run_is_resumed_and_starts_another_one(
        drop: float, some_vectors: Path, tmp_path: Path, tiny_mapping: Mapping) -> None:
    mapping = tiny_mapping("train.steps=8", "train.checkpoint_every=4",
                           "train.evaluate_every=1000.0", "train.ema=0.9",
                           f"data.path='{some_vectors}'")
    mapping["content"] = [{**MLP, "drop": drop}]
    resumed_like(mapping, tmp_path / "runs")
    run = tmp_path / "runs" / "whole"
    lists_agree(run)
    with pytest.raises(InputError, match="a sparse table does not have the vectors"):
        other = {**mapping, "objective": {"kind": "sampled_softmax", "count": 32}}
        other["table"] = {**mapping["table"], "update": "sparse"}
        other["train"] = {key: value for key, value in mapping["train"].items() if key != "ema"}
        trained(other, tmp_path / "x")
    moved = shutil.copytree(some_vectors, tmp_path / "e")
    give_vectors(moved, np.random.default_rng(1).standard_normal((Dataset.open(moved).num_items,
                                                                  6)))
    mapping["data"] = {**mapping["data"], "path": str(moved)}
    api.train(config.build(RunConfig, config.override(mapping, ["train.steps=1"])),
              run=tmp_path / "next", start_from=run)
    again, before = arrays(tmp_path / "next", 1), arrays(run)
    path = "model['encoder']['content/text/0/kernel']"
    assert 0 < np.abs(again[path] - before[path]).max() < 0.01
