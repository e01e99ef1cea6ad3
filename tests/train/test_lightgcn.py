"""LightGCN in the engine: a step against f64, and runs that are trained, resumed and asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import ROWS, D, Trained, U, V, log_softmax
from graph_runs import logged, whole_and_resumed

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.interaction_graph import distinct_edges, interaction_edges
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.inference.served import open_rows
from rec_jax.model.encoders import lightgcn, user
from rec_jax.model.propagation import make_graph
from rec_jax.objectives import next_item
from rec_jax.plan.shapes import check_known
from rec_jax.run import Run, RunConfig
from rec_jax.tables.table import padded_size

Mapping = Callable[..., dict[str, Any]]
LAYERS = 2


def normalised(edges: Any, users: int, items: int) -> np.ndarray:
    """P of users and items, f64, by a dense matrix."""
    between = np.zeros((users, items))
    between[edges.users, edges.items] = 1
    each = (np.maximum(between.sum(axis=axis), 1) ** -0.5 for axis in (1, 0))
    by_user, by_item = each
    normal = np.zeros((users + items,) * 2)
    normal[:users, users:] = by_user[:, None] * between * by_item
    normal += normal.T
    return sum(np.linalg.matrix_power(normal, k) for k in range(LAYERS + 1)) / (LAYERS + 1)


@pytest.mark.parametrize(("mesh", "accumulate", "layers", "unit"), [
    ((1, 1), 2, LAYERS, False), ((1, 1), 1, 0, True), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ((2, 4), 1, LAYERS, False), ((2, 4), 1, LAYERS, True), ((2, 4), 1, 0, True)))], ids=str)
def test_a_step_descends_on_the_rows_below_the_vectors(
        mesh: tuple[int, int], accumulate: int, layers: int, unit: bool) -> None:
    random = np.random.default_rng(1)
    edges = distinct_edges(random.integers(0, U, 60), random.integers(0, V, 60), V)
    graph = jax.tree.map(jnp.asarray,
                         make_graph(edges, padded_size(U), padded_size(V), layers, unit=unit))
    encoder = lightgcn.Config(layers=layers, unit=unit) if layers else user.Config(unit=unit)
    scale = 5.0 if unit else 1.0
    trained = Trained(next_item.Config(backend="xla", scale=scale), encoder, "dense", mesh,
                      accumulate=accumulate, graph=graph)
    dense = normalised(edges, U, V) if layers else np.eye(U + V)
    batch = {name: value.reshape(ROWS, -1) for name, value in trained.batch.items()}

    def loss(params: Any, items: Any, users: Any) -> Any:
        vectors = jnp.asarray(dense) @ jnp.concatenate([users, items])
        if unit:
            vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        queries = trained.queries(params, vectors[U:], vectors[:U])
        logs = log_softmax(scale * queries @ vectors[U:].T)
        row, place = np.nonzero(batch["targets"] >= 0)
        return -jnp.mean(logs[row, place, batch["targets"][row, place]])

    assert trained.before.parts[1].shape == (V, D)
    trained.check(loss)


def small(tiny_mapping: Mapping, objective: dict[str, Any], *lines: str) -> RunConfig:
    mapping = tiny_mapping("train.steps=12", "train.log_every=1", "train.evaluate_every=2.0",
                           "optimizer.rate=1e-1", "train.checkpoint_every=4", *lines)
    return config.build(RunConfig, mapping | {
        "encoder": {"kind": "lightgcn", "layers": LAYERS}, "objective": objective})


@pytest.mark.slow
def test_a_run_learns_goes_on_to_the_same_bits_and_answers(tiny_mapping: Mapping, tmp_path: Path
                                                           ) -> None:
    settings = small(tiny_mapping, {"kind": "next_item", "backend": "xla"})
    whole, model = whole_and_resumed(settings, tmp_path, 0.95)
    # What is served is P times what is stored.
    dataset, edges = model.served.dataset, interaction_edges(model.served.dataset)
    count = dataset.num_users
    stored = stored_rows(tmp_path / "whole")
    vectors = normalised(edges, count, dataset.num_items) @ np.concatenate(
        [stored["users"][:count], stored["items"][:dataset.num_items]])
    # Without a model that is loaded an export has the vectors, too.
    items = load_embeddings(api.export(tmp_path / "whole", step=12, out=tmp_path / "items"))
    users = load_embeddings(api.export(tmp_path / "whole", step=12, out=tmp_path / "users",
                                       what="users"))
    np.testing.assert_allclose(users.vectors, vectors[:count], atol=1e-6)
    np.testing.assert_allclose(items.vectors, vectors[count:], atol=1e-6)
    scores = vectors[3] @ vectors[count:].T
    best = model.recommend(user=str(users.ids[3]), k=1, filter_seen=False)
    assert best[0].item == items.ids[int(np.argmax(scores))]
    assert best[0].score == pytest.approx(scores.max(), rel=1e-4)
    # The validation of the training ranks by the same vectors.
    found = api.evaluate(tmp_path / "whole", split="valid", step=whole["best_step"])
    assert found["metrics"]["ndcg@10"] == pytest.approx(whole["best"], abs=1e-12)
    with pytest.raises(InputError, match="makes its item vectors of all rows"):
        open_rows(Run(tmp_path / "whole"))


def test_unit_vectors_are_rows_over_their_norms_wherever_they_are_seen(
        tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping("train.steps=4", "train.evaluate_every=1000.0", "optimizer.rate=1e-1")
    api.train(config.build(RunConfig, mapping | {
        "encoder": {"kind": "user", "unit": True},
        "objective": {"kind": "next_item", "scale": 10.0, "backend": "xla"}}), run=tmp_path / "run")
    stored = stored_rows(tmp_path / "run", 4)
    items, users = (load_embeddings(api.export(tmp_path / "run", out=tmp_path / what, what=what))
                    for what in ("items", "users"))
    for name, found in (("items", items), ("users", users)):
        rows = stored[name][:len(found.ids)]
        np.testing.assert_allclose(
            found.vectors, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    cosines = users.vectors[3] @ items.vectors.T
    best = api.recommend(tmp_path / "run", user=str(users.ids[3]), k=1, filter_seen=False)[0]
    assert best.item == items.ids[int(np.argmax(cosines))]
    with pytest.raises(InputError, match="makes its item vectors of all rows"):
        open_rows(Run(tmp_path / "run"))


@pytest.mark.parametrize(("encoder", "objective", "said"), [
    ({"kind": "user", "unit": True, "item_bias": True}, {}, "no column for a bias"),
    ({"kind": "graphsage", "unit": True}, {}, "vectors of any norm"),
    ({"kind": "svdpp", "unit": True}, {}, "is a sum, of any norm"),
    ({"kind": "user", "unit": True}, {"kind": "rating"}, "reads biases in the last columns")])
def test_unit_vectors_that_cannot_be_are_refused(
        encoder: dict[str, Any], objective: dict[str, Any], said: str, tiny_mapping: Mapping
        ) -> None:
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, tiny_mapping() | {"encoder": encoder, "objective": objective})


def stored_rows(run: Path, step: int = 12) -> dict[str, np.ndarray]:
    """The rows of both tables as the checkpoint of a step has them."""
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        opened = checkpoints.open(step)
        sources = {name: opened.items["model"][f"['tables']['{name}']"]
                   for name in ("items", "users")}
        return {name: np.asarray(source.read(0, source.shape[0]), np.float64)
                for name, source in sources.items()}


@pytest.mark.slow
@pytest.mark.parametrize("lines", [(), ("train.ema=0.9", 'table.dtype="bf16"')], ids=str)
def test_pairs_are_ranked_by_the_vectors(lines: tuple[str, ...], tiny_mapping: Mapping,
                                         tmp_path: Path) -> None:
    settings = small(tiny_mapping, {"kind": "bpr", "count": 4}, "train.steps=60", *lines)
    whole = api.train(settings, run=tmp_path / "run")
    losses = logged(tmp_path / "run", "loss")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    found = api.evaluate(tmp_path / "run", split="valid", step=whole["best_step"])
    assert found["metrics"]["ndcg@10"] == pytest.approx(whole["best"], abs=1e-12)


@pytest.mark.parametrize(("lines", "extra", "said"), [
    (('table.update="sparse"',), {}, "table.update = 'sparse'.*every row in every step"),
    ((), {"users": {"dim": 16, "update": "sparse"}}, "users.update = 'sparse'"),
    ((), {"bias": {"trained": True}}, "bias.trained = false"),
    ((), {"content": [{"name": "text"}]}, "without content"),
    ((), {"objective": {"kind": "hard_negatives"}}, "searches stored rows"),
    ((), {"encoder": {"kind": "lightgcn", "layers": 0}}, "encoder.layers"),
    ((), {"continual": {"run": "runs/x", "step": 1}}, "an edge for each interaction that it is"),
], ids=["sparse", "users", "bias", "content", "search", "layers", "continual"])
def test_what_does_not_fit_is_refused(lines: tuple[str, ...], extra: dict[str, Any], said: str,
                                      tiny_mapping: Mapping) -> None:
    mapping = tiny_mapping(*lines) | {"encoder": {"kind": "lightgcn"}} | extra
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, mapping)


def test_a_plan_says_that_it_knows_no_graph(tiny_mapping: Mapping) -> None:
    with pytest.raises(InputError, match="a plan counts steps on rows alone"):
        check_known(small(tiny_mapping, {"kind": "next_item"}))
