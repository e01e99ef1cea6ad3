"""Side features go through training, resuming, evaluation, export and recommendation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAfter, Stopped

from rec_jax import api, config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, ItemFeature, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.evaluate import choose_users, evaluate_served
from rec_jax.inference.retrieve import recommend
from rec_jax.inference.served import Served, load_served
from rec_jax.metrics import rank_metrics
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.loop import run_training
from rec_jax.train.state import to_items
from rec_jax.train.step import place_batch

KINDS, QUESTIONS, USERS, LENGTH = 4, 2000, 120, 12
ALL = [{"kind": "item_category", "name": "kind"}, {"kind": "time_gap"}, {"kind": "rating"}]
CASES = {"next item": {"kind": "next_item"},
         "masked item": {"kind": "masked_item", "share": 0.3}}


def write(folder: Path, seed: int = 0, kinds: str = "abcd") -> Path:
    """A dataset in which every second item is told by the kind of the one before it.

    A question is any of many items, and its answer one of four: there is too little of each
    question to learn its answer by, and plenty of each kind.
    """
    random = np.random.default_rng(seed)
    kind = random.integers(0, KINDS, QUESTIONS)
    lines = ["user_id,item_id,time,stars,kind"]
    for user in range(USERS):
        when = 1_000_000
        for question in random.integers(0, QUESTIONS, random.integers(2, 8)).tolist():
            own = int(kind[question])
            for item, name in ((f"q{question}", kinds[own]), (f"answer{own}", "none")):
                when += int(10 ** random.uniform(0, 5))
                lines.append(f"u{user},{item},{when},{random.integers(1, 6)},{name}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines))
    prepare(PrepareConfig(
        source=str(folder / "log.csv"), out=str(folder / "made"), overwrite=True,
        columns=Columns(time="time", rating="stars"), item_features=(ItemFeature("kind"),)))
    return folder / "made"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def mapping(made: Path) -> Callable[..., dict[str, Any]]:
    def make(features: list[dict[str, str]], *lines: str, **more: Any) -> dict[str, Any]:
        base = {
            "seed": 1, "data": {"path": str(made), "length": LENGTH}, "table": {"dim": 16},
            "encoder": {"kind": "transformer", "layers": 1, "heads": 1, "hidden": 2,
                        "dropout": 0.0},
            "optimizer": {"rate": 1e-2}, "features": features, "evaluate": {"filter_seen": False,
                                                                            "ks": [1, 10]},
            "train": {"rows": 8, "steps": 100, "evaluate_every": 1000.0},
            **more}
        return config.override(base, lines)

    return make


@pytest.fixture(scope="module")
def train(mapping: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """A finished run with all features, by the name of its case."""

    @functools.cache
    def once(case: str) -> Served:
        folder = tmp_path_factory.mktemp("runs") / "run"
        api.train(config.build(RunConfig, mapping(ALL, objective=CASES[case])), run=folder)
        return load_served(Run(folder))

    return once


@pytest.fixture(params=CASES)
def trained(request: pytest.FixtureRequest, train: Callable[[str], Served]) -> Served:
    return train(request.param)


def arrays(run: Run) -> dict[str, np.ndarray]:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return {name + path: source.read(0, source.shape[0] if source.shape else 1)
                for name, sources in checkpoints.open(step).items.items()
                for path, source in sources.items()}


def query(served: Served, user: int, end: int) -> np.ndarray:
    """The query f64 `[d]` after one history, laid out by hand."""
    dataset, hides = served.dataset, not served.config.objective.causal
    assert dataset.times is not None and dataset.ratings is not None
    part = slice(max(int(dataset.offsets[user]), end - (LENGTH - hides)), end)
    size = part.stop - part.start
    laid = {name: np.zeros((1, LENGTH), np.int32) for name in ("items", "times", "kind", "rating")}
    laid["items"][0, :size] = dataset.items[part]
    laid["times"][0, :size] = dataset.times[part] - dataset.times[part.start]
    laid["kind"][0, :size] = dataset.item_features["kind"][dataset.items[part], 0]
    laid["rating"][0, :size] = dataset.ratings[part]
    last = size - 1 + hides
    segments = (np.arange(LENGTH) <= last).astype(np.int32)[None]
    inputs = Inputs(jnp.asarray(segments), jnp.arange(LENGTH)[None], jnp.asarray(laid["times"]),
                    {f"features/{name}": jnp.asarray(laid[name])[..., None]
                     for name in ("kind", "rating")})
    hidden = jnp.asarray(np.arange(LENGTH) == last)[None] if hides else None
    queries = encode(served.encoder, served.params, served.rows, jnp.asarray(laid["items"]),
                     inputs, hidden=hidden)
    return np.asarray(queries, np.float64)[0, last]


@pytest.mark.slow
def test_what_only_the_category_tells_is_learned(train: Callable[[str], Served], mapping: Any,
                                                 tmp_path: Path) -> None:
    """The last item of every history is an answer; without the kind it is one of four."""
    api.train(config.build(RunConfig, mapping([])), run=tmp_path / "without")
    told, untold = (evaluate_served(served)["metrics"]["hr@1"] for served in
                    (train("next item"), load_served(Run(tmp_path / "without"))))
    assert told > 0.9
    assert untold < 0.6


def test_tables_are_trained_by_each_code_alone(trained: Served) -> None:
    """Rows of codes that occur have moved; the rows of all other gaps have no gradient."""
    fresh = build(trained.config).state.encoder
    for name in ("kind", "rating", "time_gap"):
        moved = np.abs(np.asarray(trained.params[f"features/{name}"])
                       - np.asarray(fresh[f"features/{name}"])).max(axis=1)
        if name == "time_gap":
            assert (moved[1:10] > 0).any() and not moved[45:].any()
        else:
            assert (moved[1:] > 0).all()


def test_evaluation_is_that_of_each_history_by_itself(trained: Served) -> None:
    users, targets, ends = choose_users(trained.dataset, "test", None, 0)
    lengths = ends - trained.dataset.offsets[users]
    assert lengths.min() < LENGTH < lengths.max()
    rows = np.asarray(trained.rows, np.float64)[:trained.dataset.num_items]
    ranks = []
    for user, target, end in zip(users, targets, ends, strict=True):
        scores = rows @ query(trained, int(user), int(end))
        scores_of_others = np.delete(scores, target)
        ranks.append(1 + int((scores_of_others >= scores[target]).sum()))
    expected = rank_metrics(np.array(ranks), trained.config.evaluate.ks)
    found = evaluate_served(trained)["metrics"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_exported_users_are_their_queries(trained: Served, tmp_path: Path) -> None:
    found = api.export(trained.run.folder, out=tmp_path / "users", what="users")
    vectors = np.load(found / "embeddings.npy")
    for user in (0, 1, trained.dataset.num_users - 1):
        expected = query(trained, user, int(trained.dataset.offsets[user + 1]))
        np.testing.assert_allclose(vectors[user], expected, atol=1e-4)
    assert api.export(trained.run.folder, out=tmp_path / "items", what="items")


def test_a_user_is_recommended_the_best_of_the_dense_scores(trained: Served) -> None:
    dataset = trained.dataset
    user = int(dataset.user_index(["u7"])[0])
    rows = np.asarray(trained.rows, np.float64)[:dataset.num_items]
    scores = rows @ query(trained, user, int(dataset.offsets[user + 1]))
    found = recommend(trained, user="u7", k=5, filter_seen=False)
    assert [entry.item for entry in found] == dataset.item_ids().gather(
        np.argsort(-scores)[:5]).to_list()


def test_a_history_from_elsewhere_needs_times_and_no_ratings(trained: Served) -> None:
    items = trained.dataset.item_ids().gather([1, 2]).to_list()
    assert len(recommend(trained, history=items, times=[5, 60], k=3)) == 3
    with pytest.raises(InputError, match=r"the model reads times: no times for 2 items"):
        recommend(trained, history=items)


def test_packed_and_padded_rows_have_one_loss(mapping: Any) -> None:
    losses, positions = [], []
    for pack in ("true", "false"):
        settings = config.build(RunConfig, mapping(ALL, f"data.pack={pack}", "optimizer.rate=1e-9",
                                                   "train.epochs=1", "train.rows=240"))
        built = build(settings)
        batch = {name: values[None] for name, values in built.stream.batch(0).items()}
        # An epoch and a piece of the next one; the piece is not asked.
        keep = np.arange(240) < built.stream.rows_per_epoch
        batch["targets"] = np.where(keep[None, :, None], batch["targets"], -1)
        _, metrics = built.step(built.state, place_batch(batch, built.mesh))
        losses.append(float(metrics.loss))
        positions.append(int(metrics.positions))
    assert positions[0] == positions[1] > 500
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_stopped_and_resumed_run_repeats_every_bit(mapping: Any, tmp_path: Path) -> None:
    settings = config.build(RunConfig, mapping(
        ALL, "train.steps=8", "train.checkpoint_every=3", "train.ema=0.8",
        "encoder.dropout=0.2"))
    whole, stopped = Run(tmp_path / "whole"), Run(tmp_path / "stopped")
    for run in (whole, stopped):
        run.create(settings)
    run_training(whole, settings)
    with pytest.raises(Stopped):
        run_training(stopped, settings, reporter=StopAfter(5))
    run_training(stopped, settings)
    expected, found = arrays(whole), arrays(stopped)
    assert expected.keys() == found.keys()
    assert {"model['encoder']['features/kind']", "average['encoder']['features/time_gap']"} <= set(
        expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.slow
def test_any_update_and_mesh_gives_the_same_features(mapping: Any) -> None:
    tables = []
    for lines in ((), ("mesh.data=2", "mesh.items=2"), ("table.update=streamed",)):
        built = build(config.build(RunConfig, mapping(ALL, *lines)))
        state = built.state
        for number in range(3):
            batch = {name: values[None] for name, values in built.stream.batch(number).items()}
            state, _ = built.step(state, place_batch(batch, built.mesh))
        tables.append({name: np.asarray(value) for name, value in
                       to_items(state)["model"]["encoder"].items() if "features" in name})
    for other in tables[1:]:
        for name, values in tables[0].items():
            np.testing.assert_allclose(other[name], values, atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_a_run_starts_from_one_whose_codes_mean_the_same(
        mapping: Any, train: Callable[[str], Served], tmp_path: Path) -> None:
    run = train("next item").run
    settings = config.build(RunConfig, mapping(ALL, "train.steps=2"))
    assert api.train(settings, run=tmp_path / "a", start_from=run.folder)["steps"] == 2
    other = write(tmp_path / "other", kinds="abcx")
    settings = config.build(RunConfig, mapping(ALL, f"data.path={other}", "train.steps=2"))
    with pytest.raises(InputError, match=r"'kind' has other values in .*other"):
        api.train(settings, run=tmp_path / "b", start_from=run.folder)


def test_an_attribute_that_is_not_kept_is_named(mapping: Any, made: Path) -> None:
    lacking = [{"kind": "item_category", "name": "kinds"}]
    with pytest.raises(InputError, match=r"'kinds': .* it has 'kind'; did you mean 'kind'"):
        build(config.build(RunConfig, mapping(lacking)))
    assert set(Dataset.open(made).item_features) == {"kind"}
