"""What is measured is what is recommended: metrics from ranks are those of the lists, by every
protocol, and who is left out or missed is counted."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rec_jax import config
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.evaluate import evaluate_served, make_ranker
from rec_jax.inference.histories import iterate_tiles
from rec_jax.inference.protocol import (
    choose_panel,
    cold_items,
    repeat_share,
    repeats_line,
    seen_targets,
)
from rec_jax.inference.served import Served
from rec_jax.mesh import MeshConfig, make_mesh, row_sharding
from rec_jax.metrics import MISSED
from rec_jax.model.encoders.base import at_places
from rec_jax.model.rows import RowSource
from rec_jax.run import Run, RunConfig
from rec_jax.run_sections import EvaluateConfig
from rec_jax.tables import RowMap
from rec_jax.train import build

ITEMS, PADDED, LENGTH = 9, 12, 8
SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True)
class Small(Dataset):
    """A dataset in memory; its popularity is counted, not read."""

    def popularity(self) -> np.ndarray:
        parts = [self.items[start:end] for start, end in
                 zip(self.offsets[:-1], self.train_end, strict=True)]
        return np.bincount(np.concatenate(parts), minlength=self.num_items)


def small(users: list[tuple[list[int], int, int]], **meta: Any) -> Small:
    """A dataset of histories, each with the lengths of its training and validation part."""
    lengths = [len(items) for items, _, _ in users]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ends = np.array([(train, train + valid) for _, train, valid in users], np.int64).T
    ends = np.minimum(offsets[:-1] + ends, offsets[1:])
    about = {"num_users": len(users), "num_items": ITEMS, "split_hash": "0", "split": {}, **meta}
    return Small(Path("small"), about, np.concatenate([items for items, _, _ in users]).astype(
        np.int32), offsets, ends[0], ends[1])


def newest(params: Any, vectors: Any, inputs: Any, key: Any, hidden: Any, at: Any) -> Any:
    """An encoder whose query is the vector of the newest item, so that scores are exact."""
    return at_places(vectors, at)


newest.source = RowSource(0)  # type: ignore[attr-defined]


def serve(dataset: Dataset, rows: np.ndarray, settings: EvaluateConfig,
          dtype: Any = jnp.float32) -> Served:
    run = config.build(RunConfig, {"data": {"path": "small", "length": LENGTH}})
    padded = np.full((PADDED, rows.shape[1]), 9.0)  # padding would win, if it competed
    padded[:ITEMS] = rows
    return Served(Run(Path("run")), dataclasses.replace(run, evaluate=settings), dataset,
                  newest, {}, jnp.asarray(padded, dtype), 1)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Rankers of equal settings share their compiled function."""
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("rec_jax.inference.evaluate")
        patch.setattr(module, "_jitted", functools.cache(module._jitted))
        patch.setattr(build, "served", lambda state: state.weights)
        patch.setattr(build, "bias_of", lambda state: None)
        yield


def allowed(dataset: Dataset, settings: EvaluateConfig, user: int, end: int) -> set[int]:
    """Items that may be recommended to a user."""
    items = set(range(ITEMS))
    if settings.filter_seen:
        items -= set(dataset.items[dataset.offsets[user]:end].tolist())
    if settings.filter_cold:
        items &= set(np.flatnonzero(dataset.popularity()).tolist())
    return items


def ranked_list(scores: np.ndarray, candidates: set[int], last: int | None = None) -> list[int]:
    """Candidates by falling score, then rising id; `last` behind all that score as it does."""
    return sorted(candidates, key=lambda item: (-scores[item], item == last, item))


def metrics_of_lists(lists: list[list[int]], targets: list[int],
                     ks: tuple[int, ...]) -> dict[str, float]:
    places = [found.index(target) if target in found else None
              for found, target in zip(lists, targets, strict=True)]
    result = {}
    for k in ks:
        hits = [place for place in places if place is not None and place < k]
        result[f"hr@{k}"] = len(hits) / len(lists)
        result[f"ndcg@{k}"] = sum(1 / np.log2(place + 2) for place in hits) / len(lists)
        result[f"mrr@{k}"] = sum(1 / (place + 1) for place in hits) / len(lists)
    result["mrr"] = sum(1 / (place + 1) for place in places if place is not None) / len(lists)
    return result


histories = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7)
people = st.lists(st.tuples(histories, st.integers(0, 7), st.integers(0, 3)), min_size=1,
                  max_size=10)
protocols = st.builds(
    lambda ks, seen, rule, cold: EvaluateConfig(ks, seen, rule, cold, f"hr@{ks[0]}", batch=32),
    st.sampled_from([(1, 3, 20), (2, ITEMS), (2**40,)]), st.booleans(),
    st.sampled_from(["miss", "leave_out"]), st.booleans())
EVERYTHING = [(list(range(ITEMS)), ITEMS - 2, 1)] * 3 + [([*range(ITEMS), 3], ITEMS, 0)]


