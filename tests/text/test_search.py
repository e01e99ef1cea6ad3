"""Items of a text: BM25 by its formula, the encoder that made the vectors, and for whom it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import text_models as models
from command import Command, one_object, refused
from marks import slow_but

import rec_jax
from rec_jax import config
from rec_jax.data.content import open_content
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import open_item_vectors
from rec_jax.data.prepare import Columns, ItemFile, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.inference.search import blend_scores, item_space, trained_items, user_scores
from rec_jax.inference.served import Served
from rec_jax.lookup import begin_of
from rec_jax.model.encoder import build_encoder
from rec_jax.run import Run, RunConfig
from rec_jax.tables.table import padded_size
from rec_jax.text.known_items import choose_lexical, known_item_queries, ranks_of, reciprocal_ranks
from rec_jax.text.learned_file import Learned, probe_of, read_learned, write_learned
from rec_jax.text.lexical import index_words, words_of
from rec_jax.text.search import SearchConfig, best_items, open_index

Mapping = Callable[..., dict[str, Any]]
TEXTS = ["red car", "Red red bike", "", "blue car on a blue road", "road"]


def bm25(query: str, text: str, texts: list[str]) -> float:
    """By the formula, a word at a time."""
    filled = [each.lower().split() for each in texts if each]
    mean, own = np.mean([len(each) for each in filled]), Counter(text.lower().split())
    score = 0.0
    for word in query.lower().split():
        having = sum(word in each for each in filled)
        rare = math.log(1 + (len(filled) - having + 0.5) / (having + 0.5))
        often = own[word]
        score += rare * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * own.total() / mean))
    return score


def test_words_are_scored_by_the_formula_of_bm25() -> None:
    queries = ["red car", "road road unknown", "blue"]
    expected = [[bm25(query, text, TEXTS) for text in TEXTS] for query in queries]
    np.testing.assert_allclose(index_words(TEXTS).scores(queries), expected, rtol=1e-5)
    assert index_words(["", ""]).scores(["red"]).tolist() == [[0, 0]]


def test_words_have_neither_case_nor_accents() -> None:
    assert words_of("Café-2, ÜBER straße!") == ["cafe", "2", "uber", "strasse"]


def test_the_best_items_are_those_of_a_sort_and_none_without_a_score() -> None:
    scores = np.array([0.5, -np.inf, 2, 0.5, np.nan, 1], np.float32)
    assert best_items(scores, 3).tolist() == [2, 5, 0]
    assert best_items(scores, 9).tolist() == [2, 5, 0, 3]


def test_queries_lack_one_to_three_words_and_keep_one() -> None:
    texts = ["a b c d e", "one", "x y", "...  !", ""]
    seen = set()
    for seed in range(40):
        items, queries = known_item_queries(texts, seed)
        assert items.tolist() == [0, 2]
        assert queries == known_item_queries(texts, seed)[1]
        long = queries[0].split()
        assert long == sorted(long) and set(long) < set("abcde")
        seen.add(len(long))
        assert queries[1] in ("x", "y")
    assert seen == {2, 3, 4}


def test_ranks_and_their_reciprocals() -> None:
    scores = np.array([[1, 3, 2, 3], [5, 5, 5, 5]], np.float32)
    targets = np.array([2, 0])
    assert ranks_of(scores, targets).tolist() == [3, 4]
    assert ranks_of(scores, targets, ties=0.5).tolist() == [3, 2.5]
    assert reciprocal_ranks(np.array([1, 4, 11.0])).tolist() == [1, 0.25, 0]


def test_the_share_of_words_is_the_one_that_ranks_best() -> None:
    cosines = np.array([[1, 0.4, 0], [0.1, 0.2, 0]], np.float32)
    words = np.array([[0, 1, 0], [0, 0, 1]], np.float32)
    assert choose_lexical(cosines, words, np.array([1, 2]), grid=(0.1, 0.7, 2.0)) == 0.7
    assert choose_lexical(cosines, words, np.array([0, 1]), grid=(0.1, 0.7, 2.0)) == 0.1


def test_scores_of_a_text_and_of_a_user_become_one() -> None:
    text = np.array([1, 2, 3, -np.inf, 9], np.float32)
    user = np.array([5, 1, 3, 100, 1e6], np.float32)
    trained = np.array([True, True, True, True, False])
    found = blend_scores(text, user, trained, 0.25)
    expected = 0.75 * (text - 2) / np.std([1, 2, 3])
    expected[:3] += 0.25 * (user[:3] - 3) / np.std(user[:3])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert best_items(blend_scores(text, user, trained, 0), 5).tolist() == [4, 2, 1, 0]
    assert best_items(blend_scores(text, user, trained, 1), 5).tolist() == [0, 2, 4, 1]
    with pytest.raises(InputError, match=r"blend is 1\.5; expected 0"):
        blend_scores(text, user, trained, 1.5)


@pytest.fixture(scope="module")
def folder(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the tiny interactions whose items have texts and vectors of them; the last item
    has no text. Beside it the model and the table."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("search")
    ids = pl.read_csv(tiny_csv, infer_schema=False)["item_id"].unique().sort()
    random = np.random.default_rng(5)
    lines = [f"{item},{' '.join(random.choice(models.WORDS[4:], 5))}" for item in ids[:-1]]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
    prepare(PrepareConfig(source=str(tiny_csv), out=str(folder / "d"), columns=Columns(time="time"),
                          item_file=ItemFile(str(folder / "items.csv"), title="title")))
    models.write_model(folder / "model")
    rec_jax.embed(folder / "d", model=folder / "model")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tiny_mapping: Mapping) -> Served:
    """A model with the texts as content, whose numbers nobody trained."""
    mapping = tiny_mapping(f"data.path='{folder / 'd'}'")
    mapping["content"] = [{"name": "text"}]
    made, dataset = config.build(RunConfig, mapping), Dataset.open(folder / "d")
    encoder, params = build_encoder(
        made.encoder, dim=16, length=12, causal=True, precision="f32", seed=0,
        content=open_content(made.content, dataset).parts)
    random = np.random.default_rng(1)
    rows = random.standard_normal((padded_size(dataset.num_items), 16 + models.WIDTH))
    rows[:dataset.num_items, 16:] = open_item_vectors(dataset, "text").vectors
    return Served(Run(folder / "run"), made, dataset, encoder, params,
                  jnp.asarray(rows, jnp.float32), 0)


def test_a_text_of_a_dataset_finds_by_cosine_and_words(folder: Path) -> None:
    dataset = Dataset.open(folder / "d")
    vectors = open_item_vectors(dataset, "text")
    titles = dataset.titles()
    assert titles is not None
    texts = [title or "" for title in titles]
    query = " ".join(texts[7].split()[1:4])
    encoded = rec_jax.load_search(folder / "d", SearchConfig(model=str(folder / "model"))).index
    assert encoded.encode is not None
    vector = encoded.encode([query])[0].astype(np.float64)
    own = vectors.vectors.astype(np.float64)
    cosines = own @ vector / np.maximum(np.linalg.norm(own, axis=1), 1e-30) / np.linalg.norm(vector)
    for lexical in (0.0, 0.3):
        expected = cosines + lexical * np.array([bm25(query, text, texts) for text in texts])
        expected[~vectors.has] = -np.inf
        found = rec_jax.search(folder / "d", query, model=folder / "model", lexical=lexical, k=100)
        order = best_items(expected, 100)
        assert len(order) == dataset.num_items - 1
        np.testing.assert_allclose([entry.score for entry in found], expected[order], atol=1e-5)
        assert found[0].item == dataset.item_ids()[int(order[0])]
    by_words = rec_jax.search(folder / "d", query, k=3)
    assert by_words[0].score == pytest.approx(max(bm25(query, text, texts) for text in texts), 1e-5)
    assert by_words[0].title == texts[7]


def test_vectors_that_were_projected_meet_queries_that_are(folder: Path) -> None:
    rec_jax.embed(folder / "d", model=folder / "model", name="few", pca=4, whiten=True)
    dataset = Dataset.open(folder / "d")
    index = open_index(dataset, SearchConfig(model=str(folder / "model"), name="few", lexical=0.0))
    kept = dataset.titles()
    assert kept is not None
    titles = [title or "" for title in kept]
    assert index.encode is not None
    found = index.encode(titles)[index.has]
    np.testing.assert_allclose(found, open_item_vectors(dataset, "few").vectors[index.has],
                               atol=1e-4)
    asked = open_index(dataset, SearchConfig(model=str(folder / "model"), name="few", prefix="w5 "))
    assert asked.encode is not None
    np.testing.assert_allclose(asked.encode(["w3"]), index.encode(["w5 w3"]), atol=1e-4)
    assert not np.allclose(asked.encode(["w3"]), index.encode(["w3"]), atol=1e-2)
    with pytest.raises(InputError, match=r"2 item vectors that are made of text \(few, text\)"):
        open_index(dataset, SearchConfig(model=str(folder / "model")))


def test_the_matrix_of_a_run_leads_texts_to_its_items(folder: Path, served: Served) -> None:
    name, vectors, lead = item_space(served, None)
    matrix = np.asarray(served.params["content/text"])
    np.testing.assert_allclose(lead(np.eye(len(matrix), dtype=np.float32)), matrix, atol=1e-6)
    rows, own = np.asarray(served.rows)[:len(vectors)], open_item_vectors(served.dataset, name)
    np.testing.assert_allclose(vectors, rows[:, :16] + own.vectors @ matrix, atol=1e-5)
    found = rec_jax.search(served, "w3 w9", model=folder / "model", space="items", lexical=0, k=60)
    index = open_index(served.dataset, SearchConfig(model=str(folder / "model"), name="text"))
    assert index.encode is not None
    query = index.encode(["w3 w9"])[0] @ matrix
    cosines = vectors @ query / np.linalg.norm(query) / np.linalg.norm(vectors, axis=1)
    expected = best_items(np.where(index.has, cosines, -np.inf).astype(np.float32), 60)
    assert [entry.item for entry in found] == served.dataset.item_ids()[expected].to_list()
    with pytest.raises(InputError, match="step is of a run, and this model is loaded; expected no"):
        rec_jax.search(served, "w3", step=0)
    with pytest.raises(TypeError, match="a search knows no 'lexicl'"):
        rec_jax.search(folder / "d", "w3", lexicl=0)
    with pytest.raises(InputError, match="has the content text; expected other among its"):
        rec_jax.search(served, "w3", model=folder / "model", space="items", name="other")


def test_a_user_counts_as_recommend_ranks(tiny_run: Path) -> None:
    model = rec_jax.load(tiny_run)
    user = user_scores(model.served, "u7")
    ranked = model.recommend(user="u7", k=60, filter_seen=False)
    ids = model.served.dataset.item_ids()
    assert ids[best_items(user, 60)].to_list() == [entry.item for entry in ranked]
    np.testing.assert_allclose(np.sort(user)[::-1], [entry.score for entry in ranked], atol=1e-5)
    texts = open_index(model.served.dataset, SearchConfig()).scores(["title 12 film"])[0]
    expected = blend_scores(texts, user, trained_items(model.served), 0.4)
    found = rec_jax.search(model, "title 12 film", user="u7", blend=0.4, k=5)
    assert [entry.item for entry in found] == ids[best_items(expected, 5)].to_list()
    history = model.served.dataset.item_ids()[
        model.served.dataset.history(int(model.served.dataset.user_index(["u7"])[0]))].to_list()
    again = rec_jax.search(model, "title 12 film", history=history, blend=0.4, k=5)
    assert again == found


def test_the_verb_prints_what_python_finds(tiny_run: Path, rec_jax: Command) -> None:
    import rec_jax as package

    done = rec_jax("search", tiny_run, "--text", "film 12", "--user", "u7", "--k", 2, "--json")
    expected = package.search(tiny_run, "film 12", user="u7", k=2)
    assert [entry["item"] for entry in one_object(done)["recommendations"]] == [
        entry.item for entry in expected]
    assert "no letter or digit; expected some words" in refused(
        rec_jax("search", tiny_run, "--text", "?!"))
    dataset = Path(package.load(tiny_run).served.dataset.folder)
    assert f"--step is of a run, and {dataset} is a dataset; expected none" in refused(
        rec_jax("search", dataset, "--text", "film", "--step", 1))


def test_texts_of_a_table_stand_for_titles(tiny_csv: Path, tmp_path: Path) -> None:
    prepare(PrepareConfig(source=str(tiny_csv), out=str(tmp_path / "d")))
    found = rec_jax.search(tmp_path / "d", "film 12", k=1, columns="title",
                           table=tiny_csv.with_name("items.csv"))
    assert found[0].title == "Title 12, the film" and found[0].item == "0012"


@pytest.mark.parametrize(("given", "message"), [
    ({"space": "users"}, "space is 'users'; expected text or items"),
    ({"space": "items"}, "expected a run, and the folder of the model that made its content"),
    ({"user": "u7"}, "is a dataset, which knows nobody's taste; expected a run"),
    ({"k": 0}, "k is 0; expected 1 or more"),
    ({"lexical": 0}, "goes by words alone; expected the folder of the model"),
    ({"lexical": -1}, "search.lexical is -1"),
    ({"name": "text"}, "by words alone, and name and prefix are of an encoder's vectors"),
    ({"prefix": "query: "}, "by words alone, and name and prefix are of an encoder's vectors"),
    ({"step": 3}, "step is of a run, and .* is a dataset; expected none"),
    ({"data": "x"}, "data is of a run, and .* is a dataset; expected none"),
    ({"name": "other", "model": "model"}, "has no item vectors 'other'"),
    ({"name": "text", "model": "nowhere"}, "nowhere"),
    ({"name": "text", "model": "changed"}, "is not the model that made the item vectors 'text'"),
])
def test_what_cannot_be_searched_is_said(given: dict[str, Any], message: str,
                                         folder: Path) -> None:
    if given.get("model") == "changed" and not (folder / "changed").exists():
        models.write_model(folder / "changed", seed=1)
    if "model" in given:
        given = {**given, "model": folder / given["model"]}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        rec_jax.search(folder / "d", "w3", **given)


def test_a_run_without_content_leads_no_text(tiny_run: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"has the content none; expected the name of one among"):
        rec_jax.search(tiny_run, "w3", model=folder / "model", space="items")
    with pytest.raises(InputError, match="has 0 item vectors that are made of text"):
        rec_jax.search(tiny_run, "Title 3", model=folder / "model")
    assert rec_jax.search(tiny_run, "title 3", k=1)[0].title == "Title 3, the film"


@pytest.mark.parametrize("space", slow_but("items", ["text", "items"]))
def test_clicks_teach_a_search_and_it_says_what_of(space: str, folder: Path, served: Served,
                                                   tmp_path: Path) -> None:
    """Texts are words of another item's title: the search learns which one is meant."""
    dataset, titles = served.dataset, served.dataset.titles()
    assert titles is not None
    ids = dataset.item_ids().to_list()
    rows = [f"{' '.join((title or '').split()[:4])},{ids[(item + 1) % 20]}"
            for item, title in enumerate(titles[:20])]
    (tmp_path / "log.csv").write_text("\n".join(["query,item_id", *rows]) + "\n")
    given: Any = served if space == "items" else folder / "d"
    out, model = tmp_path / "m", str(folder / "model")
    made = rec_jax.learn_search(
        given, tmp_path / "log.csv", model=model, out=out, space=space, name="text",
        beside=True,
        learning=rec_jax.ClickConfig(epochs=60, rate=0.1, decay=0.0, held_out=0.2))
    assert made["held_out"]["texts"] + made["learned"]["texts"] == 20
    assert set(made["mrr@10"]) == {"before", "exact", "in_batch"}
    assert all(set(found) == {"encoder", "with words"} for found in made["mrr@10"].values())
    assert made["loss_by_epoch"][-1] < 0.9 * made["loss_by_epoch"][0]
    learned = read_learned(out)
    asked = SearchConfig(model=model, name="text", lexical=0.0)
    plain = open_index(dataset, asked)
    assert plain.encode is not None and plain.vectors is not None
    to = plain.vectors if space == "text" else item_space(served, None).vectors
    vector = plain.encode(["w3 w9"])[0] @ learned.matrix
    cosines = to @ vector / np.linalg.norm(vector) / np.maximum(np.linalg.norm(to, axis=1), 1e-9)
    cosines = np.where(plain.has, cosines, -np.inf).astype(np.float32)
    found = rec_jax.search(given, "w3 w9", model=model, lexical=0, k=10, learned=out)
    np.testing.assert_allclose([entry.score for entry in found],
                               cosines[best_items(cosines, 10)], atol=1e-5)
    # Before clicks, the search in this space is the one that there is without them.
    index = rec_jax.load_search(given, asked, space=space).index
    begin = begin_of(dataset, served, asked, space)
    np.testing.assert_allclose(
        begin.texts.in_space(begin.vectors, lambda texts: texts @ begin.matrix).scores(["w3 w9"]),
        index.scores(["w3 w9"]), atol=1e-5)
    if space == "items":
        with pytest.raises(InputError, match=r"leads to the items of .*; expected a run"):
            rec_jax.search(folder / "d", "w3", model=model, learned=out)
        moved = replace(served, rows=served.rows[::-1])
        with pytest.raises(InputError, match="is not what the learned matrix leads texts to"):
            rec_jax.search(moved, "w3", model=model, learned=out)


