"""Withheld items: what a run learns without them, the rows they get, and how these are measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, one_object, refused

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, Withheld, prepare
from rec_jax.errors import InputError
from rec_jax.inference.cold import ColdFill, own_values
from rec_jax.inference.cold_rule import ColdRule, Known, cold_vectors
from rec_jax.inference.export import load_embeddings
from rec_jax.model.rows import RowSource
from rec_jax.run import RunConfig

Mapping = Callable[..., dict[str, Any]]
STEPS = ("train.steps=8", "train.evaluate_every=1000.0", "evaluate.ks=[3,5]",
         "evaluate.metric='ndcg@5'")
MODES = {"dense": (), "streamed": ('table.update="streamed"',),
         "sparse": ('table.update="sparse"', 'objective.kind="sampled_softmax"',
                    "objective.count=32")}


def give_vectors(folder: Path, vectors: np.ndarray) -> None:
    np.save(folder.parent / "v.npy", vectors.astype(np.float32))
    ids = Dataset.open(folder).item_ids()
    (folder.parent / "ids.txt").write_text("\n".join(ids) + "\n")
    api.embed(folder, name="text", vectors=folder.parent / "v.npy",
              ids=folder.parent / "ids.txt", overwrite=True)


@pytest.fixture(scope="module")
def withheld(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny interactions with a fifth of the items withheld, and content for all."""
    folder = tmp_path_factory.mktemp("withheld") / "d"
    prepare(PrepareConfig(source=str(tiny_csv), out=str(folder), columns=Columns(time="time"),
                          withheld=Withheld(0.2)))
    count = Dataset.open(folder).num_items
    give_vectors(folder, np.random.default_rng(0).standard_normal((count, 3)))
    return folder


def trained(mapping: dict[str, Any], folder: Path) -> Path:
    drop = 0.0 if "update" in mapping["table"] else 0.3
    mapping["content"] = [{"name": "text", "drop": drop}]
    api.train(config.build(RunConfig, mapping), run=folder)
    return folder