@hypothesis_settings(max_examples=60, deadline=None)
@given(people, st.integers(0, 2**32 - 1), protocols, st.sampled_from(SPLITS),
       st.sampled_from([jnp.float32, jnp.bfloat16]))
@example(EVERYTHING, 0, EvaluateConfig((20,), True, "miss", False, "mrr", 32), "test",
         jnp.float32)
@example([([0, 1, 2, 3, 0], 4, 0)], 0, EvaluateConfig((20,), True, "leave_out", False, "mrr", 32),
         "test", jnp.float32)
@example([([0, 1, 2], 2, 1), ([2, 0], 2, 0)], 0,  # cold items would stand before the target
         EvaluateConfig((1, 3, 20), True, "miss", True, "mrr", 32), "valid", jnp.float32)
def test_metrics_from_ranks_are_those_of_the_lists(
        users: list[tuple[list[int], int, int]], seed: int, protocol: EvaluateConfig, split: Any,
        dtype: Any) -> None:
    dataset = small(users)
    rows = np.random.default_rng(seed).integers(-2, 3, (ITEMS, 2)).astype(np.float64)
    served = serve(dataset, rows, protocol, dtype)

    asked, missed, out_seen, out_cold = [], 0, 0, 0
    for user, target, end in zip(*dataset.targets(split), strict=True):
        seen = target in dataset.items[dataset.offsets[user]:end]
        if protocol.filter_cold and dataset.popularity()[target] == 0:
            out_cold += 1
        elif protocol.filter_seen and seen and protocol.seen_targets == "leave_out":
            out_seen += 1
        else:
            missed += protocol.filter_seen and seen
            asked.append((int(user), int(target), int(end)))
    if not asked:
        with pytest.raises(InputError, match=r"has no(body| user)"):
            evaluate_served(served, split=split)
        return

    found = evaluate_served(served, split=split, baseline=True)
    json.dumps(found, allow_nan=False)
    counts = [found["protocol"][f"users{name}"]
              for name in ("", "_missed_seen", "_left_out_seen", "_left_out_cold")]
    assert counts == [len(asked), missed, out_seen, out_cold]

    targets = [target for _, target, _ in asked]
    scores = [rows @ rows[dataset.items[end - 1]] for _, _, end in asked]
    candidates = [allowed(dataset, protocol, user, end) for user, _, end in asked]
    lists = [ranked_list(*each) for each in zip(scores, candidates, targets, strict=True)]
    metrics = metrics_of_lists(lists, targets, protocol.ks)
    assert {name: found["metrics"][name] for name in metrics} == pytest.approx(metrics, abs=1e-12)

    # The lists of the same pass hold just what may be recommended, in the order of the scores.
    panel = choose_panel(dataset, split, protocol)
    assert list(zip(panel.users, panel.targets, panel.ends, strict=True)) == asked
    ranker = make_ranker(
        served.encoder, ITEMS, make_mesh(MeshConfig()), filter_seen=protocol.filter_seen,
        cold=cold_items(dataset, protocol), list_length=min(max(protocol.ks), ITEMS))
    for tiles, chosen in iterate_tiles(dataset, panel.users, panel.ends, panel.targets,
                                       reading=served.reading, batch=32):
        best = np.asarray(ranker(served.params, served.rows, tiles).best).reshape(-1, ITEMS)
        for row, number in zip(best, chosen.tolist(), strict=False):
            wanted = ranked_list(scores[number], candidates[number])
            assert row.tolist() == wanted + [-1] * (ITEMS - len(wanted))
    k = max(protocol.ks)
    shown = [item for each in candidates for item in each]
    assert found["metrics"][f"coverage@{k}"] == pytest.approx(len(set(shown)) / ITEMS)
    mean = found["metrics"][f"popularity@{k}"]
    assert mean == (pytest.approx(dataset.popularity()[shown].mean()) if shown else None)

    # Popularity and early stopping follow the same protocol.
    popular = [ranked_list(dataset.popularity(), *each)
               for each in zip(candidates, targets, strict=True)]
    assert found["popularity_baseline"] == pytest.approx(
        metrics_of_lists(popular, targets, protocol.ks), abs=1e-12)
    if split == "valid":
        validator = build.Validator(served.config, dataset, served.encoder,
                                    make_mesh(MeshConfig()))
        table = SimpleNamespace(row_map=RowMap(ITEMS), over=("items",))
        state: Any = SimpleNamespace(weights=(served.params, served.rows), items=table)
        assert validator(state) == pytest.approx(metrics, abs=1e-12)
        assert validator.misses == missed


def test_a_target_whose_score_is_no_number_is_in_no_list() -> None:
    dataset = small([([0, 1, 2, 3], 2, 1), ([4, 5, 6, 7], 2, 1)])
    rows = np.ones((ITEMS, 2))
    rows[3] = np.nan
    found = evaluate_served(serve(dataset, rows, EvaluateConfig((20,), metric="mrr")))
    assert found["metrics"]["hr@20"] == 0.5
    # The other one stands last of the six that may be recommended, as all tie or are NaN.
    assert found["metrics"]["mrr"] == pytest.approx(0.5 / 6)


