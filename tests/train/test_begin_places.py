"""Runs with places in front of histories: the step, users without one, and what is refused.

The encoder is a bag: a query is the mean of all that stands before it, so that everything can be
written out in NumPy. Items have content that goes through an MLP, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import Command, refused
from item_vectors import give_vectors
from mlp import by_definition

from rec_jax import api, config
from rec_jax.data.attributes import BEGIN, open_attributes
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, SplitConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.protocol import choose_panel, protocol
from rec_jax.inference.retrieve import Recommender
from rec_jax.inference.served import Served, counts_of
from rec_jax.model.encoder import as_vectors
from rec_jax.run import Run, RunConfig, read_beside
from rec_jax.run_sections import EvaluateConfig
from rec_jax.tables import ITEMS
from rec_jax.train.build import Built, build
from rec_jax.train.mode import READ
from rec_jax.train.step import place_batch
from rec_jax.train.tables import asked_of

Mapping = Callable[..., dict[str, Any]]
LENGTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a time split, in whose test part some users come first, and their table."""
    folder, random = tmp_path_factory.mktemp("begin"), np.random.default_rng(3)
    lines, table = ["user_id,item_id,time"], ["user_id,gender,age"]
    for user in range(40):
        begin = 900 if user % 5 == 4 else int(random.integers(200, 700))
        lines += [f"u{user},i{(7 * (user % 2) + int(random.integers(0, 12))) % 20},{when}"
                  for when in np.sort(begin + random.integers(0, 400, int(random.integers(3, 12))))]
        if user % 7:
            table.append(f"u{user},{'FM'[user % 2]},{user % 3 or ''}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "users.csv").write_text("\n".join(table) + "\n")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "d"),
                          columns=Columns(time="time"),
                          split=SplitConfig("time", valid_time=700, test_time=850)))
    give_vectors(folder / "d", random.standard_normal((
        Dataset.open(folder / "d").num_items - 2, 3)))  # the last two have none
    return folder


def mapping_of(folder: Path, tiny_mapping: Mapping, *given: str) -> dict[str, Any]:
    mapping = tiny_mapping("train.steps=6", "train.evaluate_every=1000.0", "train.rows=8",
                           f"data.length={LENGTH}", f"data.path='{folder / 'd'}'",
                           "evaluate.filter_seen=false", *given)
    mapping["begin"] = {"table": str(folder / "users.csv"), "columns": ["gender", "age"],
                        "places": 2}
    mapping["encoder"] = {"kind": "bag"}
    mapping["content"] = [{"name": "text", "kind": "mlp", "hidden": [4]}]
    return mapping


@pytest.fixture(scope="module")
def built(folder: Path, tiny_mapping: Mapping) -> Built:
    return build(config.build(RunConfig, mapping_of(folder, tiny_mapping, "train.accumulate=1")))


@pytest.fixture(scope="module")
def model(built: Built, folder: Path) -> Recommender:
    """The model before its first step, with larger vectors of places."""
    params, rows = jax.tree.map(jnp.array, (built.state.encoder, built.state.items.rows))
    random = np.random.default_rng(5).standard_normal(params[BEGIN].shape)
    params[BEGIN] = params[BEGIN].at[1:].set(0.1 * random[1:])
    encoder, vectors = as_vectors(built.encoder, params, rows)
    return Recommender(Served(Run(folder / "none"), built.config, built.dataset, encoder, params,
                              vectors, 0, built.mesh))


def vectors_of(params: Any, rows: np.ndarray) -> np.ndarray:
    """e + f(x) of stored rows, f64 `[V, d]`."""
    rows, dim = rows.astype(np.float64), rows.shape[1] - 3
    weights = {path.removeprefix("content/text/"): np.asarray(leaf, np.float64)
               for path, leaf in params.items() if path.startswith("content/")}
    return np.asarray(rows[:, :dim] + by_definition(weights, rows[:, dim:]))


