"""Items with neighbours in the engine: steps against f64, new items, and runs that are served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import LENGTH, ROWS, D, Trained, V, log_softmax
from graph_runs import whole_and_resumed

from rec_jax import api, config
from rec_jax.data.content import Content
from rec_jax.data.covisits import ItemGraphConfig, Nearest, covisits
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.item_edges import new_item_vectors
from rec_jax.inference.served import Nodes
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoders import bag
from rec_jax.model.graphs import served_vectors
from rec_jax.model.item_graph import KERNEL, ItemGraph, make_item_graph
from rec_jax.model.rows import RowSource
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.plan.shapes import check_known
from rec_jax.run import RunConfig
from rec_jax.tables.table import padded_size

Mapping = Callable[..., dict[str, Any]]
SHARE = 0.7


def some_neighbours(seed: int, items: int, places: int) -> Nearest:
    """Up to so many neighbours of each item; some have none."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(items)[:places] for _ in range(items)])
    there = np.arange(places) < random.integers(0, places + 1, items)[:, None]
    weights = np.where(there, random.uniform(0.1, 1, ids.shape), 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return Nearest(np.where(there, ids, 0).astype(np.int32), weights.astype(np.float32))


def dense(near: Nearest, count: int) -> np.ndarray:
    """The weights as a matrix f64 `[count, count]`."""
    found = np.zeros((count, count))
    np.add.at(found, (np.arange(len(near.ids))[:, None], near.ids), near.weights)
    return found


def graph_of(near: Nearest, mixing: Any, count: int = V) -> ItemGraph:
    made = make_item_graph(ItemGraphConfig(mixing=mixing, share=SHARE), near, padded_size(count))
    return jax.tree.map(jnp.asarray, made)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mode", "mixing", "mesh", "accumulate"), [
    ("sparse", "matrix", (1, 1), 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("dense", "share", (1, 1), 1), ("dense", "matrix", (2, 4), 1),
        ("sparse", "share", (2, 4), 1), ("sparse", "matrix", (1, 1), 2)))], ids=str)
def test_a_step_descends_on_the_rows_below_the_vectors(
        mode: str, mixing: str, mesh: tuple[int, int], accumulate: int) -> None:
    near = some_neighbours(3, V, 5)
    objective: Any = (next_item.Config(backend="xla") if mode == "dense" else
                      sampled_softmax.Config(count=V, backend="xla"))  # all of them: exact
    kernel = np.random.default_rng(1).standard_normal((D, D)).astype(np.float32) / 3
    trained = Trained(objective, bag.Config(), mode, mesh, accumulate=accumulate,
                      graph=graph_of(near, mixing),
                      more={KERNEL: jnp.asarray(kernel)} if mixing == "matrix" else {})
    batch = {name: value.reshape(ROWS, -1) for name, value in trained.batch.items()}
    matrix = dense(near, V)
    place = np.arange(LENGTH)
    share = ((place[:, None] >= place) & (batch["segments"][:, :, None] == batch["segments"][
        :, None])) / (batch["positions"] + 1)[..., None]
    row, at = np.nonzero(batch["targets"] >= 0)

    def loss(params: Any, items: Any, users: Any) -> Any:
        mean = jnp.asarray(matrix) @ items
        vectors = items + (mean @ params[KERNEL] if mixing == "matrix" else SHARE * mean)
        logs = log_softmax((share @ vectors[batch["items"]]) @ vectors.T)
        return -jnp.mean(logs[row, at, batch["targets"][row, at]])

    trained.check(loss)


def test_new_items_are_what_their_neighbours_and_their_content_say() -> None:
    """And known ones have what they are served with; of rows and matrices as they are drawn."""
    random, count, mixed = np.random.default_rng(4), 9, ItemGraphConfig(neighbours=2)
    near = some_neighbours(5, count, 2)
    source = RowSource(D, (Content("content/text", 3),))
    params = {name: random.standard_normal((size, D)).astype(np.float32)
              for name, size in ((KERNEL, D), ("content/text", 3))}
    graph, rows = graph_of(near, "matrix", count), random.standard_normal(
        (padded_size(count), D + 3)).astype(np.float32)
    served: Any = SimpleNamespace(
        nodes=Nodes(graph, source, {"items": rows}), params=params,  # type: ignore[dict-item]
        config=SimpleNamespace(item_graph=mixed), dataset=SimpleNamespace(num_items=count))
    own = rows[:count, :D] + rows[:count, D:] @ params["content/text"]
    known = own + dense(near, count) @ own @ params[KERNEL]
    found = served_vectors(graph, source, params, {"items": rows},  # type: ignore[arg-type, dict-item]
                           make_mesh(MeshConfig()), ("items",))
    assert found.keys() == {"items"}
    np.testing.assert_allclose(found["items"][:count], known, atol=1e-5)

    content = random.standard_normal((3, 3)).astype(np.float32)
    # Met with 5 three times and with 1 and 4 once: of the latter the lower id is a neighbour.
    new = new_item_vectors(served, [np.array([5, 4, 5, 1, 5]), np.array([], int), np.array([8])],
                           content)
    mean = np.stack([0.75 * own[5] + 0.25 * own[1], np.zeros(D), own[8]])
    np.testing.assert_allclose(new, content @ params["content/text"] + mean @ params[KERNEL],
                               atol=1e-5)
    assert new_item_vectors(served, []).shape == (0, D)
    with pytest.raises(InputError, match="item 9 is not one of the 9"):
        new_item_vectors(served, [np.array([9])])
    with pytest.raises(InputError, match=r"expected \(1, 3\)"):
        new_item_vectors(served, [np.array([1])], content)
    served.nodes = None
    with pytest.raises(InputError, match="expected a run with"):
        new_item_vectors(served, [np.array([1])])


