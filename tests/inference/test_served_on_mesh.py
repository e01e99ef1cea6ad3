"""A trained model answers on any mesh: the same ranks, lists and embeddings, and nowhere the
whole table."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from asked import DIM, ITEMS, SHARD, TOTAL, save, settings, write_dataset

import rec_jax
from rec_jax import api
from rec_jax.errors import InputError
from rec_jax.inference.evaluate import _jitted
from rec_jax.inference.export import export, load_embeddings
from rec_jax.inference.histories import iterate_tiles
from rec_jax.inference.served import Served, load_served
from rec_jax.metrics import MISSED
from rec_jax.run import Run
from rec_jax.tables import INPUTS, RowMap, padded_size
from rec_jax.tables.bias import place_bias

MESHES = ("1x1", "2x4", "1x8")
FEATURES = [{"kind": "item_category", "name": "kind"}, {"kind": "time_gap"}, {"kind": "rating"}]
UNTIED = {"dim": DIM, "tied": False}
CASES: dict[str, dict[str, Any]] = {
    "streamed, bf16, untied, hidden": {
        "table": {**UNTIED, "update": "streamed", "dtype": "bf16"},
        "objective": {"kind": "masked_item", "share": 0.3}, "evaluate": {"filter_cold": True}},
}
MORE_CASES: dict[str, dict[str, Any]] = {
    "dense, features": {"features": FEATURES},
    "dense": {},
    "streamed, bf16": {"table": {"dim": DIM, "update": "streamed", "dtype": "bf16"}},
    "untied, features, average": {
        "table": UNTIED, "features": FEATURES, "train": {"rows": 8, "steps": 1, "ema": 0.9}},
    "untied, streamed": {"table": {**UNTIED, "update": "streamed"}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module", params=[
    *(pytest.param(case, id=name) for name, case in CASES.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in MORE_CASES.items())])
def saved(request: pytest.FixtureRequest, dataset: Path,
          tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(settings(dataset, **request.param), tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture(scope="module")
def models(saved: Path) -> dict[str, Served]:
    return {mesh: api.load(saved, mesh=mesh).served for mesh in MESHES}


class Answers(NamedTuple):
    """ranks: `[M]` of the users with a test item; best: `[M, k]`; program: what XLA made."""

    ranks: np.ndarray
    best: np.ndarray
    program: str


LONG = SHARD + 4  # more than a shard has


def ask(served: Served) -> Answers:
    users, targets, ends = served.dataset.targets("test")
    cold = served.dataset.popularity() == 0 if served.config.evaluate.filter_cold else None
    (tiles, chosen), = iterate_tiles(served.dataset, users, ends, targets, reading=served.reading,
                                     batch=96, devices=served.mesh.size)
    bias = barred = None
    if cold is not None:
        bias = place_bias(TOTAL, served.mesh, barred=cold, over=served.over)
        barred = cold[tiles.targets]
    ranker: Any = _jitted(served.encoder, ITEMS, served.mesh, True, LONG, served.over,
                               RowMap(ITEMS))
    compiled = ranker.lower(served.params, served.rows, tiles, barred, bias).compile()
    found = compiled(served.params, served.rows, tiles, barred, bias)
    ranks, best = np.zeros(len(users), int), np.zeros((len(users), LONG), int)
    ranks[chosen] = np.asarray(found.ranks).reshape(-1)[:len(chosen)]
    best[chosen] = np.asarray(found.best).reshape(-1, LONG)[:len(chosen)]
    return Answers(ranks, best, compiled.as_text())


@pytest.fixture(scope="module")
def answers(models: dict[str, Served]) -> dict[str, Answers]:
    return {mesh: ask(served) for mesh, served in models.items()}


def test_ranks_and_lists_are_the_same_on_every_mesh(answers: dict[str, Answers]) -> None:
    ranks, best, _ = answers["1x1"]
    assert len(ranks) > 64 and len(np.unique(ranks)) > 20 and (ranks == MISSED).any()
    assert len(np.unique(best // SHARD)) == 8  # of every shard
    for mesh in MESHES[1:]:
        np.testing.assert_array_equal(answers[mesh].ranks, ranks)
        np.testing.assert_array_equal(answers[mesh].best, best)


def test_targets_tie_with_items_of_other_shards(models: dict[str, Served]) -> None:
    served = models["1x1"]
    rows = np.asarray(served.rows, np.float32)[:ITEMS]
    _, targets, _ = served.dataset.targets("test")
    same = (rows[targets][:, None] == rows[None]).all(axis=2)
    assert all(len(np.unique(np.flatnonzero(row) // SHARD)) > 1 for row in same)


def test_embeddings_are_the_same_on_every_mesh(models: dict[str, Served], tmp_path: Path) -> None:
    whats = ("users", "items") if models["1x1"].config.table.tied else ("users", "items", "inputs")
    for what in whats:
        alone, *others = (load_embeddings(export(models[mesh], tmp_path / f"{what}{mesh}",
                                                 what=what)) for mesh in MESHES)  # type: ignore
        assert len(np.unique(alone.vectors.round(3), axis=0)) > 50
        for found in others:
            assert found.ids.equals(alone.ids) and found.about == alone.about
            if what == "users":
                np.testing.assert_allclose(found.vectors, alone.vectors, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(found.vectors, alone.vectors)


def test_no_device_has_more_than_its_share_of_the_table(models: dict[str, Served]) -> None:
    assert padded_size(ITEMS) == TOTAL
    for mesh, served in models.items():
        data, items = map(int, mesh.split("x"))
        streamed = served.config.table.update == "streamed"
        assert served.over == (("data", "items") if streamed else ("items",))
        rows = TOTAL // (data * items if streamed else items)
        for table in [served.rows, *(
                [] if served.config.table.tied else [served.params[INPUTS]])]:
            shards = table.addressable_shards
            assert len({shard.device for shard in shards}) == served.mesh.size
            assert {shard.data.shape for shard in shards} == {(rows, DIM)}


def test_no_program_makes_the_table_whole_on_a_device(
        models: dict[str, Served], answers: dict[str, Answers]) -> None:
    assert f"[{TOTAL},{DIM}]" in answers["1x1"].program
    for mesh in MESHES[1:]:
        rows, _ = models[mesh].rows.addressable_shards[0].data.shape
        assert f"[{rows},{DIM}]" in answers[mesh].program
        assert f"[{TOTAL}," not in answers[mesh].program
        assert f"{TOTAL}]" not in answers[mesh].program


@pytest.mark.slow
def test_verbs_take_the_model_or_the_run(dataset: Path, tmp_path: Path) -> None:
    """A run that was trained on 2x4, by the public functions."""
    run = Path(api.train(settings(dataset), run=tmp_path / "run")["run"])
    results, lists, scores = [], [], []
    for mesh in (None, "1x1", "1x8"):
        served = rec_jax.load(run, mesh=mesh).served
        wanted = [int(part) for part in (mesh or "2x4").split("x")]
        assert list(served.mesh.shape.values()) == wanted
        result = rec_jax.evaluate(served, batch=300) if mesh else rec_jax.evaluate(run)
        results.append(json.dumps(result, sort_keys=True))
        found = [rec_jax.recommend(served if mesh else run, user=user, k=k, filter_seen=seen)
                 for user, k, seen in (("u3", 2 * ITEMS, False), ("u69", LONG, True))]
        lists.append([[(entry.rank, entry.item) for entry in each] for each in found])
        scores.append([entry.score for each in found for entry in each])
    assert results[0] == results[1] == results[2] and lists[0] == lists[1] == lists[2]
    assert len(lists[0][0]) == ITEMS and len(lists[0][1]) == LONG
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores[2], scores[1], rtol=1e-5, atol=1e-7)


def test_a_mesh_that_does_not_fit_is_one_line(saved: Path) -> None:
    for mesh, said in (("4x4", r"mesh\.data = 4 times mesh\.items = 4 needs 16 devices; expected "
                               r"at most 8"),
                       ("8", "mesh is '8'; expected DATAxITEMS, such as 1x8"),
                       ("1x0", r"mesh\.items is 0; expected"),
                       ("1x5", r"= 5 does not divide the 768 allocated rows")):
        with pytest.raises(InputError, match=said) as refusal:
            api.load(saved, mesh=mesh)
        assert "\n" not in str(refusal.value)


def test_a_run_of_more_devices_goes_where_it_fits_and_says_so(
        saved: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    before = Run(saved).config()
    streamed = before.table.update == "streamed"
    larger = dataclasses.replace(before, mesh=dataclasses.replace(before.mesh, data=4, items=4))
    run.create(larger)
    run.checkpoints.symlink_to(Run(saved).checkpoints)
    said: list[str] = []
    served = load_served(run, tell=said.append)
    assert dict(served.mesh.shape) == {"data": 2, "items": 4}
    share = TOTAL // (8 if streamed else 4)
    assert said == [f"the run's mesh 4x4 has 16 devices, and here are 8 devices (cpu): the model "
                    f"is on mesh 2x4, with {share} of 768 rows a device"]
    with pytest.warns(UserWarning, match="the run's mesh 4x4 has 16 devices"):
        load_served(run)
    with warnings.catch_warnings():  # what is asked for needs no word
        warnings.simplefilter("error")
        load_served(run, mesh=served.config.mesh.__class__(1, 8))
