"""A run with two tables: saved, resumed, evaluated, exported, and grown as one with one table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.inference.evaluate import choose_users, evaluate_served
from rec_jax.inference.export import export, load_embeddings
from rec_jax.inference.served import Served, load_served
from rec_jax.metrics import rank_metrics
from rec_jax.model.encoders import Inputs
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.tables import INPUTS
from rec_jax.train.build import build
from rec_jax.train.growing import Start, start_from
from rec_jax.train.loop import run_training
from rec_jax.train.resume import resume
from rec_jax.train.state import TrainState, to_items

Mapping = Callable[..., dict[str, Any]]
UNTIED = "table.tied=false"
MODES = {
    "dense": ("table.update='dense'", "train.ema=0.9"),
    "streamed": ("table.update='streamed'",),
    "sparse": ("table.update='sparse'", "objective.kind='sampled_softmax'", "objective.count=8"),
}


class Told(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def trained(tiny_mapping: Mapping, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, on four shards."""
    folder = tmp_path_factory.mktemp("untied") / "run"
    told = Told()
    run_training(Run(folder), config.build(RunConfig, tiny_mapping(UNTIED, "mesh.items=4")), told)
    assert any(line.startswith("item tables, inputs apart: dense") for line in told.said)
    return folder


@pytest.fixture(scope="module")
def served(trained: Path) -> Served:
    return load_served(Run(trained))


def dense_scores(served: Served, inputs: np.ndarray, user: int, end: int) -> np.ndarray:
    """Scores f64 `[V]` after one history, which is read from rows `inputs`."""
    dataset, length = served.dataset, served.config.data.length
    history = np.asarray(dataset.items[dataset.offsets[user]:end])[-length:]
    vectors = np.zeros((1, length, inputs.shape[1]), np.float32)
    vectors[0, :len(history)] = inputs[history]
    segments = (np.arange(length) < len(history)).astype(np.int32)[None]
    queries = served.encoder(served.params, jnp.asarray(vectors),
                             Inputs(jnp.asarray(segments), jnp.arange(length)[None]))
    query = np.asarray(queries)[0, len(history) - 1].astype(np.float64)
    return np.asarray(query @ np.asarray(served.rows, np.float64)[:dataset.num_items].T)


def test_evaluation_reads_one_table_and_ranks_the_other(served: Served, trained: Path) -> None:
    dataset = served.dataset
    with Checkpoints(Run(trained).checkpoints, read_only=True) as checkpoints:
        model = checkpoints.open(served.step).items["model"]
        inputs, rows = (model[f"['tables']['{name}']"].read(0, dataset.num_items)
                        for name in ("inputs", "items"))
    assert not np.any(inputs == rows)
    np.testing.assert_array_equal(served.rows[:dataset.num_items], rows)
    users, targets, ends = choose_users(dataset, "test", None, 0)

    def ranks(read: np.ndarray) -> np.ndarray:
        scores = np.array([dense_scores(served, read, user, end)
                           for user, end in zip(users, ends, strict=True)])
        found = scores >= scores[np.arange(len(users)), targets][:, None]
        return np.asarray(found.sum(axis=1))

    settings = config.build(RunConfig, {"data": {"path": "x"}, "evaluate": {"filter_seen": False}}
                            ).evaluate
    found = evaluate_served(served, settings=settings)["metrics"]
    expected, one_table = (rank_metrics(ranks(read), (5, 10, 20)) for read in (inputs, rows))
    assert {name: found[name] for name in expected} == expected != one_table
    assert expected["ndcg@10"] > 2 * one_table["ndcg@10"]


def test_validation_on_a_mesh_is_evaluation_afterwards(trained: Path, served: Served) -> None:
    found = evaluate_served(served, split="valid")["metrics"]
    with Checkpoints(Run(trained).checkpoints, read_only=True) as checkpoints:
        assert checkpoints.info(served.step).metric == pytest.approx(found["ndcg@10"], rel=1e-6)


def test_recommendations_are_the_best_of_the_scored_table(trained: Path, served: Served) -> None:
    dataset = served.dataset
    user = int(dataset.user_index(["u7"])[0])
    scores = dense_scores(served, np.asarray(served.params[INPUTS]), user,
                          int(dataset.offsets[user + 1]))
    best = np.argsort(-scores)[:5]
    found = api.recommend(trained, user="u7", k=5, filter_seen=False)
    assert [one.item for one in found] == [dataset.item_ids()[int(item)] for item in best]
    np.testing.assert_allclose([one.score for one in found], scores[best], rtol=1e-5)


def test_items_and_inputs_are_exported_each_from_its_table(
        trained: Path, served: Served, tmp_path: Path) -> None:
    count = served.dataset.num_items
    for what, rows in (("items", served.rows), ("inputs", served.params[INPUTS])):
        from_disk = load_embeddings(api.export(trained, out=tmp_path / what, what=what))  # type: ignore[arg-type]
        in_memory = load_embeddings(export(served, tmp_path / f"{what}2", what=what))  # type: ignore[arg-type]
        np.testing.assert_array_equal(from_disk.vectors, rows[:count])
        np.testing.assert_array_equal(in_memory.vectors, rows[:count])
        assert from_disk.about["what"] == what
        assert from_disk.ids.equals(served.dataset.item_ids())


