"""GraphSAGE in the engine: a step against f64, and runs that are trained, resumed and asked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense_step import LENGTH, ROWS, D, Trained, U, V, log_softmax, make_batch
from graph_runs import whole_and_resumed

from rec_jax import api, config
from rec_jax.data.interaction_graph import distinct_edges, interaction_edges
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.aggregation import all_layers
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import graphsage
from rec_jax.model.neighbours import Adjacent, make_sampled_graph
from rec_jax.objectives import bpr, next_item
from rec_jax.objectives.base import Ids
from rec_jax.run import RunConfig
from rec_jax.tables import (
    ITEMS,
    USERS,
    RowOptimizerConfig,
    TableConfig,
    init_table,
    padded_size,
    row_optimizer,
)
from rec_jax.train.mode import READ
from rec_jax.train.neighbourhood import Neighbourhood, at_each_place
from rec_jax.train.state import TrainState
from rec_jax.train.step import make_train_step

Mapping = Callable[..., dict[str, Any]]


def between(edges: Any, users: int, items: int) -> np.ndarray:
    """f64 `[users, items]`, 1 where there is an edge."""
    found = np.zeros((users, items))
    found[edges.users, edges.items] = 1
    return found


def layers(params: Any, edges: np.ndarray, users: Any, items: Any, aggregator: str, depth: int
           ) -> tuple[Any, Any]:
    """The definition, by a dense matrix of edges."""
    def gathered(edges: np.ndarray, near: Any, path: str) -> Any:
        if aggregator == "mean":
            return (edges / np.maximum(edges.sum(axis=1, keepdims=True), 1)) @ near
        near = jax.nn.relu(near @ params[f"{path}/pool/kernel"] + params[f"{path}/pool/bias"])
        return jnp.max(edges[:, :, None] * near[None], axis=1)

    for layer in range(depth):
        made = []
        for side, own, near, which in (("users", users, items, edges),
                                       ("items", items, users, edges.T)):
            path = f"layers/{layer}/{side}"
            found = (own @ params[f"{path}/own/kernel"] + params[f"{path}/bias"]
                     + gathered(which, near, path) @ params[f"{path}/near/kernel"])
            made.append(found if layer == depth - 1 else jax.nn.relu(found))
        users, items = made
    return users, items


@pytest.mark.parametrize("aggregator", ["pool", pytest.param("mean", marks=pytest.mark.slow)])
def test_vectors_and_gradients_are_those_of_the_definition(aggregator: str) -> None:
    """Of all nodes, of those that are named, and as they are served, where all neighbours fit."""
    random = np.random.default_rng(2)
    edges = distinct_edges(random.integers(0, 8, 20), random.integers(0, 10, 20), 11)
    graph = jax.tree.map(jnp.asarray, make_sampled_graph(edges, 9, 11, (4, 6), aggregator))
    assert max(np.bincount(edges.users).max(), np.bincount(edges.items).max()) <= 4
    dense, nodes = between(edges, 9, 11), jnp.array([0, 7, 8, 7, 3])
    _, params = build_encoder(graphsage.Config(fan_out=(1, 1), aggregator=aggregator), dim=4,  # type: ignore[arg-type]
                              length=2, causal=True, precision="f32", seed=0)
    rows = {USERS: random.standard_normal((9, 4)), ITEMS: random.standard_normal((11, 4))}
    near = Neighbourhood(graph, jnp.arange(4, dtype=jnp.uint32).reshape(2, 2))

    def named(params: Any, rows: Any) -> Any:
        ids = near.rows_of({USERS: {"a": Ids(nodes, nodes >= 0)}, ITEMS: {
            "b": Ids(nodes, nodes >= 0), READ: Ids(nodes, nodes >= 0)}})
        assert ids[ITEMS].pop(READ).ids is nodes
        answers: Any = {side: SimpleNamespace(
            rows=lambda name, side=side: rows[side][ids[side][name].ids]) for side in rows}
        return [near.vector(params, answers, ids, side, name)
                for side, name in ((USERS, "a"), (ITEMS, "b"))]

    def whole(seeds: Any, params: Any, rows: Any) -> Any:
        made = all_layers(graph, params, rows, seeds)[-1]
        return [made[USERS][nodes], made[ITEMS][nodes]]

    def defined(params: Any, rows: Any) -> Any:
        return [each[nodes] for each in layers(params, dense, rows[USERS], rows[ITEMS], aggregator,
                                               2)]

    @jax.jit
    def every(params: Any, rows: Any) -> Any:
        single = jax.tree.map(lambda value: value.astype(jnp.float32), (params, rows))
        return [whole(None, *single), *(jax.value_and_grad(lambda *given, way=way: (
            lambda made: (sum(jnp.sum(jnp.sin(3 * each)) for each in made), made))(way(*given)),
            (0, 1), has_aux=True)(*given) for way, given in (
                (defined, (params, rows)), (named, single),
                (functools.partial(whole, near.seeds), single)))]

    with jax.enable_x64(True):
        given = jax.tree.map(lambda value: jnp.asarray(np.asarray(value), jnp.float64),
                             (params, rows))
        served, wanted, *others = every(*given)
    assert wanted[0][1][0].dtype == np.float64 and np.ptp(wanted[0][1][0]) > 0.1
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 [served, *others], [wanted[0][1], wanted, wanted])


def test_a_users_neighbourhood_is_read_once_a_history() -> None:
    """Their vectors at the places are those of a neighbourhood that is read for each of them."""
    random, fan_out = np.random.default_rng(6), (3,)
    edges = distinct_edges(random.integers(0, U, 60), random.integers(0, V, 60), V)
    graph = jax.tree.map(jnp.asarray, make_sampled_graph(edges, U, V, fan_out, "mean"))
    near = Neighbourhood(graph, jnp.arange(2, dtype=jnp.uint32).reshape(1, 2))
    batch = make_batch(3)
    batch["histories"] = batch["histories"][:, :, :2]
    batch["segments"][0, 0], batch["histories"][0, 0] = 0, -1  # an empty row
    _, params = build_encoder(graphsage.Config(fan_out=fan_out), dim=4, length=LENGTH, causal=True,
                              precision="f32", seed=0)
    rows = {USERS: random.standard_normal((U, 4)), ITEMS: random.standard_normal((V, 4))}
    there = (batch["segments"] > 0).reshape(1, -1)
    places: Any = {ITEMS: {}, USERS: {READ: Ids(batch[USERS].reshape(1, -1), there)}}
    micro = {name: value[0] for name, value in batch.items()}

    @jax.jit
    def made(rows: Any) -> Any:
        found = []
        for given in (places, near.of_batch(places, batch)):
            ids = jax.tree.map(lambda x: x[0], near.rows_of(given))
            answers: Any = {side: SimpleNamespace(rows=lambda name, side=side, ids=ids: rows[side][
                ids[side][name].ids]) for side in rows}
            found.append((near.vector(params, answers, ids, USERS, READ), ids))
        return [*found, at_each_place(found[1][0], micro)]

    (wanted, each), (vectors, once), placed = made({
        side: value.astype(np.float32) for side, value in rows.items()})
    vectors, wanted, placed = (np.asarray(value) for value in (vectors, wanted, placed))
    # With two histories in six places a third of the rows is read.
    for side in rows:
        assert each[side].keys() == once[side].keys()
        for name, ids in each[side].items():
            assert ids.ids.size == 3 * once[side][name].ids.size
    assert vectors.shape == (ROWS * 2, 4)
    shown = np.asarray(there[0])
    np.testing.assert_allclose(placed[shown], wanted[shown], rtol=1e-6, atol=1e-6)
    assert np.isfinite(vectors).all() and np.ptp(wanted[shown]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "aggregator", "mesh", "accumulate"), [
    ("sparse", "pool", (1, 1), 1), ("dense", "mean", (1, 1), 1), ("sparse", "pool", (2, 4), 1),
    ("dense", "mean", (2, 4), 1), ("dense", "pool", (1, 1), 2), ("sparse", "mean", (1, 1), 1)],
    ids=str)
def test_a_step_descends_on_rows_and_matrices(mode: str, aggregator: str, mesh: tuple[int, int],
                                              accumulate: int) -> None:
    random = np.random.default_rng(1)
    edges = distinct_edges(random.integers(0, U - 1, 60), random.integers(0, V - 1, 60), V)
    made = make_sampled_graph(edges, padded_size(U), padded_size(V), (16, 16), aggregator)
    assert np.bincount(edges.users).max() <= 16
    graph = jax.tree.map(jnp.asarray, made)
    objective: Any = (next_item.Config(backend="xla") if mode == "dense" else
                      bpr.Config(count=V, shared=True))
    trained = Trained(objective, graphsage.Config(fan_out=(16, 16), aggregator=aggregator,  # type: ignore[arg-type]
                                                  drop=0.0), mode, mesh, accumulate=accumulate,
                      graph=graph)
    dense = between(edges, U, V)
    batch = {name: value.reshape(ROWS, -1) for name, value in trained.batch.items()}
    row, place = np.nonzero(batch["targets"] >= 0)
    target = batch["targets"][row, place]

    def loss(params: Any, items: Any, users: Any) -> Any:
        users, items = layers(params, dense, users, items, aggregator, 2)
        scores = users[batch["users"][row, place]] @ items.T
        own = jnp.take_along_axis(scores, jnp.asarray(target)[:, None], axis=1)
        if mode == "dense":
            return -jnp.mean(jnp.take_along_axis(log_softmax(scores), target[:, None], axis=1))
        wrong = jax.nn.softplus(scores - own) * (np.arange(V) != target[:, None])
        return jnp.mean(jnp.sum(wrong, axis=1) / V)

    assert trained.before.parts[1].shape == (V, D)
    trained.check(loss)


def small(mapping: dict[str, Any], objective: dict[str, Any], **encoder: Any) -> RunConfig:
    return config.build(RunConfig, mapping | {"objective": objective, "encoder": {
        "kind": "graphsage", "fan_out": [3, 4], **encoder}})


LINES = ("train.steps=12", "train.log_every=1", "train.evaluate_every=2.0", "optimizer.rate=2e-2",
         "table.init_scale=0.3", "train.checkpoint_every=4")
DRAWN = {"kind": "bpr", "count": 32, "shared": True}


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "objective"), [
    (('table.update="sparse"', "table.optimizer.rate=2e-2"), DRAWN),
    ((), {"kind": "next_item", "backend": "xla"}),
    ((), {"kind": "random_walk", "count": 8}),
    (('table.update="sparse"',), {"kind": "random_walk", "count": 8})],
    ids=["sparse", "softmax", "walk", "sparse walk"])
def test_a_run_learns_goes_on_to_the_same_bits_and_answers(
        lines: tuple[str, ...], objective: dict[str, Any], tiny_mapping: Mapping, tmp_path: Path
        ) -> None:
    settings = small(tiny_mapping(*LINES, *lines), objective)
    whole, model = whole_and_resumed(settings, tmp_path, 0.97)
    assert whole["table_update"] == ("sparse" if lines else "dense")
    # What is served are the layers over all neighbours, of rows by id.
    dataset, nodes, params = model.served.dataset, model.served.nodes, model.served.params
    assert nodes is not None
    count = dataset.num_users
    edges = between(interaction_edges(dataset), count, dataset.num_items)
    known = [np.asarray(nodes.rows[name], np.float64)[:size] * (met > 0)[:, None]
             for name, size, met in (("users", count, edges.sum(axis=1)),
                                     ("items", dataset.num_items, edges.sum(axis=0)))]
    users, items = (np.asarray(each) for each in layers(
        {name: np.asarray(value) for name, value in params.items()}, edges, *known, "mean", 2))
    found = load_embeddings(api.export(tmp_path / "whole", step=12, out=tmp_path / "items"))
    people = load_embeddings(api.export(model, out=tmp_path / "users", what="users"))
    np.testing.assert_allclose(found.vectors, items, atol=1e-5)
    np.testing.assert_allclose(people.vectors, users, atol=1e-5)
    best = model.recommend(user=str(people.ids[3]), k=1, filter_seen=False)
    assert best[0].item == found.ids[int(np.argmax(users[3] @ items.T))]
    # The validation of the training ranks by the same vectors.
    again = api.evaluate(tmp_path / "whole", split="valid", step=whole["best_step"])
    assert again["metrics"]["ndcg@10"] == pytest.approx(whole["best"], abs=1e-12)


@pytest.mark.parametrize(("lines", "extra", "said"), [
    (('table.update="sparse"',), {}, "table.update = 'sparse'.*the vectors of all items"),
    (('table.update="sparse"',), {"users": {"dim": 16, "update": "dense"}, "objective": DRAWN},
     "users.update = 'dense'"),
    ((), {"bias": {"trained": True}}, "bias.trained = false"),
    ((), {"lora": [{"match": "layers/*/kernel"}]}, "without adapters"),
    ((), {"objective": {"kind": "hard_negatives"}}, "searches stored rows"),
    ((), {"encoder": {"kind": "graphsage", "fan_out": []}}, "encoder.fan_out"),
    ((), {"encoder": {"kind": "graphsage", "drop": 1.5}}, "encoder.drop"),
    ((), {"encoder": {"kind": "user"}, "objective": {"kind": "random_walk"}}, "walks over a graph"),
    ((), {"objective": {"kind": "random_walk", "shared": False}}, "the same negatives"),
    ((), {"continual": {"run": "runs/x", "step": 1}}, "an edge for each interaction that it is"),
], ids=["sparse", "users", "bias", "lora", "search", "fan_out", "drop", "walks", "shared",
        "continual"])
def test_what_does_not_fit_is_refused(lines: tuple[str, ...], extra: dict[str, Any], said: str,
                                      tiny_mapping: Mapping) -> None:
    mapping = tiny_mapping(*lines) | {"encoder": {"kind": "graphsage"}} | extra
    with pytest.raises(InputError, match=said):
        config.build(RunConfig, mapping)


@pytest.mark.slow
def test_a_step_costs_what_it_touches_however_large_the_graph() -> None:
    """By XLA's own counts for shapes alone. Of bytes it counts whole operands of a gather on a CPU,
    so what stands for them is that nothing of the tables' size is made or copied."""
    compiled = [cost(items) for items in (10_000, 10_000_000)]
    flops = [each.cost_analysis()["flops"] for each in compiled]
    memory = [each.memory_analysis() for each in compiled]
    assert flops[0] > 1e5 and flops[1] < 1.15 * flops[0]
    assert memory[1].temp_size_in_bytes < 1.15 * memory[0].temp_size_in_bytes
    new = [each.output_size_in_bytes - each.alias_size_in_bytes for each in memory]
    assert new[0] == new[1] < 1e4