@pytest.fixture(scope="module")
def run(withheld: Path, tiny_mapping: Mapping, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mapping = tiny_mapping(*STEPS, f"data.path='{withheld}'", "bias.trained=true")
    return trained(mapping, tmp_path_factory.mktemp("runs") / "r")


@pytest.mark.parametrize("mode", ["dense", *(pytest.param(mode, marks=pytest.mark.slow)
                                             for mode in ("streamed", "sparse"))])
def test_training_knows_nothing_of_withheld_items(mode: str, withheld: Path, tmp_path: Path,
                                                  tiny_mapping: Mapping) -> None:
    moved = shutil.copytree(withheld, tmp_path / "d")
    vectors = np.load(moved / "item_vectors" / "text.npy")
    dataset = Dataset.open(withheld)
    vectors[dataset.is_withheld()] *= -7
    give_vectors(moved, vectors)
    found = []
    for name, path in (("one", withheld), ("other", moved)):
        folder = trained(tiny_mapping(*STEPS, *MODES[mode], f"data.path='{path}'"),
                         tmp_path / name)
        served = api.load(folder).served
        found.append({**{key: np.asarray(value) for key, value in served.params.items()},
                      "rows": np.asarray(served.rows)[:dataset.num_trained]})
    for key in found[0]:
        np.testing.assert_array_equal(found[0][key], found[1][key], err_msg=key)
    assert not np.array_equal(np.asarray(served.rows)[dataset.num_trained:dataset.num_items, 16:],
                              np.load(withheld / "item_vectors" / "text.npy")[
                                  dataset.num_trained:])


@pytest.mark.parametrize("fill", ["neighbours", "projection", "both"])
def test_cold_items_get_the_rows_of_the_rule(fill: str, run: Path, withheld: Path) -> None:
    plain, given = api.load(run).served, ColdFill(ColdRule(fill, neighbours=3), bias=0.25)  # type: ignore[arg-type]
    filled = api.load(run, cold=given).served
    dataset, rows = plain.dataset, np.asarray(plain.rows)
    first, count = dataset.num_trained, dataset.num_items
    content = np.load(withheld / "item_vectors" / "text.npy")
    alone = content @ np.asarray(plain.params["content/text"])
    assert plain.bias is not None and filled.bias is not None
    biases = np.asarray(plain.bias)[:, None]
    warm = np.flatnonzero(dataset.popularity() > 0)
    cold = np.flatnonzero(dataset.popularity() == 0)
    assert set(range(first, count)) <= set(cold)
    vectors = np.concatenate([rows[:count, :16] + alone, biases[:count]], axis=1)
    alone = np.concatenate([alone, 0 * biases[:count]], axis=1)
    wanted = cold_vectors(given.rule, Known(vectors[warm], alone[warm], content[warm]),
                          alone[cold], content[cold])
    now = np.asarray(filled.rows)
    np.testing.assert_allclose(now[cold, :16] + alone[cold, :16], wanted[:, :16], atol=1e-5)
    np.testing.assert_array_equal(now[cold, 16:], content[cold])
    np.testing.assert_array_equal(np.delete(now, cold, axis=0), np.delete(rows, cold, axis=0))
    np.testing.assert_allclose(np.asarray(filled.bias)[cold], wanted[:, 16] + 0.25, atol=1e-5)
    np.testing.assert_array_equal(np.delete(np.asarray(filled.bias), cold),
                                  np.delete(np.asarray(plain.bias), cold))


def test_filled_items_are_recommended_and_exported_and_others_are_not(run: Path, tmp_path: Path
                                                                      ) -> None:
    dataset = api.load(run).served.dataset
    ids, first = np.array(dataset.item_ids()), dataset.num_trained
    history = [str(ids[0]), str(ids[3])]
    out = {str(item) for item in ids[first:]}
    plain = api.recommend(run, history=history, k=dataset.num_items)
    assert plain and not out & {row.item for row in plain}
    high = ColdFill(ColdRule("both"), bias=1000.0)
    found = api.recommend(run, history=history, k=len(out), cold=high)
    assert {row.item for row in found} <= out | set(ids[dataset.popularity() == 0])
    export = load_embeddings(api.export(run, out=tmp_path / "e", cold=high))
    model = api.load(run, cold=high)
    again = load_embeddings(api.export(model, out=tmp_path / "f"))
    np.testing.assert_array_equal(export.vectors, again.vectors)
    assert export.item_bias is not None and (export.item_bias[first:] > 900).all()
    low = api.recommend(run, history=history, k=dataset.num_items,
                        cold=ColdFill(ColdRule("both"), bias=-1000.0))
    assert out <= {row.item for row in low[-len(out) - int(
        (dataset.popularity()[:first] == 0).sum()):]}
    assert api.evaluate(run, cold=high)["protocol"]["cold_items"]["bias"] == 1000.0


def all_scores(run: Path, cold: str) -> list[dict[str, float]]:
    """Of each user, the scores of all items that may be recommended before the test."""
    model = api.load(run, cold=cold)
    dataset = model.served.dataset
    ids, found = dataset.item_ids().to_list(), []
    for user in range(dataset.num_users):
        history = [str(ids[item]) for item in dataset.items[
            dataset.offsets[user]:dataset.valid_end[user]]]
        found.append({row.item: row.score for row in model.recommend(
            history=history, k=dataset.num_items)} if history else {})
    return found


def by_hand(dataset: Dataset, scores: list[dict[str, float]], bias: float) -> dict[str, float]:
    """Metrics by all scores, sorted user by user."""
    assert dataset.withheld is not None and dataset.withheld_offsets is not None
    ids = [str(item) for item in dataset.item_ids()]
    out = set(ids[dataset.num_trained:])
    hits: dict[str, list[float]] = {name: [] for name in ("among", "cold", "warm")}
    for user, plain in enumerate(scores):
        if not plain:
            continue
        own = {item: score + bias * (item in out) for item, score in plain.items()}
        ranking = sorted(own, key=lambda item: -own[item])
        first, last = dataset.withheld_offsets[user:user + 2]
        targets = {ids[item] for item in dataset.withheld[first:last]}
        if targets:
            hits["among"].append(ndcg([item for item in ranking if item in out], targets))
            if user % 2:
                hits["cold"].append(ndcg(ranking, targets))
        if user % 2 and dataset.valid_end[user] < dataset.offsets[user + 1]:
            hits["warm"].append(ndcg(ranking, {ids[dataset.items[dataset.valid_end[user]]]}))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def ndcg(ranking: list[str], targets: set[str], k: int = 5) -> float:
    gains = [1 / np.log2(2 + place) for place, item in enumerate(ranking[:k]) if item in targets]
    return sum(gains) / sum(1 / np.log2(2 + place) for place in range(min(k, len(targets))))


def test_the_metrics_are_those_of_all_scores(run: Path) -> None:
    result = api.evaluate(run, cold="neighbours")["cold"]
    among_all, dataset = result["among_all"], api.load(run).served.dataset
    scores = all_scores(run, "neighbours")
    for way, bias in (("calibrated", result["bias"]), ("uncalibrated", 0.0)):
        wanted = by_hand(dataset, scores, bias)
        assert result["among_cold"]["ndcg@5"] == pytest.approx(wanted["among"], abs=1e-6)
        assert among_all[way]["cold"]["ndcg@5"] == pytest.approx(wanted["cold"], abs=1e-6)
        assert among_all[way]["warm"]["ndcg@5"] == pytest.approx(wanted["warm"], abs=1e-6)
    assert among_all["without_cold"]["cold"]["ndcg@5"] == 0
    share = result["protocol"]["weight_of_cold"]
    both = among_all["calibrated"]
    assert both["both"]["ndcg@5"] == pytest.approx(
        share * both["cold"]["ndcg@5"] + (1 - share) * both["warm"]["ndcg@5"])
    # The same model with a bias of its own: calibration finds the same in all.
    other = api.evaluate(run, cold=ColdFill(ColdRule("neighbours"), bias=0.5))["cold"]
    assert other["bias"] == pytest.approx(result["bias"], abs=1e-4)
    assert other["among_all"]["calibrated"] == both
    assert other["among_all"]["uncalibrated"] == among_all["uncalibrated"]


def test_what_cannot_be_filled_says_so(run: Path, tiny_run: Path) -> None:
    with pytest.raises(InputError, match=r"has 0 item vectors .none.; expected the name"):
        api.load(tiny_run, cold="both")
    with pytest.raises(InputError, match="expected one of neighbours, projection, both"):
        api.load(run, cold="nearest")
    with pytest.raises(InputError, match="has no item vectors 'image'"):
        api.load(run, cold=ColdFill(vectors=("image",)))


def test_rows_of_ids_alone_are_filled_too() -> None:
    random = np.random.default_rng(4)
    stored, content = random.standard_normal((9, 5)), random.standard_normal((9, 3))
    stored, content = stored.astype(np.float32), content.astype(np.float32)
    warm, cold, nothing = np.arange(6), np.arange(6, 9), np.zeros((9, 1), np.float32)
    for fill in ("projection", "both"):
        rule = ColdRule(fill, neighbours=2)  # type: ignore[arg-type]
        found, bias = own_values(rule, RowSource(5), {}, stored, None, content, warm, cold)
        wanted = cold_vectors(rule, Known(stored[warm], nothing[warm], content[warm]),
                              nothing[cold], content[cold])
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert bias is None


@pytest.mark.parametrize("fill", ["neighbours", "both"])
def test_a_solved_model_is_measured_by_the_same_protocol(fill: str, withheld: Path) -> None:
    settings = ("evaluate.ks=[3,5]", "evaluate.metric='ndcg@5'", "ease.ridge=5")
    given = ColdFill(ColdRule(fill, neighbours=3))  # type: ignore[arg-type]
    found = api.baseline(withheld, models="ease", overrides=settings, cold=given)
    result = found["models"]["ease"]["cold"]
    dataset = Dataset.open(withheld)
    count, first = dataset.num_items, dataset.num_trained
    taken = np.zeros((dataset.num_users, count))
    before = np.zeros((dataset.num_users, count))
    for user in range(dataset.num_users):
        start = dataset.offsets[user]
        taken[user, dataset.items[start:dataset.train_end[user]]] = 1
        before[user, dataset.items[start:dataset.valid_end[user]]] = 1
    inverse = np.linalg.inv(taken.T @ taken + 5 * np.eye(count))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    content = np.load(withheld / "item_vectors" / "text.npy")
    warm, nothing = np.flatnonzero(dataset.popularity() > 0), np.zeros((count, 1), np.float32)
    columns = weights.T.astype(np.float32)
    known = Known(columns[warm], nothing[warm], content[warm])
    weights[:, first:] = cold_vectors(given.rule, known, nothing[first:], content[first:]).T
    ids = [str(item) for item in dataset.item_ids()]
    scores = [{} if not before[user].any() else {
        ids[item]: float(before[user] @ weights[:, item])
        for item in np.flatnonzero(before[user] == 0)} for user in range(dataset.num_users)]
    for way, bias in (("calibrated", result["bias"]), ("uncalibrated", 0.0)):
        wanted = by_hand(dataset, scores, bias)
        assert result["among_cold"]["ndcg@5"] == pytest.approx(wanted["among"], abs=1e-6)
        assert result["among_all"][way]["cold"]["ndcg@5"] == pytest.approx(wanted["cold"], abs=1e-6)
        assert result["among_all"][way]["warm"]["ndcg@5"] == pytest.approx(wanted["warm"], abs=1e-6)
    with pytest.raises(InputError, match="ease alone"):
        api.baseline(withheld, models="itemknn", overrides=settings, cold=given)


def test_the_command_line_shows_both_kinds_of_metrics(run: Path, withheld: Path,
                                                      rec_jax: Command) -> None:
    shown = rec_jax("evaluate", run, "--cold", "neighbours")
    assert shown.code == 0 and "uncalibrated" in shown.out and "among cold" in shown.out
    assert "chosen" in shown.out
    solved = one_object(rec_jax("baseline", withheld, "--model", "ease", "--cold", "both",
                                "--json"))
    assert 0 <= solved["models"]["ease"]["cold"]["among_cold"]["ndcg@10"] <= 1
    found = one_object(rec_jax("recommend", run, "--user", "u5", "--cold", "both", "--cold-bias",
                               "1000", "--cold-vectors", "text", "--k", "1", "--json"))
    dataset = Dataset.open(withheld)
    index = int(dataset.item_index([found["recommendations"][0]["item"]])[0])
    assert dataset.popularity()[index] == 0
    assert "expected --cold neighbours, projection or both" in refused(
        rec_jax("recommend", run, "--user", "u5", "--cold-bias", "1"))
