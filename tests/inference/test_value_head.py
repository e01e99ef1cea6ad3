"""A run of two heads ranks, recommends and exports by the one that its config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax import api, config
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.run import RunConfig
from rec_jax.simulate.agent_config import AgentConfig

USERS, EACH, ITEMS = 24, 8, 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The same training with each head in charge: folder and summary. Item 0 is taken most, and
    earns least."""
    folder = tmp_path_factory.mktemp("heads")
    random = np.random.default_rng(0)
    items = np.where(random.random(USERS * EACH) < 0.5, 0, random.integers(0, ITEMS, USERS * EACH))
    pl.DataFrame({"user_id": np.repeat(np.arange(USERS), EACH), "item_id": items,
                  "time": np.arange(USERS * EACH),
                  "rating": np.where(items == 0, 1.0, 3.0 + items / ITEMS)}).write_csv(
        folder / "log.csv")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "data"),
                          columns=Columns(time="time", rating="rating")))
    found = {}
    for by in ("softmax", "value"):
        settings = config.build(RunConfig, {
            "data": {"path": str(folder / "data"), "length": 8}, "table": {"dim": 8},
            "encoder": {"kind": "bag"}, "optimizer": {"rate": 3e-2, "warmup": 0},
            "objective": {"kind": "supervised_q", "reward": "rating", "ranks_by": by,
                          "discount": 0.0, "reward_scale": 0.5},
            "train": {"rows": 8, "steps": 150, "evaluate_every": 1e6, "ema": 0.9},
            "evaluate": {"filter_seen": False}})
        found[by] = folder / by, api.train(settings, run=folder / by)
    return found


def test_the_head_of_values_is_asked_everywhere(runs: Any) -> None:
    vectors = {}
    for by, (folder, summary) in runs.items():
        model = api.load(folder)
        rows, users = (load_embeddings(api.export(model, what=what, out=folder.parent / by / what))
                       for what in ("items", "users"))
        vectors[by] = np.array(users.vectors)
        # Lists are those of the exported vectors, and so are ranks of training and evaluation.
        scores = vectors[by][3] @ np.array(rows.vectors).T
        best = model.recommend(user=str(users.ids[3]), k=2)
        first = np.argsort(-scores)[:2]
        assert [each.item for each in best] == [str(rows.ids[int(one)]) for one in first]
        assert best[0].score == pytest.approx(scores.max(), rel=1e-5)
        found = api.evaluate(folder, split="valid", step=summary["best_step"])
        assert found["metrics"]["ndcg@10"] == pytest.approx(summary["best"], abs=1e-12)
    # Both runs learned the same, whoever is in charge: the values' queries are a map of the others.
    served = api.load(runs["value"][0]).served
    np.testing.assert_allclose(vectors["softmax"] @ np.asarray(served.params["heads/value"]),
                               vectors["value"], atol=1e-5)


def test_what_is_taken_most_is_not_what_is_worth_most(runs: Any) -> None:
    first = {by: {api.load(folder).recommend(user=str(user), k=1)[0].item
                  for user in range(USERS)} for by, (folder, _) in runs.items()}
    assert first["softmax"] == {"0"} and "0" not in first["value"]


def test_an_agent_acts_by_one_rule() -> None:
    with pytest.raises(InputError, match="ranks_by = 'value' is of runs on a dataset"):
        config.build(AgentConfig, {"objective": {"kind": "supervised_q", "ranks_by": "value"},
                                   "environment": {"kind": "choc_kale"}})
