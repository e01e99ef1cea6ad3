"""Full-ranking metrics: the same for every batch size, and equal to a dense evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.inference.evaluate import choose_users, evaluate_served, popularity_ranks
from rec_jax.inference.histories import choose_shapes
from rec_jax.inference.served import Served, load_served
from rec_jax.metrics import rank_metrics
from rec_jax.model.encoder import build_encoder, encode
from rec_jax.model.encoders import Inputs
from rec_jax.run import Run
from rec_jax.run_sections import EvaluateConfig

SPLITS = ("valid", "test")


@pytest.fixture(scope="module")
def trained(tiny_run: Path) -> Served:
    return load_served(Run(tiny_run))


def settings(**changes: Any) -> EvaluateConfig:
    return dataclasses.replace(EvaluateConfig(), **changes)


def dense_scores(served: Served, ends: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Scores f32 `[M, V]` of every item after each user's history, one user at a time."""
    dataset, length = served.dataset, served.config.data.length
    scores = []
    for user, end in zip(users, ends, strict=True):
        history = np.asarray(dataset.items[dataset.offsets[user]:end])[-length:]
        items = np.zeros((1, length), np.int32)
        items[0, :len(history)] = history
        segments = (np.arange(length) < len(history)).astype(np.int32)[None]
        inputs = Inputs(jnp.asarray(segments), jnp.arange(length)[None])
        queries = encode(served.encoder, served.params, served.rows, jnp.asarray(items), inputs)
        query = np.asarray(queries)[0, len(history) - 1].astype(np.float64)
        scores.append(query @ np.asarray(served.rows, np.float64)[:dataset.num_items].T)
    return np.array(scores)


def dense_ranks(scores: np.ndarray, dataset: Dataset, users: np.ndarray, targets: np.ndarray,
                ends: np.ndarray, filter_seen: bool) -> np.ndarray:
    """1 + the candidates that score at least as much as the target."""
    ranks = []
    for row, user, target, end in zip(scores, users, targets, ends, strict=True):
        candidate = np.ones(len(row), bool)
        if filter_seen:
            candidate[dataset.items[dataset.offsets[user]:end]] = False
        candidate[target] = False
        ranks.append(1 + int((candidate & (row >= row[target])).sum()))
    return np.array(ranks)


@pytest.mark.parametrize("filter_seen", [True, False])
def test_metrics_are_the_same_to_the_last_digit_for_every_batch_size(
        trained: Served, filter_seen: bool) -> None:
    results = [evaluate_served(trained, settings=settings(batch=batch, filter_seen=filter_seen))
               for batch in (1, 7, 512)]
    assert json.dumps(results[0]) == json.dumps(results[1]) == json.dumps(results[2])
    assert results[0]["metrics"]["hr@10"] > 0


@pytest.mark.parametrize("split", SPLITS)
def test_metrics_equal_those_of_a_dense_evaluation(trained: Served, split: Any) -> None:
    users, targets, ends = choose_users(trained.dataset, split, None, 0)
    scores = dense_scores(trained, ends, users)
    for filter_seen in (True, False):
        ranks = dense_ranks(scores, trained.dataset, users, targets, ends, filter_seen)
        found = evaluate_served(trained, split=split, settings=settings(filter_seen=filter_seen))
        expected = rank_metrics(ranks, (5, 10, 20))
        assert {name: found["metrics"][name] for name in expected} == expected


def test_long_and_short_histories_are_ranked_alike(trained: Served) -> None:
    length = 32
    config = dataclasses.replace(trained.config, data=dataclasses.replace(
        trained.config.data, length=length))
    encoder, params = build_encoder(config.encoder, dim=config.table.dim, length=length,
                                    causal=True, precision="f32", seed=0)
    served = dataclasses.replace(trained, config=config, encoder=encoder, params=params)
    users, targets, ends = choose_users(served.dataset, "test", None, 0)
    fitting = choose_shapes(served.reading, ends - np.asarray(served.dataset.offsets)[users])
    assert len(set(fitting.tolist())) == 2
    ranks = dense_ranks(dense_scores(served, ends, users), served.dataset, users, targets, ends,
                        True)
    found, again = (evaluate_served(served, settings=settings(batch=batch))
                    for batch in (512, 40))
    assert found == again
    expected = rank_metrics(ranks, (5, 10, 20))
    assert {name: found["metrics"][name] for name in expected} == expected


def test_the_seen_filter_changes_the_numbers_and_only_for_the_better(trained: Served) -> None:
    on, off = (evaluate_served(trained, settings=settings(filter_seen=choice))["metrics"]
               for choice in (True, False))
    assert on["mrr"] > off["mrr"] and on["hr@5"] >= off["hr@5"]


