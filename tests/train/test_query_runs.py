"""Runs that read queries: the step, evaluation and recommendation by hand, and what is refused.

The encoder of the tests by hand is a bag: a query of it is the mean of all places before it, so
that everything can be written out in NumPy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import Command, refused

from rec_jax import api, config, lookup
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import EVENT, QUERY
from rec_jax.data.prepare import Columns, PrepareConfig, SplitConfig, prepare
from rec_jax.data.queries import Query, open_timeline, texts_in
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.retrieve import Recommender
from rec_jax.inference.served import Served
from rec_jax.run import Run, RunConfig
from rec_jax.simulate.run_policy import probabilities, user_histories
from rec_jax.train.build import Built, build
from rec_jax.train.mode import READ
from rec_jax.train.step import place_batch
from rec_jax.train.tables import asked_of

Mapping = Callable[..., dict[str, Any]]
LENGTH, WIDTH = 6, 4
FEATURES = [{"kind": "event"}, {"kind": "query", "name": "text"}]


def make_log(folder: Path, users: int, items: int, seed: int = 3) -> Path:
    """What is bought depends on the text just before alone, and that is the last but one thing that
    a user does; some search once more."""
    random = np.random.default_rng(seed)
    goes = random.permutation(items)
    lines = ["user_id,item_id,time,event,text"]
    for user in range(users):
        when = 0
        for _ in range(random.integers(3, 6)):
            text = random.integers(items)
            for row in (f"i{random.integers(items)},{{}},view,", f",{{}},query,text {text}",
                        f"i{goes[text]},{{}},purchase,"):
                lines.append(f"u{user}," + row.format(when))
                when += 10
        if user % 3 == 0:
            lines.append(f"u{user},,{when},query,text {random.integers(items)}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(str(folder / "log.csv"), str(folder / "d"), columns=Columns(
        time="time", event="event", query="text"), split=SplitConfig(event="purchase")))
    texts = texts_in(Dataset.open(folder / "d")).item_ids()
    np.save(folder / "v.npy", random.standard_normal((len(texts), WIDTH)).astype(np.float32))
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    api.embed(folder / "d", what="queries", vectors=folder / "v.npy", ids=folder / "texts.txt")
    return folder / "d"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log(tmp_path_factory.mktemp("queries"), 30, 16)


def mapping_of(folder: Path, tiny_mapping: Mapping, *given: str) -> dict[str, Any]:
    mapping = tiny_mapping("train.steps=6", "train.evaluate_every=1000.0", "train.rows=8",
                           f"data.length={LENGTH}", f"data.path='{folder}'",
                           "evaluate.event='purchase'", "evaluate.filter_seen=true", *given)
    mapping["encoder"], mapping["features"] = {"kind": "bag"}, FEATURES
    return mapping


@pytest.fixture(scope="module")
def built(folder: Path, tiny_mapping: Mapping) -> Built:
    return build(config.build(RunConfig, mapping_of(folder, tiny_mapping)))


@pytest.fixture(scope="module")
def model(built: Built, folder: Path) -> Recommender:
    """The model before its first step, with larger vectors of types and of queries."""
    params, rows = jax.tree.map(jnp.array, (built.state.encoder, built.state.items.rows))
    random = np.random.default_rng(5)
    for path in (EVENT, QUERY):
        params[path] = jnp.float32(0.1 * random.standard_normal(params[path].shape))
    return Recommender(Served(Run(folder / "none"), built.config, built.dataset, built.encoder,
                              params, rows, 0, built.mesh))


class ByHand:
    """The scores of all items after the newest places of a user, or of a typed history."""

    def __init__(self, model: Recommender) -> None:
        served = model.served
        self.dataset = served.dataset
        self.rows = np.asarray(served.rows, np.float64)[:self.dataset.num_items]
        self.types, self.matrix = (np.asarray(served.params[path], np.float64)
                                   for path in (EVENT, QUERY))
        self.timeline = open_timeline(self.dataset, "text")
        self.texts = np.asarray(self.timeline.vectors.vectors)

    def of(self, places: list[tuple[int, int, int]]) -> np.ndarray:
        """places: (text, item, code of the type), either -1."""
        vectors = [self.types[code] + (
            self.matrix[0] + self.texts[text] @ self.matrix[1:] if text >= 0 else self.rows[item])
            for text, item, code in places[-LENGTH:]]
        return np.asarray(self.rows @ np.mean(vectors, axis=0))

    def places(self, user: int, end: int) -> list[tuple[int, int, int]]:
        """Those of a user's queries count whose position is up to `end`: what comes before it."""
        data, found = self.dataset, []
        assert data.queries is not None and data.events is not None
        assert data.queries.events is not None
        own = slice(int(data.queries.offsets[user]), int(data.queries.offsets[user + 1]))
        for place in range(int(data.offsets[user]), end + 1):
            for text, at, code in zip(*(np.asarray(part[own]).tolist() for part in (
                    data.queries.texts, data.queries.positions, data.queries.events)),
                    strict=True):
                if at == place:
                    found.append((text, -1, code))
            if place < end:
                found.append((-1, int(data.items[place]), int(data.events[place])))
        return found


