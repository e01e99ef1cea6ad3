"""Predicted ratings of a whole run: against plain numpy, on a mesh, and in its own validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, SplitConfig, prepare
from rec_jax.data.values import open_values
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.metrics import rating_metrics
from rec_jax.run import RunConfig

USERS, ITEMS = 30, 25


def made(folder: Path, ratings: np.ndarray) -> Path:
    lines = ["user_id,item_id,rating"]
    for user, item in np.argwhere(ratings >= 0):
        lines.append(f"u{user},i{item},{ratings[user, item]:g}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "data"),
                          columns=Columns(rating="rating"), split=SplitConfig(
                              "random", valid_share=0.15, test_share=0.2, seed=1)))
    return folder / "data"


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings of 1 to 5 that follow from a user and an item bias, half of them known."""
    random = np.random.default_rng(0)
    exact = 3 + random.normal(0, 0.9, (USERS, 1)) + random.normal(0, 0.9, (1, ITEMS))
    known = random.random((USERS, ITEMS)) < 0.6
    return made(tmp_path_factory.mktemp("stars"), np.where(known, np.clip(
        np.round(exact), 1, 5), -1))


def settings(data: Path, **objective: Any) -> dict[str, Any]:
    return {"data": {"path": str(data), "length": 16, "window": "chunks"}, "table": {"dim": 8},
            "encoder": {"kind": "user", "item_bias": True},
            "objective": {"kind": "rating", **objective},
            "optimizer": {"rate": 0.05, "warmup": 1},
            "evaluate": {"metric": "rmse", "ks": [5]},
            "train": {"rows": 8, "steps": 60, "evaluate_every": 4.0, "log_every": 10}}


@pytest.fixture(scope="module")
def run(stars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    mapping = settings(stars, penalty=0.01)
    return folder, api.train(config.build(RunConfig, mapping), run=folder)


def test_ratings_are_those_of_the_exported_vectors(run: Any, stars: Path, tmp_path: Path) -> None:
    folder, summary = run
    items = load_embeddings(api.export(folder, out=tmp_path / "i")).vectors.astype(np.float64)
    users = load_embeddings(api.export(folder, out=tmp_path / "u", what="users")).vectors.astype(
        np.float64)
    dataset = Dataset.open(stars)
    for split, first, last in (("valid", dataset.train_end, dataset.valid_end),
                               ("test", dataset.valid_end, dataset.offsets[1:])):
        errors, spread = [], []
        for user in range(dataset.num_users):
            places = np.arange(first[user], last[user])
            found = 3.0 + users[user, 0] + items[dataset.items[places]] @ users[user]
            wanted = open_values(["rating"], dataset)["rating"](places)
            errors += (np.clip(found, 1, 5) - wanted).tolist()
            spread += (wanted - 3.0).tolist()
        answer = api.evaluate(folder, split=split)  # type: ignore[arg-type]
        metrics = answer["metrics"]
        np.testing.assert_allclose(metrics["rmse"], np.sqrt(np.mean(np.square(errors))), rtol=1e-5)
        np.testing.assert_allclose(metrics["mae"], np.mean(np.abs(errors)), rtol=1e-5)
        assert "auc" not in metrics and 0 <= metrics["hr@5"] <= 1
        assert answer["protocol"]["ratings"] == len(errors)
        assert metrics["rmse"] < 0.8 * np.sqrt(np.mean(np.square(spread)))  # it has learned
        if split == "valid":  # training measures the same, and keeps the smallest
            np.testing.assert_allclose(metrics["rmse"], summary["best"], rtol=1e-5)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert summary["best"] == min(line["rmse"] for line in lines if line["kind"] == "valid")


def test_a_mesh_predicts_the_same(run: Any) -> None:
    folder, _ = run
    one, many = (api.evaluate(folder, mesh=mesh)["metrics"] for mesh in ("1x1", "2x4"))
    for name in ("rmse", "mae"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-6)


@pytest.mark.slow
def test_a_sparse_table_in_its_own_order_is_rated_alike(stars: Path, tmp_path: Path) -> None:
    mapping = settings(stars, link="sigmoid")
    mapping["table"] |= {"update": "sparse", "optimizer": {"kind": "adam"}}
    mapping["mesh"] = {"data": 1, "items": 2}
    mapping["train"] |= {"steps": 12}
    summary = api.train(config.build(RunConfig, mapping), run=tmp_path / "r")
    np.testing.assert_allclose(api.evaluate(tmp_path / "r", split="valid")["metrics"]["rmse"],
                               summary["best"], rtol=1e-5)


def test_of_two_ratings_there_is_an_area_under_the_curve(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    ratings = np.where(random.random((USERS, ITEMS)) < 0.5, random.integers(0, 2, (1, ITEMS)), -1)
    mapping = settings(made(tmp_path, ratings), low=0.0, high=1.0, link="sigmoid",
                       error="logistic")
    mapping["evaluate"]["metric"] = "auc"
    found = api.train(config.build(RunConfig, mapping), run=tmp_path / "r")
    assert found["best"] > 0.8  # an item's rating is everybody's


def test_what_does_not_fit_is_one_line(stars: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    def train(mapping: dict[str, Any]) -> None:
        api.train(config.build(RunConfig, mapping), run=tmp_path / "r")

    with pytest.raises(InputError, match="has ratings from 1 to 5"):
        train(settings(stars, high=4.0))
    with pytest.raises(InputError, match="has no ratings"):
        train(settings(tiny_dataset))
    with pytest.raises(InputError, match="'auc' is of two ratings"):
        train(settings(stars) | {"evaluate": {"metric": "auc"}})
    with pytest.raises(InputError, match="does not predict"):
        train(settings(stars) | {"objective": {"kind": "next_item"}})


def test_metrics_are_their_definitions() -> None:
    random = np.random.default_rng(0)
    wanted, found = random.integers(0, 2, 50), np.round(random.random(50), 1)  # with ties
    above = [(a > b) + 0.5 * (a == b) for a in found[wanted == 1] for b in found[wanted == 0]]
    metrics = rating_metrics(wanted, found)
    np.testing.assert_allclose(metrics["auc"], np.mean(above))
    np.testing.assert_allclose(metrics["mae"], np.abs(found - wanted).mean())
    np.testing.assert_allclose(metrics["rmse"], np.sqrt(((found - wanted) ** 2).mean()))
    assert "auc" not in rating_metrics(np.array([1, 2, 3]), np.array([1, 2, 3]))