def test_a_tied_run_has_no_inputs_to_export(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one table for inputs and items"):
        api.export(tiny_run, out=tmp_path / "out", what="inputs")
    with pytest.raises(InputError, match="needs untied tables"):
        export(load_served(Run(tiny_run)), tmp_path / "out", what="inputs")


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_run_that_is_resumed_on_the_way_ends_with_the_same_bits(
        tiny_mapping: Mapping, tmp_path: Path, mode: str) -> None:
    lines = (UNTIED, *MODES[mode], "train.steps=8", "train.checkpoint_every=3")
    settings = config.build(RunConfig, tiny_mapping(*lines, "checkpoint.keep=9"))
    run = Run(tmp_path / "run")
    run_training(run, settings)

    def last() -> dict[str, bytes]:
        with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
            items = checkpoints.open(8).items
            return {name + path: source.read(0, (source.shape or (1,))[0]).tobytes()
                    for name, item in items.items() for path, source in item.items()}

    whole = last()
    assert {"model['tables']['items']", "model['tables']['inputs']"} < whole.keys()
    assert ("average['tables']['inputs']" in whole) == (mode == "dense")
    with Checkpoints(run.checkpoints) as checkpoints:
        for step in (6, 8):
            shutil.rmtree(run.checkpoints / f"step_{step}")
        assert checkpoints.latest() == 3
    run_training(run, settings)
    assert last() == whole


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(MODES))
def test_both_tables_are_restored_on_any_mesh(
        tiny_mapping: Mapping, tmp_path: Path, mode: str) -> None:
    lines = (UNTIED, *MODES[mode], "table.optimizer.kind='adam'")
    saved, other = (config.build(RunConfig, tiny_mapping(*lines, *mesh)) for mesh in (
        ("mesh.items=4", "mesh.data=2"), ("mesh.items=2",)))
    built = build(saved)
    state = numbered(built.state)
    extra = {"dataset": built.dataset.split_hash, "position": {}, "data": built.stream.state(9),
             "config": config.to_mapping(saved), "tables": sorted(state.tables)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, to_items(state), extra)
        checkpoints.wait()
        found, step, _ = resume(checkpoints, build(other), other, Silent())
    assert step == 9 and bits(found) == bits(state)
    assert set(found.tables) == {"items", "inputs"}
    for leaf in jax.tree.leaves(found.tables):
        assert leaf.addressable_shards[0].data.shape[0] == leaf.shape[0] // 2


def numbered(state: TrainState) -> TrainState:
    """`state` with other values, every leaf's its own."""
    leaves = jax.tree.leaves(state)
    return jax.tree.unflatten(jax.tree.structure(state), [
        jax.device_put((np.arange(leaf.size).reshape(leaf.shape) % 1000 + 1 + place).astype(
            leaf.dtype), leaf.sharding) for place, leaf in enumerate(leaves)])


@pytest.mark.slow
def test_a_run_starts_from_both_tables_of_another(tiny_mapping: Mapping, tmp_path: Path) -> None:
    lines = (UNTIED, *MODES["streamed"], "table.optimizer.kind='adam'")
    settings = config.build(RunConfig, tiny_mapping(*lines))
    built = build(settings)
    before, old = numbered(built.state), Run(tmp_path / "old")
    old.create(settings)
    with Checkpoints(old.checkpoints) as checkpoints:
        checkpoints.save(9, to_items(before), {"dataset": built.dataset.split_hash,
                                               "tables": sorted(before.tables)})
    count = built.dataset.num_items
    for keep_state in (True, False):
        state = start_from(Start(old, keep_state=keep_state), build(settings),
                           Run(tmp_path / "new"), Silent())
        for name in ("items", "inputs"):
            found, there = state.tables[name], before.tables[name]
            kept = there if keep_state else built.state.tables[name]
            np.testing.assert_array_equal(found.rows[:count], there.rows[:count])
            for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(kept.state),
                                  strict=True):
                np.testing.assert_array_equal(one[:count], other[:count])
    tied = config.build(RunConfig, tiny_mapping(*MODES["streamed"]))
    with pytest.raises(InputError, match=r"\['inputs'\] is in one of the two only.*table\.tied"):
        start_from(Start(old), build(tied), Run(tmp_path / "tied"), Silent())


def test_the_layout_of_a_tied_checkpoint_has_no_second_table(tiny_run: Path) -> None:
    with Checkpoints(Run(tiny_run).checkpoints, read_only=True) as checkpoints:
        items = checkpoints.open(checkpoints.steps()[-1]).items
    assert sorted(items) == ["model", "training"]
    assert not any("inputs" in path for item in items.values() for path in item)
    assert [path for path in items["model"] if "encoder" not in path] == [
        "['tables']['items']"]


@pytest.mark.slow
def test_each_table_is_served_in_its_own_dtype(tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping(UNTIED, "table.dtype='bf16'", "inputs.dim=16", "inputs.dtype='f32'",
                           "train.steps=2")
    run_training(Run(tmp_path / "run"), config.build(RunConfig, mapping), Silent())
    loaded = load_served(Run(tmp_path / "run"))
    assert loaded.rows.dtype == jnp.bfloat16
    assert loaded.params[INPUTS].dtype == jnp.float32
    assert len(api.recommend(tmp_path / "run", user="u7", k=5)) == 5