def test_coverage_and_popularity_are_those_of_the_dense_lists(trained: Served) -> None:
    dataset = trained.dataset
    users, _, ends = choose_users(dataset, "test", None, 0)
    scores = dense_scores(trained, ends, users)
    for row, user, end in zip(scores, users, ends, strict=True):
        row[dataset.items[dataset.offsets[user]:end]] = -np.inf
    lists = np.argsort(-scores, axis=1)[:, :5]
    found = evaluate_served(trained, settings=settings(ks=(5,), metric="ndcg@5"))["metrics"]
    assert found["coverage@5"] == pytest.approx(len(np.unique(lists)) / dataset.num_items)
    assert found["popularity@5"] == pytest.approx(dataset.popularity()[lists].mean())


def test_ties_count_against_the_target(trained: Served) -> None:
    constant = dataclasses.replace(trained, rows=jnp.zeros_like(trained.rows))
    found = evaluate_served(constant, settings=settings(filter_seen=False))["metrics"]
    assert found["mrr"] == pytest.approx(1 / trained.dataset.num_items)  # last, never first
    assert found["hr@20"] == 0


def test_the_protocol_is_stamped(trained: Served, tiny_training: dict[str, Any]) -> None:
    found = evaluate_served(trained, split="valid", settings=settings(filter_seen=False))
    protocol = found["protocol"]
    assert protocol["split"] == "valid" and protocol["split_hash"] == trained.dataset.split_hash
    assert protocol["split_rule"]["kind"] == "leave_one_out"
    assert protocol["seen_items_filtered"] is False
    assert protocol["ties"] == "against the target" and protocol["ranking"] == "full catalogue"
    assert protocol["candidates"] == trained.dataset.num_items
    assert protocol["users"] == len(trained.dataset.targets("valid")[0])
    assert found["step"] == tiny_training["best_step"] and found["seed"] == 3


def test_validation_during_training_is_evaluation_afterwards(
        trained: Served, tiny_training: dict[str, Any]) -> None:
    found = evaluate_served(trained, split="valid")
    assert found["metrics"][tiny_training["metric"]] == tiny_training["best"]


def naive_popularity_rank(dataset: Dataset, user: int, target: int, end: int,
                          filter_seen: bool) -> int:
    popularity = dataset.popularity()
    seen = set(dataset.items[dataset.offsets[user]:end].tolist()) if filter_seen else set()
    rank = 1
    for item in range(dataset.num_items):
        if item != target and item not in seen and popularity[item] >= popularity[target]:
            rank += 1
    return rank


@pytest.mark.parametrize("filter_seen", [True, False])
def test_the_popularity_baseline_equals_a_naive_count(trained: Served, filter_seen: bool) -> None:
    dataset = trained.dataset
    users, targets, ends = dataset.targets("test")
    found = popularity_ranks(dataset, users, targets, ends, filter_seen)
    expected = [naive_popularity_rank(dataset, user, target, end, filter_seen)
                for user, target, end in zip(users, targets, ends, strict=True)]
    assert found.tolist() == expected
    stamped = evaluate_served(trained, settings=settings(filter_seen=filter_seen), baseline=True)
    assert stamped["popularity_baseline"] == rank_metrics(np.array(expected), (5, 10, 20))


def test_the_model_has_learned_more_than_popularity(trained: Served) -> None:
    found = evaluate_served(trained, baseline=True)
    assert found["metrics"]["ndcg@10"] > 2 * found["popularity_baseline"]["ndcg@10"]


def test_a_limit_of_users_is_a_seeded_choice(trained: Served) -> None:
    dataset = trained.dataset
    everybody = choose_users(dataset, "test", None, 0)[0]
    first, again, other = (choose_users(dataset, "test", 10, seed)[0] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() == sorted(set(first.tolist()))
    assert len(first) == 10 and set(first) <= set(everybody) and first.tolist() != other.tolist()
    assert len(choose_users(dataset, "test", 10_000, 0)[0]) == len(everybody)


@pytest.mark.parametrize("split", SPLITS)
def test_cold_items_neither_compete_nor_are_asked_for(trained: Served, split: Any) -> None:
    popularity = trained.dataset.popularity()
    rare = np.flatnonzero(popularity <= np.sort(popularity)[12])  # call these cold
    without = dataclasses.replace(trained.dataset)
    cold = np.isin(np.arange(trained.dataset.num_items), rare)
    vars(without)["popularity"] = lambda: np.where(cold, 0, popularity)
    served = dataclasses.replace(trained, dataset=without)
    every, targets, ends = choose_users(trained.dataset, split, None, 0)
    warm = ~cold[targets]
    assert 0 < warm.sum() < len(warm)
    scores = dense_scores(trained, ends, every)
    scores[:, cold] = -np.inf
    ranks = dense_ranks(scores, trained.dataset, every, targets, ends, True)[warm]
    found = evaluate_served(served, split=split, settings=settings(filter_cold=True))
    expected = rank_metrics(ranks, (5, 10, 20))
    assert {name: found["metrics"][name] for name in expected} == expected
    assert found["protocol"]["users"] == warm.sum() and found["protocol"]["cold_items_filtered"]


def test_cut_offs_may_be_larger_than_the_catalogue(trained: Served) -> None:
    found = evaluate_served(trained, settings=settings(ks=(10, 1000)))["metrics"]
    assert found["hr@1000"] == 1.0 and 0 < found["coverage@1000"] <= 1
