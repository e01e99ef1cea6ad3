"""Whole runs of the collaborative family on the tiny data: trained, evaluated, asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.run import RunConfig, targets_of

Mapping = Callable[..., dict[str, Any]]

RUNS = {
    "distribution": ({"kind": "user"}, {"kind": "rating_distribution", "power": 0.0,
                                        "backend": "xla"}, ()),
    "distribution, streamed": ({"kind": "user"}, {"kind": "rating_distribution", "power": 0.0,
                                                  "backend": "xla"},
                               ('table.update="streamed"', 'table.optimizer.kind="adam"')),
    "softmax": ({"kind": "user", "item_bias": True}, {"kind": "next_item", "backend": "xla"}, ()),
    "bpr": ({"kind": "user"}, {"kind": "bpr", "count": 4},
            ('table.update="sparse"', 'table.optimizer.kind="adam"')),
    "bag": ({"kind": "bag", "power": 0.5, "linear": True}, {"kind": "next_item",
                                                            "backend": "xla"}, ()),
    "bag, bpr": ({"kind": "bag"}, {"kind": "bpr", "count": 4, "shared": True}, ()),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name == "distribution" else pytest.mark.slow)
    for name in RUNS])
def test_a_run_learns_and_answers(name: str, tiny_mapping: Mapping, tmp_path: Path) -> None:
    encoder, objective, lines = RUNS[name]
    mapping = tiny_mapping("train.steps=40", "train.log_every=1", "train.evaluate_every=1000.0",
                           "optimizer.rate=3e-2", *lines)
    mapping |= {"encoder": encoder, "objective": objective}
    api.train(config.build(RunConfig, mapping), run=tmp_path / "run")
    losses = [line["loss"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl")
                                           .read_text().splitlines()) if "loss" in line]
    assert len(losses) == 40 and all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    model = api.load(tmp_path / "run")
    people = model.served.dataset.user_ids()
    best = model.recommend(user=str(people[3]), k=3, filter_seen=False)
    items = load_embeddings(api.export(model, out=tmp_path / "items")).vectors
    users = load_embeddings(api.export(model, out=tmp_path / "users", what="users")).vectors
    scores = users[3] @ items.T
    assert best[0].item == model.served.dataset.item_ids()[int(np.argmax(scores))]
    if encoder.get("item_bias"):
        np.testing.assert_array_equal(users[:, -1], 1.0)
    assert 0 <= api.evaluate(model)["metrics"]["hr@10"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("lines", [(), ('table.update="sparse"', 'table.optimizer.kind="adam"')],
                         ids=["dense", "sparse"])
def test_content_is_of_scored_rows_where_inputs_have_their_own(
        lines: tuple[str, ...], some_vectors: Path, tiny_mapping: Mapping, tmp_path: Path) -> None:
    """A user's row and a bag of the inputs' rows, items with content, as they are exported."""
    mapping = tiny_mapping("train.steps=4", "train.evaluate_every=1000.0", "table.tied=false",
                           f"data.path='{some_vectors}'", "data.length=24", *lines)
    mapping |= {"encoder": {"kind": "svdpp"}, "objective": {"kind": "bpr", "count": 4},
                "content": [{"name": "text"}]}
    api.train(config.build(RunConfig, mapping), run=tmp_path / "run")
    model = api.load(tmp_path / "run")
    dataset, params = model.served.dataset, model.served.params
    inputs, items, users = (np.asarray(load_embeddings(api.export(
        tmp_path / "run", out=tmp_path / what, what=what)).vectors)  # type: ignore[arg-type]
        for what in ("inputs", "items", "users"))
    stored = np.asarray(model.served.rows)[:dataset.num_items]
    assert inputs.shape == items.shape and stored.shape[1] == items.shape[1] + 6
    np.testing.assert_allclose(items, stored[:, :-6] + stored[:, -6:] @ params["content/text"],
                               atol=1e-6)
    start, end = dataset.offsets[3:5]
    taken = dataset.items[start:end]
    wanted = params["users"][3] + inputs[taken].sum(axis=0) / len(taken) ** 0.5
    np.testing.assert_allclose(users[3], wanted, atol=1e-6)


def test_which_items_of_a_history_are_labels(tiny_mapping: Mapping) -> None:
    def of(encoder: str, objective: str) -> str:
        return targets_of(config.build(RunConfig, {
            **tiny_mapping(), "encoder": {"kind": encoder}, "objective": {"kind": objective}}))

    assert of("user", "next_item") == "all" and of("bag", "next_item") == "next"
    assert of("svdpp", "rating") == "all"
    assert of("transformer", "masked_item") == of("user", "masked_item") == "self"


def test_without_ratings_a_distribution_of_ratings_is_refused_in_one_line(
        tiny_mapping: Mapping, tiny_dataset: Path, tmp_path: Path) -> None:
    assert Dataset.open(tiny_dataset).ratings is None
    mapping = tiny_mapping() | {"encoder": {"kind": "user"},
                                "objective": {"kind": "rating_distribution"}}
    with pytest.raises(InputError, match="has no ratings"):
        api.train(config.build(RunConfig, mapping), run=tmp_path / "run")
