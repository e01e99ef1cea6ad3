"""New items by who took them: their vectors by hand, and how they are evaluated and recommended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.data.content import Content
from rec_jax.data.dataset import Dataset
from rec_jax.data.interaction_graph import distinct_edges
from rec_jax.data.prepare import Columns, PrepareConfig, Withheld, prepare
from rec_jax.errors import InputError
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.cold_edges import gives_edges, new_vectors
from rec_jax.inference.cold_rule import ColdRule
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.served import Nodes
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import graphsage
from rec_jax.model.graphs import served_vectors
from rec_jax.model.neighbours import make_sampled_graph
from rec_jax.run import RunConfig

Mapping = Callable[..., dict[str, Any]]
STEPS = ("train.steps=4", "train.evaluate_every=1000.0", "evaluate.ks=[3,5]", "evaluate.users=4",
         "evaluate.metric='ndcg@5'", "table.init_scale=0.3")


@pytest.fixture(scope="module")
def withheld(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny interactions with a fifth of the items withheld, and content for all."""
    folder = tmp_path_factory.mktemp("withheld-edges") / "d"
    prepare(PrepareConfig(source=str(tiny_csv), out=str(folder), columns=Columns(time="time"),
                          withheld=Withheld(0.2)))
    ids = Dataset.open(folder).item_ids()
    np.save(folder.parent / "v.npy", np.random.default_rng(0).standard_normal(
        (len(ids), 3)).astype(np.float32))
    (folder.parent / "ids.txt").write_text("\n".join(ids) + "\n")
    api.embed(folder, name="text", vectors=folder.parent / "v.npy", ids=folder.parent / "ids.txt")
    return folder


