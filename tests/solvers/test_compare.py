"""The table of baselines: the same protocol, ranks and lists as for trained models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rec_jax
from rec_jax import config
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import InputError
from rec_jax.inference.protocol import choose_panel
from rec_jax.metrics import MISSED
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers import SOLVERS
from rec_jax.solvers.base import Matrix
from rec_jax.solvers.compare import BaselineConfig, compare
from rec_jax.solvers.interactions import history_matrix, training_matrix
from rec_jax.solvers.ranking import best_items, rank_panel

SMALL = config.build(BaselineConfig, {"ials": {"dim": 4, "sweeps": 2}})


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve users whose histories repeat items, with ratings; of the targets of the test split
    two are seen, three are an item that training lacks, and seven are new to their users."""
    folder = tmp_path_factory.mktemp("repeated")
    random = np.random.default_rng(3)
    lines = ["user_id,item_id,time,stars"]
    for user in range(12):
        items = random.integers(0, 9, 7).tolist()
        new = sorted({*range(9)} - {*items[:-1]})
        items[-1] = items[0] if user < 2 else 9 if user < 5 else new[0]
        lines += [f"u{user},i{item},{when},{random.integers(1, 6)}"
                  for when, item in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                          columns=Columns(time="time", rating="stars")))
    return Dataset.open(folder / "made")


class Given:
    """Scores that are looked up by the person's row."""

    def __init__(self, scores: np.ndarray) -> None:
        self.table = scores

    def scores(self, histories: Matrix, own: np.ndarray | None = None) -> np.ndarray:
        assert own is not None and histories.shape[0] == len(own)
        return self.table[own].copy()