def test_the_step_reads_no_item_at_a_query(built: Built) -> None:
    batch = place_batch({name: value[None] for name, value in built.stream.batch(0).items()},
                        built.mesh)
    from rec_jax.dtypes import DTYPES
    from rec_jax.objectives.base import Keys
    from rec_jax.run import modes_of, tables_of
    from rec_jax.train.mode import Setting

    made = built.config
    setting = Setting(built.encoder, made.objective, tables_of(made), modes_of(made, "dense"),
                      built.mesh, DTYPES["f32"])
    key = jax.random.key(0)
    tasks = made.objective.plan(batch, Keys(jax.random.split(key, 1), key),
                                built.dataset.num_items).settled()
    asked = asked_of(setting, batch, tasks)["items"].each[READ]
    queries = np.asarray(batch[QUERY])[..., 0].reshape(1, -1) > 0
    used = np.asarray(batch["segments"]).reshape(1, -1) > 0
    assert queries.any() and not (queries & ~used).any()
    np.testing.assert_array_equal(np.asarray(asked.present), used & ~queries)
    assert not np.asarray(batch["items"]).reshape(1, -1)[queries].any()


def test_evaluation_and_recommendation_are_the_mean_of_items_and_queries(
        model: Recommender) -> None:
    hand, data = ByHand(model), model.served.dataset
    ids, people = data.item_ids(), data.user_ids()
    users, targets, ends = data.targets("test", "purchase")
    ranks, seen_targets = [], 0
    for user, target, end in zip(users.tolist(), targets.tolist(), ends.tolist(), strict=True):
        scores = hand.of(hand.places(user, end))
        seen = np.asarray(data.items[data.offsets[user]:end])
        seen_targets += target in seen
        others = np.setdiff1d(np.arange(data.num_items), seen)
        ranks.append(10**6 if target in seen else
                     np.sum(scores[others] >= scores[target] - 1e-7))
    found = api.evaluate(model)
    assert found["protocol"]["users"] == len(ranks) > 10 and seen_targets < len(ranks) / 2
    for k in (5, 10):
        assert found["metrics"][f"hr@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
    gains = np.where(np.array(ranks) <= 10, 1 / np.log2(1 + np.array(ranks, float)), 0)
    assert found["metrics"]["ndcg@10"] == pytest.approx(gains.mean())
    names = dict(enumerate(data.event_types, 1))
    texts = texts_in(data).item_ids()
    for user in range(0, data.num_users, 4):
        end = int(data.offsets[user + 1])
        places = hand.places(user, end)
        assert user % 3 or places[-1][0] >= 0  # what was searched last counts as well
        scores = hand.of(places)
        scores[np.asarray(data.items[data.offsets[user]:end])] = -np.inf
        typed = [Query(texts[text]) if text >= 0 else ids[item] for text, item, _ in places]
        one = model.recommend(user=str(people[user]), k=5)
        assert one == model.recommend(history=typed, k=5,
                                      events=[names[code] for _, _, code in places])
        best = np.argsort(-scores)[:5]
        assert [row.item for row in one] == [ids[int(item)] for item in best]
        np.testing.assert_allclose([row.score for row in one], scores[best], atol=1e-5)
    # Without types an item has none that is known, and a query has the one that all have.
    text, item = 3, 2
    (code,) = data.event_codes(["query"]).tolist()
    for history, places in (([Query(texts[text])], [(text, -1, code)]),
                            ([ids[item], Query(texts[text])], [(-1, item, 0), (text, -1, code)])):
        row = model.recommend(history=history, k=1, filter_seen=False)[0]
        np.testing.assert_allclose(row.score, hand.of(places).max(), atol=1e-5)
    assert model.recommend(history=[ids[item]], k=3) == model.recommend(history=ids[item], k=3)
    # Everything is recommended, and that is items.
    every = model.recommend(history=[Query(texts[text]), ids[item]], k=1000, filter_seen=True)
    assert {row.item for row in every} == {*ids} - {ids[item]}


def test_a_query_of_ones_own_has_its_vector(model: Recommender) -> None:
    data = model.served.dataset
    text = str(texts_in(data).item_ids()[1])
    vector = np.asarray(open_timeline(data, "text").vectors.vectors[1])
    assert model.recommend(history=[Query(text)], k=3) == model.recommend(
        history=[Query("in other words", vector)], k=3)
    with pytest.raises(InputError, match="nobody searched 'in other words' in"):
        model.recommend(history=[Query("in other words")])
    with pytest.raises(InputError, match="1 types of events for 2 items"):
        model.recommend(history=["i1", Query(text)], events=["view"])
    with pytest.raises(InputError, match="history is empty"):
        model.recommend(history=[])
    with pytest.raises(InputError, match="come from a file, so no text can be compared"):
        lookup.queries(model, ["in other words"], model="nowhere")


def test_the_policy_of_a_run_that_reads_queries_is_refused(model: Recommender) -> None:
    data = model.served.dataset
    histories = user_histories(data, data.user_ids(), None)
    with pytest.raises(InputError, match="the model reads queries, which the histories of a log"):
        probabilities(model.served, histories, np.zeros(data.num_users, np.int64))


@pytest.mark.parametrize(("changed", "said"), [
    ({"encoder": {"kind": "user"}}, "encoder 'user' reads no places without an item"),
    ({"objective": {"kind": "masked_item"}}, "objective 'masked_item' fills in hidden items"),
    ({"features": [*FEATURES, {"kind": "query", "name": "other"}]}, "'query' is given twice"),
    ({"features": [*FEATURES, {"kind": "item_category", "name": "query"}]},
     "'query' is given twice"),
    ({"continual": {"run": "x", "step": 1}}, "nothing is appended to a dataset with queries")])
def test_what_does_not_fit_is_one_line(changed: dict[str, Any], said: str, folder: Path,
                                       tiny_mapping: Mapping) -> None:
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, {**mapping_of(folder, tiny_mapping), **changed})


