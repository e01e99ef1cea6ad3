"""A bias of the model, or one that is given when it is asked: ranks, lists and exports agree."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from asked import ITEMS, TOTAL, save, settings, write_dataset

import rec_jax
from rec_jax import api
from rec_jax.data.label_frequency import label_counts
from rec_jax.errors import InputError
from rec_jax.inference.bias import ItemBias, bias_of_rows, given_bias
from rec_jax.inference.evaluate import evaluate_served, make_ranker, rank_users
from rec_jax.inference.export import WRITERS, export, load_embeddings
from rec_jax.inference.histories import iterate_tiles
from rec_jax.inference.retrieve import Recommender, recommend
from rec_jax.inference.served import Served, open_rows
from rec_jax.mesh import row_sharding
from rec_jax.metrics import MISSED, rank_metrics
from rec_jax.run import Run
from rec_jax.simulate.run_policy import probabilities, user_histories
from rec_jax.tables.bias import place_bias
from rec_jax.tables.row_map import spread

MESHES = ("1x1", "2x4", "1x8")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = write_dataset(tmp_path_factory.mktemp("asked"))
    return save(settings(dataset, objective={"scale": 2.0}),
                tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture(scope="module")
def loaded(saved: Path) -> dict[str, Recommender]:
    return {mesh: api.load(saved, mesh=mesh) for mesh in MESHES}


@pytest.fixture(scope="module")
def models(loaded: dict[str, Recommender]) -> dict[str, Served]:
    return {mesh: model.served for mesh, model in loaded.items()}


def with_bias(served: Served, values: np.ndarray) -> Served:
    """The model as if it had learned these."""
    return dataclasses.replace(served, bias=place_bias(TOTAL, served.mesh, values=values,
                                                       over=served.over))


@functools.cache
def whole_bias() -> np.ndarray:
    """Steps of 1/2, which add exactly; items that users want are among those taken out."""
    random = np.random.default_rng(2)
    values = random.integers(-8, 9, ITEMS).astype(np.float32) / 2
    values[random.permutation(ITEMS)[:60]] = -np.inf
    return values


@pytest.fixture(scope="module")
def scores(models: dict[str, Served], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """query . row of every user's whole history, f64 `[users, V]`, from files of an export."""
    folder = tmp_path_factory.mktemp("vectors")
    users, items = (load_embeddings(export(models["1x1"], folder / what, what=what)).vectors
                    for what in ("users", "items"))  # type: ignore[arg-type]
    return users.astype(np.float64) @ items.astype(np.float64).T


class Answers(NamedTuple):
    """ranks: `[M]` of the users with a test item; best: `[M, V]`."""

    ranks: np.ndarray
    best: np.ndarray


def ask(served: Served, bias: np.ndarray) -> Answers:
    users, targets, ends = served.dataset.targets("test")
    (tiles, chosen), = iterate_tiles(served.dataset, users, ends, targets, reading=served.reading,
                                     batch=96, devices=served.mesh.size)
    ranker = make_ranker(served.encoder, ITEMS, served.mesh, filter_seen=True, list_length=ITEMS,
                         over=served.over)
    found = ranker(served.params, served.rows, tiles,
                   bias_of_rows(served, given_bias(served, bias)))
    ranks, best = np.zeros(len(users), int), np.zeros((len(users), ITEMS), int)
    ranks[chosen] = np.asarray(found.ranks).reshape(-1)[:len(chosen)]
    best[chosen] = np.asarray(found.best).reshape(-1, ITEMS)[:len(chosen)]
    return Answers(ranks, best)


@pytest.fixture(scope="module")
def answers(models: dict[str, Served]) -> dict[str, Answers]:
    return {mesh: ask(served, whole_bias()) for mesh, served in models.items()}


def test_lists_are_those_of_the_dense_scores_with_the_bias(
        loaded: dict[str, Recommender], scores: np.ndarray) -> None:
    model, values = loaded["1x1"], whole_bias()
    dataset = model.served.dataset
    users, ids = dataset.user_ids().to_list(), dataset.item_ids().to_list()
    for number in (0, 7, 31):
        found = model.recommend(user=users[number], k=40, filter_seen=False, bias=values)
        shown = [entry.score for entry in found]
        own = scores[number] + values
        np.testing.assert_allclose(shown, np.sort(own)[::-1][:40], rtol=1e-4, atol=1e-4)
        places = [ids.index(entry.item) for entry in found]
        np.testing.assert_allclose(shown, own[places], rtol=1e-4, atol=1e-4)
        assert places != np.argsort(-scores[number])[:40].tolist()


def test_an_item_whose_bias_is_minus_inf_is_not_shown(models: dict[str, Served]) -> None:
    heard: list[str] = []
    every = recommend(models["1x1"], user="u3", k=ITEMS, filter_seen=False, bias=whole_bias(),
                      tell=heard.append)
    kept = models["1x1"].dataset.item_ids().filter(whole_bias() > -np.inf)
    assert sorted(entry.item for entry in every) == sorted(kept)
    assert heard == [f"{ITEMS - 60} instead of {ITEMS} items: the catalogue has {ITEMS}, of which "
                     "60 others have no score"]