def test_a_learned_matrix_is_of_all_items_whatever_words_are_known(folder: Path, served: Served,
                                                                   tmp_path: Path) -> None:
    """The table has words of the last item, which has no vector of text."""
    dataset, model = served.dataset, str(folder / "model")
    (tmp_path / "all.csv").write_text("sku,name\n" + "".join(
        f"{item},w{number % 9 + 4} w7\n" for number, item in enumerate(dataset.item_ids())))
    asked = [SearchConfig(model=model, name="text", table=str(tmp_path / "all.csv"), id="sku",
                          columns=("name",)), SearchConfig(model=model, name="text", lexical=0.0)]
    found = [begin_of(dataset, served, one, "items") for one in asked]
    assert found[0].texts.has.sum() == found[1].texts.has.sum() + 1
    about = {"space": "items", "of": found[0].of, "name": "text", "prefix": None,
             "model_hash": open_item_vectors(dataset, "text").about["source"]["model_hash"]}
    write_learned(tmp_path / "m", Learned(found[0].matrix, probe_of(found[0].vectors), about))
    for one, count in zip(asked, (dataset.num_items, dataset.num_items - 1), strict=True):
        search = rec_jax.load_search(served, replace(one, learned=str(tmp_path / "m")))
        assert len(search.find("w3 w9", k=99)) == count
    write_learned(tmp_path / "t", Learned(found[0].matrix, probe_of(found[0].vectors),
                                          {**about, "space": "text"}))
    for file, key, value in (("m", "name", "few"), ("t", "space", "items")):
        given: Any = {"learned": tmp_path / file, key: value}
        with pytest.raises(InputError, match=f"{key} is '{value}', and .* was learned for 'text'"):
            rec_jax.search(served, "w3", model=model, **given)