def front(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Vectors `[P, d]` of places with codes `[P, K]`: the mean of the rows of those that are not 0.
    """
    return np.stack([table[place[place > 0]].mean(axis=0) for place in codes])


def test_the_step_is_that_of_the_mean_of_places_and_items(built: Built, model: Recommender
                                                          ) -> None:
    batch = built.stream.batch(0)
    labels = np.concatenate([built.stream.batch(step)["targets"].ravel() for step in range(
        -(-built.stream.rows_per_epoch // 8))])[:built.stream.rows_per_epoch * LENGTH]
    np.testing.assert_array_equal(np.bincount(labels[labels >= 0], minlength=len(
        built.dataset.popularity())), counts_of(built.config, built.dataset))
    table = np.asarray(built.state.encoder[BEGIN], np.float64)
    before = {path: np.asarray(leaf) for path, leaf in built.state.encoder.items()}
    stored = np.asarray(built.state.items.rows)[:built.dataset.num_items]
    rows = vectors_of(before, stored)
    np.testing.assert_allclose(model.served.rows[:len(rows)], rows, atol=1e-6)
    assert not table[0].any() and not stored[-2:, -3:].any()
    losses = []
    for row in range(len(batch["items"])):
        for place in np.flatnonzero(batch["targets"][row] >= 0):
            begin = place - batch["positions"][row, place]
            vectors = [front(table, batch[BEGIN][row, begin:begin + 2])[:place - begin + 1]]
            vectors.append(rows[batch["items"][row, begin + 2:place + 1]])
            scores = rows @ np.concatenate(vectors).mean(axis=0)
            losses.append(np.log(np.exp(scores).sum()) - scores[batch["targets"][row, place]])
    state, metrics = built.step(built.state, place_batch(
        {name: values[None] for name, values in batch.items()}, built.mesh))
    assert float(metrics.positions) == len(losses)
    np.testing.assert_allclose(float(metrics.loss), np.mean(losses), rtol=1e-5)
    moved = np.abs(np.asarray(state.encoder[BEGIN]) - table).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), np.setdiff1d(batch[BEGIN], [0]))
    for path in ("0/kernel", "0/bias", "1/kernel", "1/bias"):
        path = f"content/text/{path}"
        assert (np.asarray(state.encoder[path]) != before[path]).any(), path


def test_a_begin_place_reads_no_row_of_an_item(folder: Path, tiny_mapping: Mapping) -> None:
    made = config.build(RunConfig, mapping_of(folder, tiny_mapping))
    stream = BatchStream(Dataset.open(folder / "d"), length=LENGTH, rows=4,
                         features=read_beside(made))
    batch = {name: values[None] for name, values in stream.batch(0).items()}
    setting = SimpleNamespace(tables={ITEMS: None}, reads=ITEMS, objective=made.objective)
    tasks = made.objective.plan(batch, None, 20)
    found = asked_of(setting, batch, tasks)[ITEMS].each[READ]  # type: ignore[arg-type]
    there = (batch["segments"] > 0) & (batch["positions"] >= 2)
    np.testing.assert_array_equal(found.present, there.reshape(1, -1))
    assert 0 < there.sum() < (batch["segments"] > 0).sum()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sparse", "streamed"])
def test_other_modes_train_the_same_model(mode: str, folder: Path, tiny_mapping: Mapping) -> None:
    """By plain descent, with all items as negatives, they take the step of a dense table."""
    count = Dataset.open(folder / "d").num_items
    whole = () if mode != "sparse" else (
        'objective.kind="sampled_softmax"', f"objective.count={count}")
    found = []
    for update in ("dense", mode):
        given = mapping_of(folder, tiny_mapping, f'table.update="{update}"', *whole,
                           'table.optimizer.kind="sgd"', "table.optimizer.rate=0.5")
        given.pop("content")  # an MLP is of dense tables
        given["tune"] = [{"match": "tables/*", "rate": 1.0 if update == mode else 0.0}]
        built = build(config.build(RunConfig, given))
        batch = {name: values[None] for name, values in built.stream.batch(0).items()}
        state, metrics = built.step(built.state, place_batch(batch, built.mesh))
        found.append((float(metrics.loss), np.asarray(state.encoder[BEGIN])))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_query_is_that_of_attributes_and_newest_items(model: Recommender) -> None:
    served = model.served
    dataset, ids = served.dataset, served.dataset.item_ids().to_list()
    known = open_attributes(served.config.begin, dataset)  # type: ignore[arg-type]
    table, rows = np.asarray(served.params[BEGIN]), np.asarray(served.rows)[:len(ids)]

    def by_hand(codes: np.ndarray, history: np.ndarray) -> np.ndarray:
        vectors = [front(table, known.in_front(codes)[0]), rows[history[-(LENGTH - 2):]]]
        if not len(history):
            vectors.pop()
        return np.asarray(rows @ np.concatenate(vectors).mean(axis=0))

    def agrees(found: list[Any], scores: np.ndarray) -> None:
        assert [entry.item for entry in found] == [ids[item] for item in np.argsort(-scores)[:3]]
        np.testing.assert_allclose([entry.score for entry in found], np.sort(scores)[::-1][:3],
                                   atol=1e-5)

    given = {"gender": "M", "age": "2"}
    nothing = np.empty(0, int)
    agrees(api.recommend(model, attributes=given, k=3), by_hand(known.coded(given), nothing))
    agrees(model.recommend(attributes={"gender": "F"}, k=3),
           by_hand(known.coded({"gender": "F"}), nothing))
    history = np.array([3, 1, 4, 1, 5, 9])
    for count in (1, 6):
        agrees(model.recommend(attributes=given, history=[ids[item] for item in history[:count]],
                               k=3), by_hand(known.coded(given), history[:count]))
    agrees(model.recommend(history=[ids[4]], k=3), by_hand(known.coded(None), history[2:3]))
    first = served.attributes
    assert first is not None and served.attributes is first  # read once, for all questions
    for user in (8, 13):
        agrees(model.recommend(user=str(dataset.user_ids()[user]), k=3),
               by_hand(known.codes[[user]], dataset.history(user)))
    # The test's users, and those among them who have nothing before it.
    begin, end = np.asarray(dataset.valid_end), np.asarray(dataset.offsets)[1:]
    for cold in (False, True):
        there = (end > begin) & ((begin == dataset.offsets[:-1]) == cold)
        ranks = []
        for user in np.flatnonzero(there):
            scores = by_hand(known.codes[[user]], dataset.items[
                dataset.offsets[user]:dataset.valid_end[user]])
            ranks.append(np.sum(scores >= scores[dataset.items[begin[user]]] - 1e-7))
        found = api.evaluate(model, cold_users=cold, baseline=cold)
        assert found["protocol"]["users"] == len(ranks) > 3
        assert found["metrics"]["hr@5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert "popularity_baseline" in found and "nothing before" in found["protocol"]["target"]
    settings = EvaluateConfig(cold_users=True, filter_seen=False)
    panel = choose_panel(dataset, "test", settings)
    for split in ("new", "valid"):  # what is new is asked of everybody
        target = protocol(dataset, split, settings, panel)["target"]  # type: ignore[arg-type]
        assert ("nothing before" in target) == (split == "valid")


@pytest.mark.slow
def test_attributes_are_asked_in_the_command_line(folder: Path, tiny_mapping: Mapping,
                                                  tmp_path: Path, rec_jax: Command) -> None:
    run = tmp_path / "r"
    api.train(config.build(RunConfig, mapping_of(folder, tiny_mapping)), run=run)
    ended = rec_jax("recommend", run, "--attributes", "gender=F", "-k", "2")
    assert ended.code == 0, ended.err
    assert "no user has gender = 'X'; expected one of F, M" in refused(
        rec_jax("recommend", run, "--attributes", "gender=X"))
    queries = load_embeddings(api.export(run, out=tmp_path / "q", what="users"))
    served = api.load(run).served
    user = str(served.dataset.user_ids()[8])
    best = api.recommend(run, user=user, k=1)[0]
    scores = queries.vectors[8] @ np.asarray(served.rows)[:served.dataset.num_items].T
    assert best.item == served.dataset.item_ids()[int(np.argmax(scores))]
    np.testing.assert_allclose(best.score, scores.max(), rtol=1e-4)
    # Tomorrow's table knows more users: the run answers as it did, and another one goes on from it.
    later = tmp_path / "users.csv"
    mapping = mapping_of(folder, tiny_mapping, "train.steps=1")
    mapping["begin"] |= {"table": str(later), "name": "later"}
    shutil.copy(folder / "users.csv", later)
    api.train(config.build(RunConfig, mapping), run=tmp_path / "one", start_from=run)
    with later.open("a") as more:
        more.write("somebody,F,1\n")
    assert rec_jax("recommend", tmp_path / "one", "--attributes", "gender=F").code == 0
    mapping["begin"]["name"] = "latest"
    api.train(config.build(RunConfig, mapping), run=tmp_path / "two", start_from=tmp_path / "one")
    # Codes that mean others than they did, as those of another table would.
    moved = shutil.copytree(folder / "d", tmp_path / "d")
    about = moved / "user_attributes" / "users.json"
    about.write_text(about.read_text().replace('"F"', '"E"'))
    assert "are not those that the run was trained with" in refused(
        rec_jax("evaluate", run, "--data", moved))


@pytest.mark.parametrize(("changed", "said"), [
    ({"encoder": {"kind": "user"}}, "encoder 'user' reads no places in front of a history"),
    ({"objective": {"kind": "masked_item"}}, "objective 'masked_item' fills in hidden items"),
    ({"features": [{"kind": "time_gap"}]}, "a begin place has no time"),
    ({"encoder": {"kind": "hstu", "time_bias": True}}, "a begin place has no time"),
    ({"features": [{"kind": "item_category", "name": "begin"}]}, "has the name 'begin' among"),
    ({"begin": "none", "evaluate": {"cold_users": True}}, r"expected \[begin\]"),
    ({"begin": {"table": "x", "columns": []}}, r"begin\.columns is empty"),
    ({"begin": {"table": "x", "columns": ["a"], "places": 7}}, "7 places")])
def test_what_does_not_fit_is_one_line(changed: dict[str, Any], said: str, folder: Path,
                                       tiny_mapping: Mapping) -> None:
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, {**mapping_of(folder, tiny_mapping), **changed})


def test_a_run_without_such_places_says_so(tiny_run: Path) -> None:
    with pytest.raises(InputError, match=r"no places for attributes .* expected a table of users"):
        api.recommend(tiny_run, attributes={"gender": "F"})
    with pytest.raises(InputError, match=r"cold_users.*expected a run with \[begin\]"):
        api.evaluate(tiny_run, cold_users=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "hstu"])
def test_a_run_is_resumed_and_asks_as_it_is_evaluated(kind: str, folder: Path, tmp_path: Path,
                                                      tiny_mapping: Mapping) -> None:
    from test_models_of_rows import arrays, lists_agree, resumed_like, trained

    mapping = mapping_of(folder, tiny_mapping, "train.steps=8", "train.checkpoint_every=4")
    mapping["encoder"] = {"kind": kind, "layers": 1}
    resumed_like(mapping, tmp_path)
    lists_agree(tmp_path / "whole")
    model = api.load(tmp_path / "whole")
    dataset = model.served.dataset
    known = open_attributes(model.served.config.begin, dataset)  # type: ignore[arg-type]
    ids = dataset.item_ids()
    # A user of the dataset is their attributes and their history, however it is asked.
    for user in (1, 9, 17):
        given = {name: list(known.values[name])[code - 1] for name, code in zip(
            known.values, known.codes[user], strict=True) if code}
        one = model.recommend(user=str(dataset.user_ids()[user]), k=5)
        other = model.recommend(history=[ids[int(item)] for item in dataset.history(user)],
                                attributes=given, k=5)
        assert one == other
    # Learned alone in front of a model that was trained without.
    plain = {name: value for name, value in mapping.items() if name != "begin"}
    trained({**plain, "train": {**mapping["train"], "steps": 2}}, tmp_path / "plain")
    mapping["tune"] = [{"match": "*", "rate": 0.0}, {"match": BEGIN, "rate": 1.0}]
    api.train(config.build(RunConfig, mapping), run=tmp_path / "next",
              start_from=tmp_path / "plain")
    before, after = arrays(tmp_path / "plain", 2), arrays(tmp_path / "next")
    path = f"model['encoder']['{BEGIN}']"
    assert after[path][1:].any() and path not in before
    for name, value in before.items():
        if name.startswith("model"):
            np.testing.assert_array_equal(value, after[name], err_msg=name)