def test_ranks_and_lists_are_the_same_on_every_mesh(answers: dict[str, Answers]) -> None:
    for mesh in MESHES[1:]:
        np.testing.assert_array_equal(answers[mesh].ranks, answers["1x1"].ranks)
        np.testing.assert_array_equal(answers[mesh].best, answers["1x1"].best)


def test_a_rank_is_the_last_place_of_those_that_score_like_the_target(
        models: dict[str, Served], answers: dict[str, Answers]) -> None:
    """And there is none exactly where the list does not have the target."""
    served, values = models["1x1"], whole_bias()
    rows, dataset = np.asarray(served.rows), served.dataset
    users, targets, ends = dataset.targets("test")
    _, alike = np.unique(np.column_stack([rows[:ITEMS], values]), axis=0, return_inverse=True)
    missed = tied = 0
    for user, target, end, rank, best in zip(users, targets, ends, *answers["1x1"], strict=True):
        listed = best[best >= 0]
        history = dataset.items[dataset.offsets[user]:end]
        assert set(listed) == set(range(ITEMS)) - set(history) - set(
            np.flatnonzero(values == -np.inf))
        if target not in listed:
            assert rank == MISSED
            missed += values[target] == -np.inf
            continue
        same = alike[listed] == alike[target]
        assert rank == 1 + np.flatnonzero(same)[-1] and same[listed == target].all()
        tied += same.sum() > 1
    assert missed > 2 and tied > 10


def test_metrics_are_the_same_whoever_gives_the_bias(
        loaded: dict[str, Recommender], answers: dict[str, Answers]) -> None:
    values = whole_bias()
    half = np.where(values == -np.inf, 0, values / 2).astype(np.float32)
    rest = values - half
    shown = [entry.score for entry in loaded["1x1"].recommend(user="u9", k=30, bias=values)]
    ks = loaded["1x1"].served.config.evaluate.ks
    expected = rank_metrics(answers["1x1"].ranks, ks)
    lists = []
    for mesh, own, given in (("1x1", None, values), ("1x1", values, None), ("2x4", half, rest)):
        served = loaded[mesh].served
        model = served if own is None else with_bias(served, own)
        found = evaluate_served(model, bias=given)
        assert {name: found["metrics"][name] for name in expected} == expected
        best = recommend(model, user="u9", k=30, bias=given)
        assert ("item_bias" in found["protocol"]) == (given is not None)
        lists.append([entry.item for entry in best])
        np.testing.assert_allclose([entry.score for entry in best], shown, rtol=1e-5, atol=1e-6)
    assert lists[1:] == lists[:-1]


def test_a_ranker_takes_the_bias_in_the_order_of_the_rows(models: dict[str, Served]) -> None:
    """As a training does, whose table may be striped, with cold items besides."""
    served, values = models["2x4"], whole_bias()
    order, dataset = spread(ITEMS), served.dataset
    users, targets, ends = dataset.targets("test")
    by_row = np.zeros_like(np.asarray(served.rows))
    by_row[order.rows(np.arange(ITEMS))] = np.asarray(served.rows)[:ITEMS]
    rows = jax.device_put(by_row, row_sharding(served.mesh, served.over))
    cold = np.arange(ITEMS) % 11 == 0
    found = []
    for row_map, table in ((None, served.rows), (order, rows)):
        bias = place_bias(TOTAL, served.mesh, values=values, over=served.over, row_map=row_map)
        ranker = make_ranker(served.encoder, ITEMS, served.mesh, filter_seen=True, cold=cold,
                             over=served.over, row_map=row_map)
        found.append(rank_users(ranker, served.params, table, dataset, users, targets, ends,
                                reading=served.reading, batch=512, devices=8, bias=bias))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][cold[targets]] == MISSED).all()


def test_a_popularity_bias_is_in_the_units_of_the_loss(models: dict[str, Served]) -> None:
    served = models["1x1"]
    counts = label_counts(served.dataset, length=served.config.data.length, window="last")
    for strength, prior in ((0.5, 1.0), (-1.0, 0.25)):
        found = rec_jax.popularity_bias(served, strength, prior)
        shares = (counts + prior) / (counts.sum() + prior * ITEMS)
        np.testing.assert_allclose(found.values, strength / 2.0 * np.log(shares), rtol=1e-5)
        assert found.about == {"kind": "popularity", "strength": strength, "prior": prior}
    for wrong in ((float("nan"), 1.0), (1e9, 1.0), (0.5, 0.0)):
        with pytest.raises(InputError, match=r"popularity bias: (strength|prior) is"):
            rec_jax.popularity_bias(served, *wrong)