def test_rows_on_several_devices_have_the_same_ranks_and_misses() -> None:
    dataset = small([*EVERYTHING, ([0, 1, 2, 3], 2, 1), ([4, 5, 4, 7], 2, 1)])
    rows = np.random.default_rng(0).integers(-2, 3, (ITEMS, 2)).astype(np.float64)
    served = serve(dataset, rows, EvaluateConfig())
    panel = choose_panel(dataset, "test", served.config.evaluate)
    ((tiles, _),) = iterate_tiles(dataset, panel.users, panel.ends, panel.targets,
                                  reading=served.reading, batch=32)
    answers = []
    for mesh in (make_mesh(MeshConfig()), make_mesh(MeshConfig(data=2, items=4))):
        ranker = make_ranker(served.encoder, ITEMS, mesh, filter_seen=True, list_length=ITEMS)
        held = jax.device_put(served.rows, row_sharding(mesh))
        answers.append([np.asarray(each) for each in ranker({}, held, tiles)])
    for alone, together in zip(*answers, strict=True):
        np.testing.assert_array_equal(alone, together)
    ranks = answers[0][0].reshape(-1)[:len(panel.users)]
    assert (ranks == MISSED).tolist() == panel.seen.tolist() and 0 < panel.seen.sum() < len(ranks)


REPEATS = [([0, 1, 2, 0], 2, 1), ([3, 4, 3, 5], 2, 1), ([6, 7, 8, 5], 2, 1), ([1], 1, 0)]


def test_targets_that_are_seen_are_found_in_any_order_and_piece(
        monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small(REPEATS)
    users, targets, ends = dataset.targets("test")
    for most in (1, 5, 1000):
        monkeypatch.setattr("rec_jax.inference.protocol._MOST", most)
        assert seen_targets(dataset, users, targets, ends).tolist() == [True, False, False]
        turned = [each[::-1] for each in (users, targets, ends)]
        assert seen_targets(dataset, *turned).tolist() == [False, False, True]


def test_a_limit_counts_users_that_are_not_left_out() -> None:
    dataset = small(REPEATS)
    settings = EvaluateConfig(seen_targets="leave_out")
    panel = choose_panel(dataset, "test", settings, limit=2)
    assert panel.users.tolist() == [1, 2] and panel.left_out_seen == 1
    assert not panel.seen.any()


def test_everybody_left_out_is_one_line_that_says_why() -> None:
    dataset = small([([0, 1, 0], 1, 1), ([2, 2, 2], 1, 1)])
    settings = EvaluateConfig(seen_targets="leave_out")
    with pytest.raises(InputError, match=r"nobody left to test on: of 2 users 2 are left out "
                                         r"because their target is in their history") as refusal:
        choose_panel(dataset, "test", settings)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=r"0 are left out because .* and 1 because it is cold"):
        choose_panel(small([([0, 1], 1, 1)]), "valid", EvaluateConfig(filter_cold=True))
    with pytest.raises(InputError, match="has no user to validate on"):
        choose_panel(small([([0], 1, 0)]), "valid", EvaluateConfig())


@pytest.mark.parametrize(("changes", "rule"), [
    ({}, "seen_targets = miss: each is a miss"),
    ({"seen_targets": "leave_out"}, "seen_targets = leave_out: their users are not evaluated"),
    ({"filter_seen": False}, "filter_seen = false: they are ranked like all others")])
def test_training_says_what_becomes_of_repeats(changes: Any, rule: str) -> None:
    settings = EvaluateConfig(**changes)
    dataset = small(REPEATS)
    line = repeats_line(dataset, settings, choose_panel(dataset, "valid", settings))
    assert line is not None and rule in line and "\n" not in line
    assert line.startswith("33.3% of validation and 33.3% of test targets repeat an item")
    if settings.seen_targets == "leave_out":  # of a part of those who stay the share is the same
        assert line == repeats_line(dataset, settings, choose_panel(dataset, "valid", settings, 1))
    unique = small([([0, 1, 2, 3], 2, 1)])
    assert repeats_line(unique, settings, choose_panel(unique, "valid", settings)) is None


def test_the_share_of_repeats_is_that_of_the_dataset_or_counted() -> None:
    assert repeat_share(small(REPEATS), "test") == pytest.approx(1 / 3)
    known = small(REPEATS, repeat_targets={"valid": 0.25, "test": 0.5})
    assert [repeat_share(known, split) for split in SPLITS] == [0.25, 0.5]
    assert repeat_share(small([([0], 1, 0)]), "test") == 0.0


@pytest.mark.parametrize("wrong", [{"seen_targets": "drop"}, {"users": 0}])
def test_wrong_settings_are_refused(wrong: Any) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=rf"evaluate\.{name} is .*; expected"):
        EvaluateConfig(**wrong)
