"""Codes of side features in batches and tiles are those of a plain loop over the interactions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import config
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import (
    Feature,
    FeatureConfig,
    find_features,
    planned_features,
    read_codes,
    vocabularies,
)
from rec_jax.data.prepare import Columns, ItemFeature, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.histories import Reading, iterate_tiles
from rec_jax.run import RunConfig

TAGS, RATING, GAP = (FeatureConfig("item_category", "tags"), FeatureConfig("rating"),
                     FeatureConfig("time_gap"))
HOST = (TAGS, RATING)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 users of 30 items with times, ratings and up to three tags an item."""
    folder = tmp_path_factory.mktemp("tagged")
    random = np.random.default_rng(3)
    tags = [" ".join(f"t{tag}" for tag in random.permutation(5)[:count])
            for count in random.integers(0, 4, 30)]
    lines = ["user,item,time,stars,tags"]
    for user in range(60):
        for when in range(int(random.integers(1, 15))):
            item = int(random.integers(0, 30))
            lines.append(f"u{user},i{item},{when * 50},{random.integers(1, 6)},{tags[item]}")
    (folder / "log.csv").write_text("\n".join(lines))
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                          columns=Columns("user", "item", "time", "stars"),
                          item_features=(ItemFeature("tags", separator=" "),)))
    return Dataset.open(folder / "made")


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("targets", ["next", "self"])
def test_a_batch_has_the_codes_of_its_inputs(tagged: Dataset, pack: bool, targets: Any) -> None:
    """A user's segment is found by its items and its next target, its codes by a loop."""
    stream = BatchStream(tagged, length=9, rows=4, pack=pack, targets=targets, times=True,
                         features=(*HOST, GAP))
    plain = BatchStream(tagged, length=9, rows=4, pack=pack, targets=targets, times=True)
    assert tagged.ratings is not None
    windows = {}
    ends = tagged.train_end
    for begin, end in zip(tagged.offsets[:-1].tolist(), ends.tolist(), strict=True):
        last = end - (targets == "next")
        for first in range(begin, last):
            key = (*tagged.items[first:last].tolist(), *tagged.items[last:end].tolist())
            windows.setdefault(key, []).append(tagged.ratings[first:last].tolist())
    seen = 0
    for _ in range(stream.steps_per_epoch):
        batch = next(stream)
        for name, values in next(plain).items():
            np.testing.assert_array_equal(batch.pop(name), values)
            batch[f"plain {name}"] = values
        assert {name for name in batch if name.startswith("features")} == {
            "features/tags", "features/rating"}
        segments, items = batch["plain segments"], batch["plain items"]
        for name in ("features/tags", "features/rating"):
            assert batch[name].dtype == np.int32
            assert not batch[name][segments == 0].any()
        used = segments > 0
        np.testing.assert_array_equal(batch["features/tags"][used],
                                      tagged.item_features["tags"][items[used]])
        for row in range(4):
            for number in range(1, segments[row].max() + 1):
                own = segments[row] == number
                key = items[row][own].tolist()
                if targets == "next":
                    key.append(int(batch["plain targets"][row][own][-1]))
                assert batch["features/rating"][row][own][:, 0].tolist() in windows[tuple(key)]
                seen += 1
    assert seen > 30


@pytest.mark.parametrize("hidden_next", [False, True])
def test_a_tile_has_the_codes_of_the_newest_items(tagged: Dataset, hidden_next: bool) -> None:
    reading = Reading(6, hidden_next=hidden_next, features=HOST)
    users, targets, ends = tagged.targets("test")
    assert tagged.ratings is not None
    done = 0
    for tiles, chosen in iterate_tiles(tagged, users, ends, targets, reading=reading, batch=32):
        tags, ratings = (tiles.features[path].reshape(-1, 6, width)
                         for path, width in (("features/tags", 3), ("features/rating", 1)))
        for place, user in enumerate(chosen):
            start, end = int(tagged.offsets[users[user]]), int(ends[user])
            start = max(start, end - reading.room)
            size = end - start
            np.testing.assert_array_equal(
                tags[place, :size], tagged.item_features["tags"][tagged.items[start:end]])
            np.testing.assert_array_equal(ratings[place, :size, 0], tagged.ratings[start:end])
            assert not tags[place, size:].any() and not ratings[place, size:].any()
            done += 1
    assert done == len(users) > 32


def test_a_history_from_elsewhere_has_unknown_ratings(tagged: Dataset) -> None:
    found = read_codes(HOST, tagged, np.array([3, 4]), None)
    assert found["features/rating"].tolist() == [[0], [0]]
    np.testing.assert_array_equal(found["features/tags"], tagged.item_features["tags"][3:5])


def test_features_have_the_sizes_of_the_dataset(tagged: Dataset) -> None:
    assert find_features((*HOST, GAP), tagged) == (
        Feature("item_category", "features/tags", 5, 3), Feature("rating", "features/rating", 5),
        Feature("time_gap", "features/time_gap", 0))
    assert [feature.path for feature in planned_features((*HOST, GAP))] == [
        "features/tags", "features/rating", "features/time_gap"]


def test_vocabularies_agree_only_where_codes_mean_the_same(tagged: Dataset) -> None:
    found = vocabularies((*HOST, GAP), tagged)
    assert set(found) == {"features/tags", "features/rating"}
    other = dataclasses.replace(tagged, meta={**tagged.meta, "ratings": [1, 2, 3, 4, 9]})
    assert vocabularies(HOST, other) != vocabularies(HOST, tagged)


@pytest.mark.parametrize(("feature", "lacks", "message"), [
    (FeatureConfig("item_category", "tag"), {}, "keeps no such attribute of its items; it has "
                                                "'tags'; did you mean 'tags'"),
    (TAGS, {"item_features": {}}, "'tags': .* it has none"),
    (GAP, {"times": None}, "'time_gap': .* has no times; prepare it with columns.time"),
    (RATING, {"ratings": None}, "'rating': .* has no ratings"),
])
def test_what_a_dataset_lacks_is_named(tagged: Dataset, feature: FeatureConfig, lacks: Any,
                                       message: str) -> None:
    dataset = dataclasses.replace(tagged, **lacks)
    for ask in (lambda: find_features([feature], dataset),
                lambda: BatchStream(dataset, length=4, rows=1, features=[feature]),
                lambda: next(iterate_tiles(dataset, *(np.zeros(1, int),) * 3, batch=1,
                                           reading=Reading(4, features=(feature,))))):
        with pytest.raises(InputError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("item_category", ""), ("rating", "stars")])
def test_a_name_is_for_an_attribute(kind: Any, name: str) -> None:
    with pytest.raises(InputError, match="expected one for 'item_category' and 'query' alone"):
        FeatureConfig(kind, name)


def test_two_features_of_one_name_are_refused() -> None:
    same = {"features": [{"kind": "rating"}, {"kind": "item_category", "name": "rating"}]}
    with pytest.raises(InputError, match="'rating' is given twice"):
        config.build(RunConfig, {"data": {"path": "x"}, **same})


def test_features_come_back_from_a_saved_config(tmp_path: Path) -> None:
    made = config.build(RunConfig, {"data": {"path": "x"}, "features": [
        {"kind": "item_category", "name": "tags"}, {"kind": "time_gap"}]})
    assert made.features == (TAGS, GAP)
    config.save(made, tmp_path / "config.toml")
    assert config.load(RunConfig, tmp_path / "config.toml") == made
