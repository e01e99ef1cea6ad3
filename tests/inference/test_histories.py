"""Histories as tiles: which items, where the query is, and what an encoder reads besides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.histories import (
    TILE,
    Reading,
    Tiles,
    TileShape,
    choose_shapes,
    iterate_tiles,
    make_tiles,
    tile_shapes,
)

LENGTH = 6
HISTORIES = [np.arange(10, 10 + count, dtype=np.int32) for count in (1, 4, 5, 6, 7, 20)]
TIMES = [1_700_000_000 + np.cumsum(np.arange(len(items))) for items in HISTORIES]


def tiles(reading: Reading, times: list[np.ndarray] | None = None) -> Tiles:
    return make_tiles(HISTORIES, None, group=1, shape=TileShape(TILE, LENGTH), reading=reading,
                      capacity=64, times=times)


@pytest.mark.parametrize("user", range(len(HISTORIES)))
def test_the_newest_item_is_asked_and_nothing_is_hidden(user: int) -> None:
    made = tiles(Reading(LENGTH))
    recent = HISTORIES[user][-LENGTH:]
    last = made.last[0, user]
    assert made.items[0, user, :last + 1].tolist() == recent.tolist()
    assert made.segments[0, user].tolist() == [1] * len(recent) + [0] * (LENGTH - len(recent))
    assert made.hidden is None and made.times is None


@pytest.mark.parametrize("user", range(len(HISTORIES)))
def test_a_hidden_place_stands_behind_the_newest_item(user: int) -> None:
    made = tiles(Reading(LENGTH, hidden_next=True))
    recent = HISTORIES[user][-(LENGTH - 1):]  # the place itself needs room
    last = made.last[0, user]
    assert last == len(recent) and made.items[0, user, :last].tolist() == recent.tolist()
    assert made.segments[0, user].tolist() == [1] * (last + 1) + [0] * (LENGTH - 1 - last)
    assert made.hidden is not None and np.flatnonzero(made.hidden[0, user]).tolist() == [last]
    first, end = made.seen_offsets[0, user:user + 2]
    assert made.seen_items[0, first:end].tolist() == HISTORIES[user].tolist()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("user", range(len(HISTORIES)))
def test_times_count_from_the_first_item_that_is_read(user: int, hidden: bool) -> None:
    made = tiles(Reading(LENGTH, hidden_next=hidden, times=True), TIMES)
    recent = TIMES[user][-(LENGTH - hidden):]
    assert made.times is not None and made.times.dtype == np.int32
    found = made.times[0, user, :len(recent)]
    assert found.tolist() == (recent - recent[0]).tolist()


def test_unused_places_are_empty_users() -> None:
    made = tiles(Reading(LENGTH, hidden_next=True, times=True), TIMES)
    assert made.items.shape == (1, TILE, LENGTH)
    assert not made.segments[0, len(HISTORIES):].any()
    assert not made.items[0, len(HISTORIES):].any()


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return Dataset.open(tiny_dataset)


def test_times_of_users_are_those_of_their_items(dataset: Dataset) -> None:
    assert dataset.times is not None
    users, targets, ends = dataset.targets("test")
    reading = Reading(LENGTH, times=True)
    seen: list[int] = []
    for made, chosen in iterate_tiles(dataset, users, ends, targets, reading=reading, batch=8):
        assert made.times is not None
        for place, number in enumerate(chosen.tolist()):
            user, end = users[number], ends[number]
            own = dataset.times[max(dataset.offsets[user], end - LENGTH):end]
            found = made.times.reshape(-1, LENGTH)[place, :len(own)]
            assert found.tolist() == (own - own[0]).tolist()
        seen += chosen.tolist()
    assert seen == list(range(len(users)))


def test_shorter_histories_have_tiles_of_more_users() -> None:
    assert tile_shapes(200) == [
        (32, 200), (40, 150), (64, 100), (80, 75), (128, 50), (256, 25)]
    # Nothing below sixteen places.
    assert tile_shapes(50) == [(32, 50), (40, 38), (64, 25), (80, 19)]
    assert tile_shapes(6) == [(32, 6)]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_history_is_in_the_shortest_tile_that_holds_it(hidden: bool) -> None:
    counts = np.array([0, 24, 25, 26, 50, 51, 199, 200, 5000])
    found = choose_shapes(Reading(200, hidden_next=hidden), counts)
    assert found.tolist() == [5, 5, 4 if hidden else 5, 4, 3 if hidden else 4, 3, 0, 0, 0]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("batch", [1, 100, 2**31 - 1])
def test_tiles_of_all_shapes_hold_every_user_once(dataset: Dataset, hidden: bool,
                                                  batch: int) -> None:
    users, targets, ends = dataset.targets("test")
    reading = Reading(24, hidden_next=hidden)
    seen: list[int] = []
    shapes = set()
    for made, chosen in iterate_tiles(dataset, users, ends, targets, reading=reading,
                                      batch=batch):
        groups, room, length = made.items.shape
        shapes.add((room, length))
        assert made.used.sum() == -(-len(chosen) // room) and len(made.used) == groups
        assert made.targets.reshape(-1)[:len(chosen)].tolist() == targets[chosen].tolist()
        for row, number in zip(made.items.reshape(-1, length), chosen.tolist(), strict=False):
            start, end = int(dataset.offsets[users[number]]), int(ends[number])
            assert row[:end - start].tolist() == dataset.items[start:end].tolist()
        seen += chosen.tolist()
    assert sorted(seen) == list(range(len(users))) and shapes == {(32, 24), (40, 18)}


def test_a_dataset_without_times_has_none_to_read(dataset: Dataset) -> None:
    users, targets, ends = dataset.targets("test")
    without = dataclasses.replace(dataset, times=None)
    with pytest.raises(InputError, match=r"has no times; prepare it with columns\.time"):
        next(iterate_tiles(without, users, ends, targets, reading=Reading(LENGTH, times=True),
                           batch=8))
    assert next(iterate_tiles(without, users, ends, targets, reading=Reading(LENGTH), batch=8))
