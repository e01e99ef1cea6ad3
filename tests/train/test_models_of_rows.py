"""Whole runs of what a row may be: a bias, content, a table of users; trained, resumed, served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from item_vectors import give_vectors
from marks import slow_but

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.export import load_embeddings
from rec_jax.run import RunConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
STEPS = ("train.steps=8", "train.checkpoint_every=4", "train.evaluate_every=1000.0")
MODES = {"dense": (), "streamed": ('table.update="streamed"',),
         "sparse": ('table.update="sparse"', 'objective.kind="sampled_softmax"',
                    "objective.count=32")}

Mapping = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def with_vectors(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with item vectors and rewards."""
    folder = shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("vectors") / "d")
    dataset, random = Dataset.open(folder), np.random.default_rng(0)
    give_vectors(folder, random.standard_normal((dataset.num_items, 3)))
    (folder / "values").mkdir()
    np.save(folder / "values" / "reward.npy",
            random.standard_normal(dataset.num_interactions).astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))


def arrays(run: Path, step: int = 8) -> dict[str, np.ndarray]:
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        items = checkpoints.open(step).items
        return {f"{item}{path}": source.read(0, source.shape[0] if source.shape else 1)
                for item, sources in items.items() for path, source in sources.items()}


def trained(mapping: dict[str, Any], folder: Path) -> dict[str, Any]:
    built = config.build(RunConfig, mapping, trust_code=True)
    return api.train(built, run=folder)


def resumed_like(mapping: dict[str, Any], folder: Path) -> None:
    """A run that stops half-way and goes on has the bits of one that did not stop."""
    trained(config.override(mapping, ("train.steps=8",)), folder / "whole")
    half = folder / "half"
    trained(mapping, half)
    with Checkpoints(half / "checkpoints") as checkpoints:
        shutil.rmtree(next((half / "checkpoints").glob("step_*8")))
        assert checkpoints.steps() == [4]
    api.train(resume=half, trust_code=True)
    one, other = arrays(folder / "whole"), arrays(half)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def lists_agree(run: Path, **given: Any) -> None:
    """HR of the ranks is the share of users whose list holds their target."""
    model = api.load(run, trust_code=True)
    found = api.evaluate(model, split="test", **given)
    dataset = model.served.dataset
    users, targets, _ = dataset.targets("test")
    ids, people = dataset.item_ids(), dataset.user_ids()
    assert 0 <= found["metrics"]["hr@10"] <= 1
    seen = [model.recommend(user=people[int(user)], k=50, filter_seen=False)
            for user in users[:5]]
    for rows, target in zip(seen, targets[:5], strict=True):
        assert ids[int(target)] in {row.item for row in rows}


@pytest.mark.parametrize(("mode", "drop"), [
    pytest.param(*case, marks=pytest.mark.slow) for case in (  # test_cold.py has one each time
        ("sparse", 0.3), ("dense", 0.0), ("dense", 0.3), ("streamed", 0.0), ("streamed", 1.0))])
def test_content_is_a_part_of_the_rows(mode: str, drop: float, with_vectors: Path,
                                       tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, *MODES[mode], f"data.path='{with_vectors}'")
    mapping["content"] = [{"name": "text", "drop": drop}]
    resumed_like(mapping, tmp_path)
    run = tmp_path / "whole"
    found = arrays(run)
    content = np.load(with_vectors / "item_vectors" / "text.npy")
    rows, matrix = found["model['tables']['items']"], found["model['encoder']['content/text']"]
    order = json.loads(json.dumps(Checkpoints(run / "checkpoints", read_only=True).extra(8)))
    numbers = np.arange(len(content))
    if mode == "sparse":
        from rec_jax.tables.row_map import read_row_map

        numbers = read_row_map(order["row_map"], len(content)).rows(numbers)
    np.testing.assert_array_equal(rows[numbers, 16:], content)
    assert rows[numbers, :16].any() == (drop < 1)
    vectors = rows[numbers, :16] + content @ matrix
    for name, given in (("disk", run), ("mesh", api.load(run))):
        out = api.export(given, out=tmp_path / name, what="items")
        np.testing.assert_allclose(load_embeddings(out).vectors, vectors, atol=1e-5)
    # Users and items are exported in one space: a recommendation is the best product.
    queries = load_embeddings(api.export(run, out=tmp_path / "users", what="users")).vectors
    model = api.load(run)
    best = model.recommend(user=str(model.served.dataset.user_ids()[3]), k=1, filter_seen=False)
    scores = queries[3] @ vectors.T
    assert best[0].item == model.served.dataset.item_ids()[int(np.argmax(scores))]
    np.testing.assert_allclose(best[0].score, scores.max(), rtol=1e-4)
    lists_agree(run)