def test_more_popularity_shows_more_popular_items_and_the_protocol_says_so(
        models: dict[str, Served]) -> None:
    served = models["1x1"]
    plain, rare = rec_jax.evaluate(served), rec_jax.evaluate(
        served, bias=rec_jax.popularity_bias(served, -8.0))
    popular = rec_jax.evaluate(served, bias=rec_jax.popularity_bias(served, 8.0),
                               baseline="itemknn")
    shown = [result["metrics"]["popularity@20"] for result in (rare, plain, popular)]
    assert shown[0] < shown[1] < shown[2]
    assert "item_bias" not in plain["protocol"] and popular["baselines"]["itemknn"]
    assert popular["protocol"] == {**plain["protocol"], "item_bias": {
        "kind": "popularity", "strength": 8.0, "prior": 1.0}}


def test_values_are_stamped_by_their_content(models: dict[str, Served]) -> None:
    stamps = []
    for values in (np.zeros(ITEMS), np.zeros(ITEMS, np.float32), [0] * ITEMS, [1] * ITEMS):
        found = given_bias(models["1x1"], values)
        assert found is not None and found.values.dtype == np.float32
        assert found.about["kind"] == "given" and len(found.about["content"]) == 64
        stamps.append(found.about)
    assert stamps[0] == stamps[1] == stamps[2] != stamps[3]


@pytest.mark.parametrize(("bias", "said"), [
    (np.zeros(ITEMS - 1), f"expected one number for each of the {ITEMS} items"),
    (np.zeros(TOTAL), "expected one number"), (np.zeros((ITEMS, 1)), "expected one number"),
    (3.0, "expected one number"), (["a"] * ITEMS, "expected one number"),
    ([[1], [1, 2]], "no array"), (np.zeros(ITEMS, bool), "expected one number"),
    (np.full(ITEMS, np.nan), "bias of item 0 is nan"), (np.full(ITEMS, 1e300), "is inf"),
    (ItemBias(np.full(ITEMS, np.inf, np.float32), {}), "is inf")])
def test_a_bias_that_says_nothing_usable_is_one_line(models: dict[str, Served], bias: Any,
                                                     said: str) -> None:
    for ask in (functools.partial(rec_jax.evaluate, models["1x1"]),
                functools.partial(rec_jax.recommend, models["1x1"], user="u3")):
        with pytest.raises(InputError, match=said) as refusal:
            ask(bias=bias)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_an_export_has_the_bias_of_its_items(
        models: dict[str, Served], saved: Path, tmp_path: Path, form: str) -> None:
    values = whole_bias()
    stored = dataclasses.replace(open_rows(Run(saved)), bias=values)
    meshes = MESHES if form == "npy" else MESHES[:1]
    for model in [stored, *(with_bias(models[mesh], values) for mesh in meshes)]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        found = load_embeddings(export(model, folder, format=form))
        assert found.item_bias is not None and found.item_bias.dtype == np.float32
        np.testing.assert_array_equal(found.item_bias, values)
        np.testing.assert_array_equal(found.vectors, np.asarray(models["1x1"].rows)[:ITEMS])
        assert found.about["item_bias"] is True
    plain = load_embeddings(export(models["1x1"], tmp_path / "plain", format=form))
    assert plain.item_bias is None and "item_bias" not in plain.about


def test_an_export_of_users_has_no_bias(models: dict[str, Served], tmp_path: Path) -> None:
    found = load_embeddings(export(with_bias(models["1x1"], whole_bias()), tmp_path / "users",
                                   what="users"))
    assert found.item_bias is None and "item_bias" not in found.about


DAMAGED = {"npy": "item_bias.npy", "safetensors": "embeddings.safetensors",
           "parquet": "embeddings.parquet", "zarr": "item_bias.zarr/c/0"}


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_a_bias_that_is_cut_short_or_missing_is_one_line(
        models: dict[str, Served], tmp_path: Path, form: str) -> None:
    def refused(folder: Path) -> None:
        with pytest.raises(InputError, match="damaged") as refusal:
            load_embeddings(folder)
        assert "\n" not in str(refusal.value)

    folder = export(with_bias(models["1x1"], whole_bias()), tmp_path / "cut", format=form)
    path = folder / DAMAGED[form]
    path.write_bytes(path.read_bytes()[:-8])
    refused(folder)
    path.unlink()
    refused(folder)
    without = export(models["1x1"], tmp_path / "without", format=form)
    about = json.loads((without / "export.json").read_text())
    (without / "export.json").write_text(json.dumps({**about, "item_bias": True}))
    refused(without)


def test_a_policy_of_a_model_with_a_bias_is_the_softmax_of_its_scores(
        models: dict[str, Served], scores: np.ndarray) -> None:
    values = whole_bias()
    served = with_bias(models["1x1"], values)
    dataset = served.dataset
    histories = user_histories(dataset, dataset.user_ids(), None)
    items = np.random.default_rng(0).integers(0, ITEMS, dataset.num_users)
    found = probabilities(served, histories, items, temperature=4.0)
    logits = 2.0 / 4.0 * (scores + values)
    chances = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    np.testing.assert_allclose(found.logged, chances[np.arange(len(items)), items], rtol=1e-3,
                               atol=1e-9)
    assert (found.logged[values[items] == -np.inf] == 0).all()
    shown = np.unique(items)
    np.testing.assert_allclose(found.supported, chances[:, shown].sum(axis=1), rtol=1e-3)