def test_the_verb_that_learns_takes_the_texts_of_a_search_and_keeps_what_is_there(
        folder: Path, tmp_path: Path, rec_jax: Command) -> None:
    ids = Dataset.open(folder / "d").item_ids().to_list()
    (tmp_path / "log.csv").write_text("query,item_id\n" + "".join(
        f"w{number + 4} w5,{item}\n" for number, item in enumerate(ids[:12])))
    (tmp_path / "all.csv").write_text("sku,name\n" + "".join(f"{item},w7\n" for item in ids))
    given = ["learn-search", folder / "d", "--clicks", "log.csv", "--model", folder / "model",
             "--name", "text", "--epochs", 1, "--held-out", 0.3, "--json"]
    table = ["--table", "all.csv", "--id", "sku", "--column", "name"]
    worded = one_object(rec_jax(*given, *table, "--out", "worded"))
    plain = one_object(rec_jax(*given, "--lexical", 0, "--out", "plain"))
    assert set(worded["mrr@10"]["before"]) == {"encoder", "with words"}
    assert set(plain["mrr@10"]["before"]) == {"encoder"}
    assert "none.csv" in refused(rec_jax(*given, "--table", "none.csv", "--column", "name",
                                         "--out", "x"))
    before = (tmp_path / "log.csv").read_bytes()
    assert "log.csv exists; expected the name of a new file" in refused(
        rec_jax(*given, "--out", "log.csv"))
    assert (tmp_path / "log.csv").read_bytes() == before


def test_a_user_of_rows_that_lie_elsewhere_is_refused_in_a_line(served: Served) -> None:
    apart: Any = RowsApart.__new__(RowsApart)
    with pytest.raises(InputError, match="a search by a user's taste needs all rows on the device"):
        user_scores(replace(served, rows=apart), "u7")