def cost(items: int) -> Any:
    """Of a step over so many items, as many users, and ten edges of each."""
    dim, places = 8, (8, 4)
    encoder, params = build_encoder(graphsage.Config(fan_out=(3, 2)), dim=dim, length=places[1],
                                    causal=True, precision="f32", seed=0)
    rule, mesh = optax.sgd(0.1), make_mesh(MeshConfig())
    settings = TableConfig(dim=dim, optimizer=RowOptimizerConfig(kind="adagrad", rate=0.1))
    tables = dict.fromkeys((ITEMS, USERS), settings)
    step = make_train_step(encoder, bpr.Config(count=16, shared=True), rule, mesh=mesh,
                           tables=tables, modes=dict.fromkeys(tables, "sparse"),
                           rate=optax.constant_schedule(0.1), graph=graph_of(items))
    made = {name: jax.eval_shape(lambda name=name: init_table(
        settings, items, 0, name=name, optimizer=row_optimizer(settings.optimizer)))
        for name in tables}
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, made,
                       rule.init({"encoder": params}), None,
                       jax.ShapeDtypeStruct((2,), jnp.uint32))
    batch = {name: jax.ShapeDtypeStruct((1, *places), jnp.int32)
             for name in ("items", "targets", "segments", "positions", "users")}
    batch["histories"] = jax.ShapeDtypeStruct((1, places[0], 2), jnp.int32)
    return step.lower(state, batch).compile()


def graph_of(items: int) -> Any:
    size = padded_size(items)
    graph = make_sampled_graph(distinct_edges(np.zeros(1, int), np.zeros(1, int), 1), 1, 1,
                               (3, 2), "mean")
    int32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return dataclasses.replace(graph, near={
        side: Adjacent(int32((size + 1,)), int32((10 * items,))) for side in (ITEMS, USERS)})
