"""What evaluation asks with is what training read: queries in tiles are those of batches."""

from __future__ import annotations

import numpy as np
import pytest

from rec_jax.data.attributes import BEGIN, BeginConfig
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import EVENT, QUERY, FeatureConfig, Read
from rec_jax.data.item_vectors import write_item_vectors
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.data.queries import texts_in
from rec_jax.inference.histories import Reading, iterate_tiles

LENGTH, WIDTH = 20, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, random = tmp_path_factory.mktemp("tiles"), np.random.default_rng(4)
    lines, table = ["user_id,item_id,time,event,text"], ["user_id,kind"]
    for user in range(25):
        lines += [f"u{user},,{when},query,text {random.integers(6)}" if random.random() < 0.4 else
                  f"u{user},i{random.integers(9)},{when},a,"
                  for when in np.sort(random.integers(0, 30, random.integers(8, 40))).tolist()]
        table.append(f"u{user},{user % 3}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "users.csv").write_text("\n".join(table) + "\n")
    prepare(PrepareConfig(str(folder / "log.csv"), str(folder / "d"),
                          columns=Columns(time="time", event="event", query="text")))
    dataset = Dataset.open(folder / "d")
    texts = texts_in(dataset)
    texts.vectors_folder.mkdir()
    write_item_vectors(texts, "text", [random.standard_normal((
        texts.num_items, WIDTH)).astype(np.float32)], np.ones(texts.num_items, bool), WIDTH,
        {"source": {"kind": "file"}})
    return dataset


@pytest.mark.parametrize("places", [0, 2])
def test_a_tile_is_what_training_read(dataset: Dataset, places: int) -> None:
    features: tuple[Read, ...] = (FeatureConfig("event"), FeatureConfig("query", "text"))
    if places:
        features += (BeginConfig(str(dataset.folder.parent / "users.csv"), ("kind",),
                                 places=places),)
    stream = BatchStream(dataset, length=LENGTH, rows=1, pack=False, times=not places,
                         features=features)
    # Of each user all places before the last interaction of training, which is their last label.
    ends = np.asarray(dataset.train_end) - 1
    users = np.flatnonzero(ends > dataset.offsets[:-1])
    reading = Reading(LENGTH, times=not places, features=features)
    asked: dict[bytes, int] = {}
    for tiles, chosen in iterate_tiles(dataset, users, ends[users], None, reading=reading,
                                       batch=8):
        for number in range(len(chosen)):
            at = divmod(number, tiles.items.shape[1])
            count = int(tiles.segments[at].sum())
            assert tiles.last[at] == count - 1 and tiles.features is not None
            parts = [tiles.items[at], *(tiles.features[path][at] for path in sorted(
                tiles.features))] + ([] if tiles.times is None else [tiles.times[at]])
            key = b"".join(part[:count].tobytes() for part in parts)
            asked[key] = asked.get(key, 0) + 1
            start, end = dataset.offsets[users[chosen[number]]], ends[users[chosen[number]]]
            seen = slice(*tiles.seen_offsets[at[0], at[1]:at[1] + 2])
            np.testing.assert_array_equal(tiles.seen_items[at[0], seen], dataset.items[start:end])
    read: dict[bytes, int] = {}
    for step in range(stream.rows_per_epoch):
        batch = {name: value[0] for name, value in stream.batch(step).items()}
        count = int(batch["segments"].sum())
        bare = batch[QUERY][:count, 0] > 0
        assert not batch["items"][:count][bare].any()
        if places:
            assert (batch[BEGIN][:places, 0] > 0).all() and not bare[:places].any()
        # A label is the item behind its place; a query has none in front of it.
        after = np.append(batch["items"][1:count], batch["targets"][count - 1])
        np.testing.assert_array_equal(batch["targets"][:count],
                                      np.where(np.append(bare[1:], False) | (
                                          np.arange(count) < places - 1), -1, after))
        names = [EVENT, *([BEGIN] if places else []), QUERY]
        parts = [batch["items"], *(batch[path] for path in sorted(names))] + (
            [] if places else [batch["times"]])
        key = b"".join(part[:count].tobytes() for part in parts)
        read[key] = read.get(key, 0) + 1
    assert read == asked and len(read) > 15