LINES = ("train.steps=12", "train.log_every=1", "train.evaluate_every=2.0", "optimizer.rate=2e-2",
         "table.init_scale=0.3", "train.checkpoint_every=4")


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_learns_goes_on_to_the_same_bits_and_answers(
        sparse: bool, tiny_mapping: Mapping, tmp_path: Path) -> None:
    lines = ('table.update="sparse"', "table.optimizer.rate=2e-2") if sparse else (
        "train.ema=0.9",)
    graph = {"neighbours": 4, "window": 2, "mixing": "matrix", "share": 0.5, "drop": 0.2}
    settings = config.build(RunConfig, tiny_mapping(*LINES, *lines) | {
        "item_graph": graph, "objective": {"kind": "sampled_softmax", "count": 32} if sparse else
        {"kind": "next_item", "backend": "xla"}})
    whole, model = whole_and_resumed(settings, tmp_path, 0.97)
    assert whole["table_update"] == ("sparse" if sparse else "dense")
    served, dataset = model.served, model.served.dataset
    assert served.nodes is not None and settings.item_graph is not None
    stored = np.asarray(served.nodes.rows["items"], np.float64)[:dataset.num_items]
    matrix = dense(covisits(dataset, settings.item_graph), dataset.num_items)
    items = stored + matrix @ stored @ np.asarray(served.params[KERNEL], np.float64)
    found = load_embeddings(api.export(tmp_path / "whole", step=12, out=tmp_path / "items"))
    np.testing.assert_allclose(found.vectors, items, atol=1e-5)
    people = load_embeddings(api.export(model, out=tmp_path / "users", what="users"))
    best = model.recommend(user=str(people.ids[3]), k=1, filter_seen=False)
    assert best[0].item == found.ids[int(np.argmax(people.vectors[3] @ items.T))]
    again = api.evaluate(tmp_path / "whole", split="valid", step=whole["best_step"])
    assert again["metrics"]["ndcg@10"] == pytest.approx(whole["best"], abs=1e-12)


@pytest.mark.parametrize(("extra", "said"), [
    ({"table": {"update": "streamed"}}, "table.update = 'streamed'.*scores the vectors of all"),
    ({"table": {"update": "sparse"}}, "table.update = 'sparse'.*scores the vectors of all"),
    ({"table": {"tied": False}}, "expected table.tied = true"),
    ({"bias": {"trained": True}}, "bias.trained"),
    ({"objective": {"kind": "hard_negatives"}}, "searches stored rows"),
    ({"encoder": {"kind": "lightgcn"}}, "encoder 'lightgcn' reads users"),
    ({"encoder": {"kind": "user"}}, "encoder 'user' reads users"),
    ({"continual": {"run": "runs/x", "step": 1}}, "expected no .continual"),
    ({"item_graph": {"drop": 1.0}}, "nothing of them would be trained; expected less than 1"),
    ({"item_graph": {"mixing": "sum"}}, "item_graph: mixing: 'sum'")],
    ids=["streamed", "sparse", "tied", "bias", "search", "graph", "user", "continual", "drop",
         "mixing"])
def test_what_does_not_fit_is_refused(extra: dict[str, Any], said: str, tiny_mapping: Mapping
                                      ) -> None:
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, tiny_mapping() | {"item_graph": {}} | extra)


def test_a_plan_says_that_it_knows_no_neighbours(tiny_mapping: Mapping) -> None:
    with pytest.raises(InputError, match=r"\[item_graph\] makes vectors of rows, by the graph"):
        check_known(config.build(RunConfig, tiny_mapping() | {"item_graph": {}}))