def test_a_run_without_queries_says_so(tiny_run: Path) -> None:
    with pytest.raises(InputError, match=r"reads no queries .*; expected a history of item ids"):
        api.recommend(tiny_run, history=[Query("anything")])
    with pytest.raises(InputError, match="reads no queries; expected one with"):
        lookup.queries(tiny_run, ["anything"], model="x")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("transformer", "sparse"), ("hstu", "dense"),
                                            ("transformer", "streamed")])
def test_a_run_is_resumed_and_asks_as_it_is_evaluated(
        kind: str, mode: str, folder: Path, tmp_path: Path, tiny_mapping: Mapping,
        rec_jax: Command) -> None:
    from test_models_of_rows import resumed_like

    mapping = mapping_of(folder, tiny_mapping, "train.steps=8", "train.checkpoint_every=4",
                         f"table.update='{mode}'")
    mapping["encoder"] = {"kind": kind, "layers": 1, "heads": 2, **(
        {"time_bias": True} if kind == "hstu" else {})}
    if mode == "sparse":
        mapping["objective"] = {"kind": "sampled_softmax", "count": 8}
    resumed_like(mapping, tmp_path)
    run = tmp_path / "whole"
    model, data = api.load(run), Dataset.open(folder)
    ids, texts, hand = data.item_ids(), texts_in(data).item_ids(), open_timeline(data, "text")
    users, targets, ends = data.targets("test", "purchase")
    hits = []
    for user, target, end in zip(users.tolist(), targets.tolist(), ends.tolist(), strict=True):
        last = int(hand.ends(np.array([user]), np.array([end]))[0])
        at = hand.find(np.arange(hand.offsets[user], last))
        assert data.queries is not None and data.events is not None
        typed = [Query(texts[int(data.queries.texts[query])]) if query >= 0 else
                 ids[int(data.items[place])] for query, place in zip(*at, strict=True)]
        codes = hand.events(at, np.asarray(data.events.take(at.position, mode="clip"), np.int32))
        rows = model.recommend(history=typed, times=hand.times(at).tolist(), k=5,
                               events=[data.event_types[code - 1] for code in codes])
        hits.append(ids[target] in {row.item for row in rows})
    assert api.evaluate(model)["metrics"]["hr@5"] == pytest.approx(np.mean(hits))
    if kind == "hstu":
        return
    # In the command line, and with an export of users.
    text, other = texts[0], texts[1]
    ended = rec_jax("recommend", run, "--history", f"i1,{ids[0]}", "--history", f"?{text}",
                    "--history", ids[2], "--history", f"?{other}", "-k", "3", "--json")
    assert ended.code == 0, ended.err
    expected = api.recommend(run, k=3, history=["i1", ids[0], Query(text), ids[2], Query(other)])
    found = json.loads(ended.out)["recommendations"]
    assert [row.item for row in expected] == [row["item"] for row in found]
    assert "nobody searched 'elsewhere'" in refused(
        rec_jax("recommend", run, "--history", "?elsewhere"))
    assert "come from a file" in refused(
        rec_jax("recommend", run, "--history", "?elsewhere", "--model", tmp_path))
    vectors = load_embeddings(api.export(run, out=tmp_path / "q", what="users")).vectors
    served = model.served
    best = model.recommend(user=str(data.user_ids()[3]), k=1, filter_seen=False)[0]
    scores = np.asarray(vectors[3]) @ np.asarray(served.rows)[:data.num_items].T
    assert best.item == ids[int(np.argmax(scores))]
    # Other vectors beside the dataset are not those that the run knows.
    moved = shutil.copytree(folder, tmp_path / "moved")
    np.save(tmp_path / "w.npy", np.ones((len(texts), WIDTH), np.float32))
    api.embed(moved, what="queries", vectors=tmp_path / "w.npy",
              ids=folder.parent / "texts.txt", overwrite=True)
    assert "are not those that the run was trained with" in refused(
        rec_jax("evaluate", run, "--data", moved))


@pytest.mark.slow
def test_what_is_bought_is_learned_from_the_text_before_it(tmp_path: Path,
                                                           tiny_mapping: Mapping) -> None:
    """A model that reads the texts knows what is bought; one that does not, on the same log with
    the same split, knows nothing of it."""
    data, found = make_log(tmp_path, 200, 20), {}
    for name, features in (("with", FEATURES), ("without", FEATURES[:1])):
        mapping = tiny_mapping("train.steps=150", "train.evaluate_every=1000.0", "train.rows=16",
                               "data.length=18", f"data.path='{data}'", "optimizer.rate=0.01",
                               "evaluate.event='purchase'", "evaluate.filter_seen=false",
                               "encoder.dropout=0.0", "table.dim=24")
        mapping["features"] = features
        api.train(config.build(RunConfig, mapping), run=tmp_path / name)
        result = api.evaluate(tmp_path / name)
        found[name] = result["metrics"]["ndcg@10"], result["protocol"]["users"]
    assert found["with"][1] == found["without"][1] == 200
    assert found["with"][0] > 0.8 and found["without"][0] < 0.45