@pytest.fixture(scope="module")
def model(withheld: Path, tiny_mapping: Mapping, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with content whose graph has pools."""
    mapping = tiny_mapping(*STEPS, f"data.path='{withheld}'") | {
        "encoder": {"kind": "graphsage", "fan_out": [3, 4], "aggregator": "pool"},
        "content": [{"name": "text"}], "objective": {"kind": "next_item", "backend": "xla"}}
    folder = tmp_path_factory.mktemp("runs-edges") / "r"
    api.train(config.build(RunConfig, mapping), run=folder)
    return api.load(folder)


class Known(NamedTuple):
    """Parameters, edges `[users, items]`, and rows of users and of items with their content."""

    params: dict[str, np.ndarray]
    edges: np.ndarray
    users: np.ndarray
    items: np.ndarray
    content: np.ndarray


def by_hand(known: Known, edges: np.ndarray, own: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Vectors by two layers with pools, f64, of items with `edges` `[n, users]`, own rows `[n, d]`
    and content `[n, c]`."""
    def relu(values: np.ndarray) -> np.ndarray:
        return np.maximum(values, 0)

    def layer(number: int, side: str, own: np.ndarray, near: np.ndarray, edges: np.ndarray
              ) -> np.ndarray:
        part = {name.removeprefix(f"layers/{number}/{side}/"): value
                for name, value in known.params.items()}
        pooled = relu(near @ part["pool/kernel"] + part["pool/bias"])
        gathered = np.max(edges[:, :, None] * pooled, axis=1)
        return own @ part["own/kernel"] + gathered @ part["near/kernel"] + part["bias"]

    matrix, old = known.params["content/text"], known.edges
    people = known.users * (old.sum(axis=1)[:, None] > 0)
    warm = known.items * (old.sum(axis=0)[:, None] > 0) + known.content @ matrix
    first = relu(layer(0, "users", people, warm, old))
    new = relu(layer(0, "items", own + content @ matrix, people, edges))
    return layer(1, "items", new, first, edges)


def test_a_new_item_is_what_its_users_and_its_content_say() -> None:
    """Of a model with rows and matrices as they are drawn; user 10 and item 12 are new to it."""
    random = np.random.default_rng(4)
    edges = distinct_edges(random.integers(0, 10, 40), random.integers(0, 12, 40), 13)
    graph = make_sampled_graph(edges, 11, 13, (2, 2), "pool")
    encoder, params = build_encoder(
        graphsage.Config(fan_out=(2, 2), aggregator="pool"), dim=4, length=3, causal=True,
        precision="f32", seed=0, content=(Content("content/text", 3),))
    params = {name: value + 0.1 for name, value in params.items()}
    rows = {"users": random.standard_normal((11, 4)), "items": random.standard_normal((13, 7))}
    rows = {name: value.astype(np.float32) for name, value in rows.items()}
    nodes = Nodes(jax.tree.map(jnp.asarray, graph), encoder.source, rows)  # type: ignore[arg-type]
    served: Any = SimpleNamespace(nodes=nodes, params=params,
                                  dataset=SimpleNamespace(num_users=11))
    old = np.zeros((11, 13))
    old[edges.users, edges.items] = 1
    known = Known({name: np.asarray(value, np.float64) for name, value in params.items()}, old,
                  rows["users"], rows["items"][:, :4], rows["items"][:, 4:])

    users = [np.array([3, 5, 5, 9]), np.array([], int), np.array([2])]
    new = np.zeros((3, 11))
    for item, each in enumerate(users):
        new[item, each] = 1
    content = random.standard_normal((3, 3)).astype(np.float32)
    np.testing.assert_allclose(new_vectors(served, users, content),
                               by_hand(known, new, np.zeros((3, 4)), content), atol=1e-5)
    # A known item with its own row and its own users is what the model has.
    met = old.sum(axis=0)[:, None] > 0
    found = served_vectors(nodes.graph, encoder.source, params, rows, make_mesh(MeshConfig()),  # type: ignore[arg-type]
                           ("items",))
    np.testing.assert_allclose(by_hand(known, old.T, known.items * met, known.content),
                               found["items"], atol=1e-5)
    with pytest.raises(InputError, match="user 11 is not one of the 11"):
        new_vectors(served, [np.array([11])])
    with pytest.raises(InputError, match=r"expected \(1, 3\)"):
        new_vectors(served, [np.array([1])], content)


@pytest.mark.slow
def test_withheld_items_are_filled_evaluated_recommended_and_exported(
        model: Any, withheld: Path, tmp_path: Path) -> None:
    served = model.served
    dataset = Dataset.open(withheld)
    assert dataset.withheld is not None and dataset.withheld_offsets is not None
    gives, first = gives_edges(dataset), dataset.num_trained
    taken = [np.unique(dataset.withheld[slice(*dataset.withheld_offsets[user:user + 2])]) - first
             for user in range(dataset.num_users)]
    users = [np.array([user for user, items in enumerate(taken) if gives[user] and item in items],
                      int) for item in range(dataset.num_items - first)]
    content = np.load(withheld / "item_vectors" / "text.npy")[first:]
    export = load_embeddings(api.export(model, out=tmp_path / "e", cold="edges"))
    np.testing.assert_allclose(export.vectors[first:], new_vectors(served, users, content),
                               atol=1e-6)
    np.testing.assert_array_equal(export.vectors[:first], np.asarray(served.rows)[:first])

    found = api.evaluate(model, cold="edges")["cold"]
    people = np.asarray(served.params["users"])[:dataset.num_users]
    ndcg, asked = [], 0
    for user in np.flatnonzero(~gives):
        if len(taken[user]) and dataset.valid_end[user] > dataset.offsets[user]:
            order = np.argsort(-(people[user] @ export.vectors[first:].T))[:5]
            gains = 1 / np.log2(2 + np.arange(5))
            ndcg.append(np.isin(order, taken[user]) @ gains[:len(order)]
                        / gains[:len(taken[user])].sum())
            asked += 1
    assert found["among_cold"]["ndcg@5"] == pytest.approx(np.mean(ndcg), abs=1e-6)
    assert found["protocol"]["users_among_cold"] == asked
    best = model.recommend(user="u5", k=dataset.num_items, filter_seen=False)
    filled = api.recommend(model, user="u5", k=dataset.num_items, filter_seen=False, cold="edges")
    new = {row.item for row in filled} - {row.item for row in best}
    ids = dataset.item_ids().to_list()
    assert new and new <= set(ids[first:])


@pytest.mark.slow
def test_withheld_items_stand_beside_the_items_of_their_users(
        withheld: Path, tiny_mapping: Mapping, tmp_path: Path) -> None:
    """In a model whose items have neighbours: by hand, from the training histories of givers."""
    mapping = tiny_mapping(*STEPS, f"data.path='{withheld}'", "train.steps=2") | {
        "encoder": {"kind": "bag"}, "item_graph": {"neighbours": 3, "share": 0.5, "drop": 0.2},
        "objective": {"kind": "next_item", "backend": "xla"}}
    api.train(config.build(RunConfig, mapping), run=tmp_path / "r")
    served, dataset = api.load(tmp_path / "r").served, Dataset.open(withheld)
    assert served.nodes is not None and dataset.withheld is not None
    assert dataset.withheld_offsets is not None
    found = load_embeddings(api.export(tmp_path / "r", out=tmp_path / "e", cold="edges")).vectors
    first, rows, gives = dataset.num_trained, np.asarray(served.nodes.rows["items"]), gives_edges(
        dataset)
    counts = np.zeros((dataset.num_items - first, dataset.num_items))
    for user in np.flatnonzero(gives):
        taken = dataset.withheld[slice(*dataset.withheld_offsets[user:user + 2])]
        for item in np.unique(taken) - first:
            np.add.at(counts[item], dataset.items[dataset.offsets[user]:dataset.train_end[user]], 1)
    assert (counts.sum(axis=1) > 0).sum() > 2
    for item, count in enumerate(counts):
        best = np.lexsort((np.arange(len(count)), -count))[:3]
        share = count[best] / max(count[best].sum(), 1)
        np.testing.assert_allclose(found[first + item], 0.5 * share @ rows[best], atol=1e-6)
    np.testing.assert_array_equal(found[:first], np.asarray(served.rows)[:first])


@pytest.mark.slow
def test_what_edges_cannot_fill_is_refused(model: Any, withheld: Path, tiny_run: Path) -> None:
    with pytest.raises(InputError, match=r"expected encoder\.kind = 'graphsage'"):
        api.load(tiny_run, cold="edges")
    with pytest.raises(InputError, match="expected none"):
        api.evaluate(model, cold=ColdFill(ColdRule("edges"), vectors=("text",)))
    with pytest.raises(InputError, match="no vectors of users"):
        api.baseline(withheld, models="ease", cold=ColdFill(ColdRule("edges")))