@pytest.mark.parametrize("mode", slow_but([], ["dense", "streamed"]))
def test_a_trained_bias_is_saved_and_served(mode: str, tiny_mapping: Mapping,
                                            tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, *MODES[mode], "bias.trained=true", "bias.strength=1.0",
                           "bias.serve_strength=0.5", "objective.scale=2.0")
    resumed_like(mapping, tmp_path)
    run = tmp_path / "whole"
    found = arrays(run)["model['bias']['items']"]
    model = api.load(run)
    from rec_jax.inference.served import counts_of
    from rec_jax.tables.bias import log_popularity

    popular = log_popularity(counts_of(model.served.config, model.served.dataset))
    count = len(popular)
    assert not np.allclose(found[:count], popular, atol=1e-4)  # it has learned
    wanted = (found[:count] - 0.5 * popular) / 2.0
    np.testing.assert_allclose(np.asarray(model.served.bias)[:count], wanted, atol=1e-5)
    for name, given in (("disk", run), ("mesh", model)):
        out = load_embeddings(api.export(given, out=tmp_path / name, what="items"))
        assert out.item_bias is not None
        np.testing.assert_allclose(out.item_bias, wanted, atol=1e-5)
    queries = load_embeddings(api.export(run, out=tmp_path / "users", what="users")).vectors
    best = model.recommend(user=str(model.served.dataset.user_ids()[3]), k=1, filter_seen=False)
    scores = queries[3] @ out.vectors.T + out.item_bias
    assert best[0].item == model.served.dataset.item_ids()[int(np.argmax(scores))]
    lists_agree(run)


def test_a_fixed_bias_may_be_left_out_when_served(tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, "bias.strength=1.0", "bias.serve_strength=0.0")
    trained(mapping, tmp_path / "r")
    assert api.load(tmp_path / "r").served.bias is None
    with pytest.raises(InputError, match="does not score the whole catalogue"):
        config.build(RunConfig, tiny_mapping("bias.strength=1.0", *MODES["sparse"]))


@pytest.mark.parametrize("mode", slow_but("dense", MODES))
def test_users_have_rows_that_answer_for_them(mode: str, tiny_mapping: Mapping,
                                              tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, *MODES[mode])
    mapping["encoder"] = {"kind": "extending.user_vectors"}
    resumed_like(mapping, tmp_path)
    run = tmp_path / "whole"
    people = arrays(run)["model['tables']['users']"]
    queries = load_embeddings(api.export(run, out=tmp_path / "u", what="users",
                                         trust_code=True)).vectors
    np.testing.assert_allclose(queries, people[:len(queries)], atol=1e-6)
    lists_agree(run)
    with pytest.raises(InputError, match="reads who asks"):
        api.recommend(run, history=["0001"], trust_code=True)


@pytest.mark.slow
def test_rewards_of_the_dataset_reach_the_objective(with_vectors: Path, tiny_mapping: Mapping,
                                                    tmp_path: Path) -> None:
    mapping = tiny_mapping(*STEPS, f"data.path='{with_vectors}'")
    mapping["objective"] = {"kind": "extending.policy_gradient"}
    trained(mapping, tmp_path / "one")
    rewards = np.load(with_vectors / "values" / "reward.npy")
    moved = shutil.copytree(with_vectors, tmp_path / "d")
    np.save(moved / "values" / "reward.npy", -rewards)
    mapping["data"] = {**mapping["data"], "path": str(moved)}
    trained(mapping, tmp_path / "other")
    rows = [arrays(tmp_path / name)["model['tables']['items']"] for name in ("one", "other")]
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    (moved / "values" / "reward.npy").unlink()
    with pytest.raises(InputError, match=r"has no values/reward\.npy; it has none"):
        trained(mapping, tmp_path / "third")


def test_wrong_content_is_one_line(with_vectors: Path, tiny_mapping: Mapping,
                                   tmp_path: Path) -> None:
    folder = shutil.copytree(with_vectors, tmp_path / "d")
    mapping = tiny_mapping(*STEPS, f"data.path='{folder}'")
    mapping["content"] = [{"name": "txt"}]
    with pytest.raises(InputError, match=r"has no item vectors 'txt' .it has: text"):
        trained(mapping, tmp_path / "r")
    mapping["content"] = [{"name": "text"}]
    (folder / "item_vectors" / "text.npy").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"text\.npy: it has 3 bytes"):
        trained(mapping, tmp_path / "r")
    mapping["content"] = [{"name": "text"}, {"name": "text"}]
    with pytest.raises(InputError, match="given twice"):
        config.build(RunConfig, mapping)
    mapping["content"] = [{"name": "../text"}]
    with pytest.raises(InputError, match="cannot be called"):
        config.build(RunConfig, mapping)
    mapping = tiny_mapping("table.tied=false")
    mapping["content"] = [{"name": "text", "codes": 4}]
    with pytest.raises(InputError, match=r"expected table\.tied = true"):
        config.build(RunConfig, mapping)
