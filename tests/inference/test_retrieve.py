"""Recommendations are the best of the dense scores, with titles."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rec_jax
from rec_jax.errors import InputError
from rec_jax.inference import asking
from rec_jax.inference.histories import tile_shapes
from rec_jax.inference.retrieve import Recommendation, Recommender, recommend
from rec_jax.inference.served import Served, load_served
from rec_jax.kernels import auto
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.run import Run


@pytest.fixture(scope="module")
def trained(tiny_run: Path) -> Served:
    return load_served(Run(tiny_run))


def dense(served: Served, history: np.ndarray) -> np.ndarray:
    """Scores f64 `[V]` after a history of item indices."""
    length = served.config.data.length
    recent = history[-length:]
    items = np.zeros((1, length), np.int32)
    items[0, :len(recent)] = recent
    segments = (np.arange(length) < len(recent)).astype(np.int32)[None]
    queries = encode(served.encoder, served.params, served.rows, jnp.asarray(items),
                     Inputs(jnp.asarray(segments), jnp.arange(length)[None]))
    rows = np.asarray(served.rows, np.float64)[:served.dataset.num_items]
    return rows @ np.asarray(queries, np.float64)[0, len(recent) - 1]


@pytest.mark.parametrize("user", ["u0", "u9", "u31"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_a_user_gets_the_best_items_of_the_dense_scores(trained: Served, user: str,
                                                        filter_seen: bool) -> None:
    dataset = trained.dataset
    history = np.asarray(dataset.history(int(dataset.user_index([user])[0])))
    scores = dense(trained, history)
    if filter_seen:
        scores[history] = -np.inf
    found = recommend(trained, user=user, k=7, filter_seen=filter_seen)
    order = np.argsort(-scores)[:7]
    assert [entry.item for entry in found] == dataset.item_ids().gather(order).to_list()
    np.testing.assert_allclose([entry.score for entry in found], scores[order], rtol=1e-4)
    assert [entry.rank for entry in found] == list(range(1, 8))


@pytest.mark.parametrize("k", [0, -1, -100])
def test_fewer_than_one_item_cannot_be_asked_for(trained: Served, k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}; expected 1 to 50"):
        recommend(trained, user="u9", k=k)


def test_one_item_is_the_best_one(trained: Served) -> None:
    assert recommend(trained, user="u9", k=1) == recommend(trained, user="u9", k=5)[:1]


def test_a_question_is_of_a_user_or_of_a_history(trained: Served) -> None:
    for both in ({}, {"user": "u9", "history": ["0001"]}):
        with pytest.raises(InputError, match="exactly one of a user and a history"):
            recommend(trained, **both)


def test_titles_belong_to_the_items(trained: Served) -> None:
    for entry in recommend(trained, user="u9", k=5):
        assert entry.title == f"Title {int(entry.item)}, the film"


def test_a_users_history_given_as_ids_gives_the_same(trained: Served) -> None:
    dataset = trained.dataset
    history = dataset.history(int(dataset.user_index(["u12"])[0]))
    ids = dataset.item_ids().gather(np.asarray(history)).to_list()
    assert recommend(trained, history=ids, k=5) == recommend(trained, user="u12", k=5)


def test_order_and_length_of_the_history_matter(trained: Served) -> None:
    def scores(*history: str) -> list[float]:
        return [entry.score for entry in recommend(trained, history=history, k=5)]

    assert scores("0001", "0002", "0030") != scores("0030", "0002", "0001")
    assert len(scores(*[f"{item:04d}" for item in range(30)])) == 5  # longer than L


def test_seen_items_come_again_only_if_they_may(trained: Served) -> None:
    history = [f"{item:04d}" for item in range(10, 20)]
    total = trained.dataset.num_items
    kept = recommend(trained, history=history, k=total, filter_seen=False)
    assert sorted(entry.item for entry in kept) == sorted(trained.dataset.item_ids().to_list())
    left = recommend(trained, history=history, k=total)
    assert {entry.item for entry in kept} - {entry.item for entry in left} == set(history)
    assert len(left) == total - 10


def test_a_longer_list_than_the_catalogue_is_all_that_may_be_recommended(
        trained: Served) -> None:
    history = [f"{item:04d}" for item in range(10, 20)]
    total, heard = trained.dataset.num_items, []
    for k in (total + 1, 10**6):
        assert len(recommend(trained, history=history, k=k, tell=heard.append)) == total - 10
        assert len(recommend(trained, history=history, k=k, filter_seen=False)) == total
    assert heard[1] == (f"{total - 10} instead of 1000000 items: the catalogue has {total}, of "
                        "which 10 are in the history, and seen items are not recommended")
    recommend(trained, history=history, k=total - 10, tell=heard.append)
    assert len(heard) == 2


def test_cold_items_are_not_recommended_where_they_do_not_compete(trained: Served) -> None:
    popularity = trained.dataset.popularity()
    cold = popularity <= np.sort(popularity)[12]
    dataset = dataclasses.replace(trained.dataset)
    vars(dataset)["popularity"] = lambda: np.where(cold, 0, popularity)
    settings = dataclasses.replace(trained.config.evaluate, filter_cold=True)
    served = dataclasses.replace(trained, dataset=dataset, config=dataclasses.replace(
        trained.config, evaluate=settings))
    heard: list[str] = []
    found = recommend(served, user="u9", k=50, filter_seen=False, tell=heard.append)
    warm = dataset.item_ids().filter(~cold).to_list()
    assert sorted(entry.item for entry in found) == sorted(warm)
    assert heard == [f"{len(warm)} instead of 50 items: the catalogue has 50, of which "
                     f"{50 - len(warm)} others are cold, and do not compete"]


def test_an_unknown_item_names_the_nearest(trained: Served) -> None:
    with pytest.raises(InputError, match=r"item id '003x' is not in the vocabulary .*'003") as it:
        recommend(trained, history=["0001", "003x"])
    assert "\n" not in str(it.value)


def test_an_unknown_user_names_the_nearest(trained: Served) -> None:
    with pytest.raises(InputError, match=r"user id 'u99' is not in the vocabulary .*'u9'"):
        recommend(trained, user="u99")


@pytest.mark.parametrize("asked", [{}, {"user": "u1", "history": ["0001"]}, {"history": []},
                                   {"user": "u1", "k": 0}, {"history": ["0001"], "times": [1, 2]},
                                   {"history": ["0001"], "times": ["noon"]},
                                   {"history": ["0001", "0002"], "times": [2, 1]},
                                   {"user": "u1", "times": [1]}])
def test_impossible_requests_are_refused(trained: Served, asked: dict) -> None:
    with pytest.raises(InputError, match=r"(expected|exactly one|belong to)"):
        recommend(trained, **asked)


def test_a_dataset_without_titles_has_none(trained: Served) -> None:
    dataset = trained.dataset
    columns = [name for name in dataset.meta["item_columns"] if name != "title"]
    untitled = dataclasses.replace(
        trained, dataset=dataclasses.replace(dataset, meta={**dataset.meta,
                                                            "item_columns": columns}))
    assert {entry.title for entry in recommend(untitled, user="u9", k=3)} == {None}


def test_a_loaded_model_compiles_once_for_a_class_of_lengths(tiny_run: Path) -> None:
    """Whatever the lengths are, however often it is asked, and however often it is loaded."""
    model = rec_jax.load(tiny_run)
    ids = model.served.dataset.item_ids().to_list()

    def ask(model: Recommender) -> list[list[Recommendation]]:
        return [model.recommend(history=ids[:length], k=k)
                for length in (1, 2, 5, 12, 30) for k in (1, 4, 10)]

    with compilations() as compiled:
        first = ask(model)
    assert len(compiled) <= len(tile_shapes(model.served.config.data.length)) + 2
    again = rec_jax.load(tiny_run)
    with compilations() as compiled:
        assert ask(model) == ask(again) == first
        assert model.recommend(user="u9", k=3) == again.recommend(user="u9", k=7)[:3]
    assert compiled == []
    # The cache of programs is asked by what decides their bits.
    with auto.pinned({"rank": "xla"}), compilations() as compiled:
        recommend(again.served, history=ids[:5])
    assert compiled


def test_equal_questions_share_a_program_and_others_do_not(tiny_run: Path) -> None:
    served = [rec_jax.load(tiny_run).served for _ in range(2)]
    made = [asking.jitted_queries(each.encoder, each.dataset.num_items, each.mesh, each.over)
            for each in served]
    assert made[0] is made[1]
    other = asking.jitted_queries(served[0].encoder, 7, served[0].mesh, served[0].over)
    assert other is not made[0]
    # An encoder with a part that cannot be hashed has programs of its own.
    odd = served[0].encoder._replace(source=[])  # type: ignore[arg-type]
    mine = [asking.jitted_queries(odd, 7, served[0].mesh, served[0].over) for _ in range(2)]
    assert mine[0] is not mine[1]


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each program that XLA compiles meanwhile."""
    compiled: list[float] = []

    def count(name: str, seconds: float, **_: object) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