def naive_rank(dataset: Dataset, row: np.ndarray, user: int, target: int, end: int,
               settings: EvaluateConfig) -> int:
    out = set()
    if settings.filter_seen:
        out |= set(dataset.items[dataset.offsets[user]:end].tolist())
    if settings.filter_cold:
        out |= set(np.flatnonzero(dataset.popularity() == 0).tolist())
    if target in out or not row[target] > -np.inf:
        return MISSED
    return 1 + sum(1 for item in range(len(row))
                   if item not in out and item != target and not row[item] < row[target])


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("filter_cold", [True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_ranks_are_those_of_a_naive_count(repeated: Dataset, filter_seen: bool, filter_cold: bool,
                                          split: Any) -> None:
    settings = EvaluateConfig(filter_seen=filter_seen, filter_cold=filter_cold)
    scores = np.random.default_rng(1).integers(0, 4, (12, repeated.num_items)).astype(float)
    scores[6, 2], scores[7], scores[8] = np.nan, -np.inf, np.nan
    panel = choose_panel(repeated, split, settings)
    found = rank_panel(Given(scores), "counts", repeated, panel, settings)
    expected = [naive_rank(repeated, scores[user], user, target, end, settings)
                for user, target, end in zip(panel.users.tolist(), panel.targets.tolist(),
                                             panel.ends.tolist(), strict=True)]
    assert found.tolist() == expected
    assert MISSED in expected and len(set(expected)) > 2


def test_lists_are_sorted_and_hold_nothing_that_is_left_out() -> None:
    scores = np.array([[1.0, 3, 3, -np.inf, 2], [np.nan, -np.inf, 0, -np.inf, -1]])
    assert best_items(scores, 3).tolist() == [[1, 2, 4], [2, 4, -1]]
    assert best_items(scores, 9).tolist()[0] == [1, 2, 4, 0, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("seen_targets", ["miss", "leave_out"])
def test_popularity_and_the_protocol_are_those_of_evaluate(
        tiny_run: Path, tiny_dataset: Path, filter_seen: bool, seen_targets: Any) -> None:
    run = rec_jax.evaluate(tiny_run, baseline=True, filter_seen=filter_seen,
                           seen_targets=seen_targets)
    lines = [f"evaluate.filter_seen={str(filter_seen).lower()}",
             f"evaluate.seen_targets={seen_targets}"]
    found = rec_jax.baseline(tiny_dataset, models="popularity", overrides=lines)
    assert found["protocol"] == run["protocol"]
    metrics = found["models"]["popularity"]["metrics"]
    assert {name: metrics[name] for name in run["popularity_baseline"]} == (
        run["popularity_baseline"])


def test_popularity_is_that_of_evaluate_where_items_repeat(repeated: Dataset) -> None:
    from rec_jax.inference.evaluate import popularity_ranks

    settings = EvaluateConfig()
    panel = choose_panel(repeated, "test", settings)
    found = rank_panel(BaselineConfig().popularity.fit(_training(repeated)), "counts", repeated,
                       panel, settings)
    expected = popularity_ranks(repeated, panel.users, panel.targets, panel.ends, True)
    assert found.tolist() == expected.tolist() and MISSED in found


def test_items_that_content_filled_compete_beside_the_model_that_filled_them(
        repeated: Dataset) -> None:
    """So that the same users are measured; cut-offs may be beyond the catalogue."""
    filled = np.asarray(repeated.item_ids() == "i9")
    settings = BaselineConfig(evaluate=EvaluateConfig(ks=(10, 2**40), filter_cold=True))
    for mask, users in ((None, 9), (filled, 12)):
        found = compare(repeated, "popularity", settings, filled=mask)
        panel = choose_panel(repeated, "test", settings.evaluate, filled=mask)
        assert found["protocol"]["users"] == len(panel.users) == users
    assert found["models"]["popularity"]["metrics"][f"hr@{2**40}"] == pytest.approx(10 / 12)


def _training(dataset: Dataset) -> Any:
    from solver_cases import training

    return training(training_matrix(dataset))


def test_matrices_count_repeats_and_end_where_they_are_told_to(repeated: Dataset) -> None:
    users, _, ends = repeated.targets("test")
    found = history_matrix(repeated, users, ends).toarray()
    rated = history_matrix(repeated, users, ends, "ratings").toarray()
    assert repeated.ratings is not None
    for row, user, end in zip(range(len(users)), users, ends, strict=True):
        items = repeated.items[repeated.offsets[user]:end]
        assert (found[row] == np.bincount(items, minlength=repeated.num_items)).all()
        last = np.zeros(repeated.num_items)
        for place in range(repeated.offsets[user], end):
            last[repeated.items[place]] = repeated.rating_values[repeated.ratings[place] - 1]
        assert (rated[row] == last).all()
    assert found.max() > 1
    assert (training_matrix(repeated).sum(axis=0) == repeated.popularity()).all()
    assert training_matrix(repeated, part="all").sum() == repeated.num_interactions


def test_every_model_has_metrics_settings_and_seconds(tiny_dataset: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    found = compare(dataset, list(SOLVERS), SMALL)
    assert list(found["models"]) == list(SOLVERS)
    for name, one in found["models"].items():
        assert 0 <= one["metrics"]["hr@10"] <= 1 and "coverage@20" in one["metrics"]
        assert one["settings"] == config.to_mapping(SMALL.solver(name)) and "tuned" not in one
    # Histories walk around a ring, so that neighbours tell what comes next.
    chance = 10 / dataset.num_items
    assert found["models"]["ease"]["metrics"]["hr@10"] > 1.5 * chance
    json.dumps(found)


def test_a_grid_is_decided_on_validation_alone(tiny_dataset: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(tiny_dataset)
    found = compare(dataset, "ease", SMALL, tune=True)["models"]["ease"]
    tried = found["tuned"]["tried"]
    assert [one["ridge"] for one in tried] == list(SMALL.ease.grid["ridge"])
    best = max(tried, key=lambda one: one["ndcg@10"])
    assert found["settings"]["ridge"] == best["ridge"]
    for one in tried[:2]:
        chosen = dataclasses.replace(SMALL, ease=dataclasses.replace(
            SMALL.ease, ridge=one["ridge"]))
        again = compare(dataset, "ease", chosen, split="valid")["models"]["ease"]["metrics"]
        assert again["ndcg@10"] == one["ndcg@10"]
    assert "tuned" not in compare(dataset, "popularity", SMALL, tune=True)["models"]["popularity"]


def test_explicit_feedback_needs_ratings(tiny_dataset: Path, repeated: Dataset) -> None:
    explicit = ["ials.feedback=explicit", "ials.dim=3", "ials.sweeps=2"]
    with pytest.raises(InputError, match="has no ratings, which explicit feedback needs"):
        rec_jax.baseline(tiny_dataset, models="ials", overrides=explicit)
    found = rec_jax.baseline(repeated.folder, models="ials", overrides=explicit)
    assert found["protocol"]["users_missed_seen"] == 2
    fitted = rec_jax.fit_baseline(repeated.folder, "ials", overrides=explicit)
    assert len(fitted.recommend(user="u3", k=2)) == 2
    with pytest.raises(InputError, match="explicit feedback reads ratings"):
        fitted.recommend(["i1"])


@pytest.mark.parametrize("model", list(SOLVERS))
def test_recommendations_are_the_best_unseen_items(repeated: Dataset, model: str) -> None:
    lines = ["ials.dim=3", "ials.sweeps=2"]
    fitted = rec_jax.fit_baseline(repeated.folder, model, overrides=lines, part="all")
    history = [str(repeated.item_ids()[item]) for item in repeated.history(4).tolist()]
    found = fitted.recommend(history, k=100)
    assert len(found) == repeated.num_items - len(set(history))
    assert not {one.item for one in found} & set(history)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert [one.rank for one in found] == list(range(1, len(found) + 1))
    kept = fitted.recommend(history, k=100, filter_seen=False)
    assert len(kept) == repeated.num_items
    if model != "userknn":  # which leaves out the user's own row
        assert fitted.recommend(user="u4", k=100) == found


def test_bad_input_is_one_line(repeated: Dataset) -> None:
    with pytest.raises(InputError, match=r"model 'eas' is unknown; did you mean 'ease'\? expected"):
        rec_jax.baseline(repeated.folder, models="popularity,eas")
    rated = BaselineConfig(evaluate=EvaluateConfig(metric="rmse"))
    with pytest.raises(InputError, match="metric 'rmse' is of ratings, which no baseline predicts"):
        rec_jax.baseline(repeated.folder, models="itemknn", settings=rated, tune=True)
    fitted = rec_jax.fit_baseline(repeated.folder, "popularity")
    told: list[str] = []
    assert len(fitted.recommend(["i1"], k=2, tell=told.append)) == 2 and not told
    few = fitted.recommend(["i1"], k=99, tell=told.append)
    assert told == [f"{len(few)} instead of 99 items: the catalogue has {repeated.num_items}, of "
                    "which 1 are in the history, and seen items are not recommended"]
    for arguments, message in (({}, "exactly one of"), ({"history": []}, "history is empty"),
                               ({"user": "u1", "k": 0}, "k is 0"),
                               ({"history": ["i1"], "user": "u1"}, "exactly one of"),
                               ({"history": ["x"]}, "item id 'x' is not in the vocabulary")):
        with pytest.raises(InputError, match=message):
            fitted.recommend(**arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"part is 'tain'"):
        rec_jax.fit_baseline(repeated.folder, "popularity", part="tain")  # type: ignore[arg-type]
