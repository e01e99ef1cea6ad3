"""Batches: each target once an epoch, users apart, and every step reproducible alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_jax.data.batches import Batch, BatchStream, prefetch
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError


def epoch_rows(stream: BatchStream, epoch: int = 0) -> Batch:
    """All rows of one epoch, stacked."""
    first = epoch * stream.rows_per_epoch
    steps = range(first // stream.rows, -(-(first + stream.rows_per_epoch) // stream.rows))
    batches = [stream.batch(step) for step in steps]
    skip = first - steps.start * stream.rows
    return {name: np.concatenate([batch[name] for batch in batches])
            [skip:skip + stream.rows_per_epoch] for name in batches[0]}


def segments(rows: Batch) -> Iterator[dict[str, np.ndarray]]:
    """Each segment of each row, after checking that the row is well formed."""
    for index in range(len(rows["items"])):
        row = {name: values[index] for name, values in rows.items()}
        number = row["segments"]
        count = number.max()
        filled = int((number > 0).sum())
        assert (number[:filled] > 0).all()  # empty positions come last
        assert (np.diff(number[:filled]) >= 0).all()
        assert set(number[:filled]) == set(range(1, count + 1))
        assert (row["targets"][filled:] == -1).all()
        assert (row["items"][filled:] == 0).all()
        assert (row["positions"][filled:] == 0).all()
        for which in range(1, count + 1):
            own = number == which
            part = {name: values[own] for name, values in row.items()}
            assert part["positions"].tolist() == list(range(own.sum()))
            assert (part["items"][1:] == part["targets"][:-1]).all()
            yield part


def expected(dataset: Dataset, length: int, window: str, split: str) -> Counter[tuple[int, ...]]:
    """The (inputs + last target) of every segment, by a plain loop."""
    found: Counter[tuple[int, ...]] = Counter()
    ends = {"train": dataset.train_end, "valid": dataset.valid_end, "test": dataset.offsets[1:]}
    for user in range(dataset.num_users):
        items = dataset.items[dataset.offsets[user]:ends[split][user]].tolist()
        while len(items) > 1:
            found[tuple(items[-(length + 1):])] += 1
            items = items[:-length] if window == "chunks" else []
    return found


def compose(part: dict[str, np.ndarray]) -> tuple[int, ...]:
    return (*part["items"].tolist(), int(part["targets"][-1]))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("window", ["last", "chunks"])
@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_holds_each_target_once(dataset: Dataset, pack: bool, window: Any,
                                         split: Any) -> None:
    stream = BatchStream(dataset, length=7, rows=4, pack=pack, window=window, split=split)
    wanted = expected(dataset, 7, window, split)
    for epoch in (0, 3):
        assert Counter(map(compose, segments(epoch_rows(stream, epoch)))) == wanted
    assert stream.targets_per_epoch == sum(len(key) - 1 for key in wanted.elements())
    if not pack:
        assert stream.rows_per_epoch == wanted.total()


@given(histories=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=15),
                          min_size=1, max_size=12).filter(
                              lambda made: any(len(items) == 2 or len(items) > 3
                                               for items in made)),
       length=st.integers(1, 6), rows=st.integers(1, 5), window=st.sampled_from(["last", "chunks"]),
       pack=st.booleans(), shuffle=st.booleans(), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_any_histories_are_packed_whole(tmp_path_factory: pytest.TempPathFactory, length: int,
                                        histories: list[list[int]], rows: int, window: Any,
                                        pack: bool, shuffle: bool, seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in histories])])
    end = offsets[1:]
    enough = np.diff(offsets) >= 3
    made = Dataset(tmp_path_factory.getbasetemp(),
                   {"num_users": len(histories), "num_items": 10,
                    "num_interactions": int(offsets[-1]), "split_hash": "x"},
                   np.concatenate(histories).astype(np.int32), offsets, end - 2 * enough,
                   end - enough)
    stream = BatchStream(made, length=length, rows=rows, window=window, pack=pack,
                         shuffle=shuffle, seed=seed)
    found = Counter(map(compose, segments(epoch_rows(stream, epoch=1))))
    assert found == expected(made, length, window, "train")


def test_a_user_with_one_item_trains_nothing(write_histories: Callable[..., Dataset]) -> None:
    stream = BatchStream(write_histories([["a"], ["b", "c"], ["d"]]), length=4, rows=1)
    rows = epoch_rows(stream)
    assert stream.targets_per_epoch == 1
    assert rows["segments"].tolist() == [[1, 0, 0, 0]]


def test_without_any_target_there_is_no_stream(write_histories: Callable[..., Dataset]) -> None:
    with pytest.raises(InputError, match="no user with two items in its train part"):
        BatchStream(write_histories([["a"], ["b"]]), length=4, rows=1)


def test_times_are_seconds_after_the_first_input(dataset: Dataset) -> None:
    stream = BatchStream(dataset, length=9, rows=4, times=True, shuffle=False)
    assert dataset.times is not None
    spans = set()
    for user in range(dataset.num_users):
        own = slice(dataset.offsets[user], dataset.train_end[user] - 1)
        items, times = dataset.items[own][-9:], dataset.times[own][-9:]
        spans.add((*items.tolist(), *(times - times[:1]).tolist()))
    for part in segments(epoch_rows(stream)):
        assert part["times"].dtype == np.int32
        assert (*part["items"].tolist(), *part["times"].tolist()) in spans


def test_a_time_too_far_from_the_first_stays_at_the_largest_number(dataset: Dataset) -> None:
    assert dataset.times is not None
    far = np.array(dataset.times) + 2**40 * (np.arange(len(dataset.times)) % 2)
    stream = BatchStream(dataclasses.replace(dataset, times=far), length=9, rows=4, times=True)
    assert next(stream)["times"].max() == 2**31 - 1 and next(stream)["times"].min() == 0


@pytest.mark.parametrize("window", ["last", "chunks"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("targets", ["self", "all"])
def test_own_targets_are_the_inputs_and_the_newest_item_is_one_of_them(
        dataset: Dataset, window: Any, pack: bool, targets: Any) -> None:
    stream = BatchStream(dataset, length=7, rows=4, window=window, pack=pack, targets=targets)
    wanted: Counter[tuple[int, ...]] = Counter()
    for user in range(dataset.num_users):
        items = dataset.items[dataset.offsets[user]:dataset.train_end[user]].tolist()
        items = items if len(items) > 1 or targets == "all" else []
        while items:
            wanted[tuple(items[-7:])] += 1
            items = items[:-7] if window == "chunks" else []
    rows = epoch_rows(stream, epoch=1)
    np.testing.assert_array_equal(rows["targets"], np.where(rows["segments"], rows["items"], -1))
    found: Counter[tuple[int, ...]] = Counter()
    for row, numbers in zip(rows["items"], rows["segments"], strict=True):
        for which in range(1, numbers.max() + 1):
            found[tuple(row[numbers == which].tolist())] += 1
    assert found == wanted


def test_of_a_user_with_one_item_it_is_a_label_where_all_are(
        write_histories: Callable[..., Dataset]) -> None:
    made = write_histories([["a"], ["b", "c"], ["d"]])
    assert BatchStream(made, length=4, rows=1, targets="self").targets_per_epoch == 2
    assert BatchStream(made, length=4, rows=1, targets="all").targets_per_epoch == 4


@pytest.mark.parametrize("pack", [True, False])
def test_batches_say_where_each_history_ends(dataset: Dataset, pack: bool) -> None:
    stream = BatchStream(dataset, length=40, rows=4, pack=pack, histories=True)
    most, seen = stream.histories_per_row, 0
    for step in range(stream.steps_per_epoch):
        batch = stream.batch(step)
        assert batch["histories"].shape == (4, most) and batch["histories"].dtype == np.int32
        for ends, numbers in zip(batch["histories"], batch["segments"], strict=True):
            count = numbers.max()
            seen = max(seen, count)
            wanted = [np.flatnonzero(numbers == which)[-1] for which in range(1, count + 1)]
            assert ends.tolist() == wanted + [-1] * (most - count)
    assert seen == most and (most > 1) == pack


def test_a_position_in_next_items_is_none_in_own_items(dataset: Dataset) -> None:
    state = BatchStream(dataset, length=10, rows=5).state()
    with pytest.raises(InputError, match="targets = None, not 'self'"):
        BatchStream(dataset, length=10, rows=5, targets="self").restore(state)


def test_epochs_differ_in_order_and_in_company(dataset: Dataset) -> None:
    stream = BatchStream(dataset, length=10, rows=4)
    first, second = epoch_rows(stream, 0), epoch_rows(stream, 1)
    assert not np.array_equal(first["items"], second["items"])
    shared = [{tuple(items) for items, number in zip(rows["items"].tolist(), rows["segments"],
                                                     strict=True) if number.max() > 1}
              for rows in (first, second)]
    assert len(shared[0]) > 10
    assert len(shared[0] & shared[1]) < 0.3 * len(shared[0])


def test_the_seed_decides_the_order(dataset: Dataset) -> None:
    def first(seed: int) -> list[Any]:
        return BatchStream(dataset, length=10, rows=8, seed=seed).batch(0)["items"].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_batches_have_one_shape_and_flow_over_the_end_of_an_epoch(dataset: Dataset) -> None:
    stream = BatchStream(dataset, length=10, rows=7)
    assert stream.rows_per_epoch % 7
    assert stream.steps_per_epoch == -(-stream.rows_per_epoch // 7)
    for batch in itertools.islice(stream, 2 * stream.steps_per_epoch):
        for values in batch.values():
            assert values.shape == (7, 10)
            assert values.dtype == np.int32
        assert (batch["segments"].max(axis=1) >= 1).all()


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_resuming_at_any_step_continues_to_the_bit(dataset: Dataset, step: int) -> None:
    stream = BatchStream(dataset, length=10, rows=5, seed=3, window="chunks")
    for _ in range(step):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    resumed = BatchStream(dataset, length=10, rows=5, seed=3, window="chunks")
    resumed.restore(state)
    assert resumed.step == step
    for _ in range(3):
        for name, values in next(stream).items():
            np.testing.assert_array_equal(values, next_of(resumed, name))
        resumed.seek(resumed.step + 1)


def next_of(stream: BatchStream, name: str) -> np.ndarray:
    return stream.batch(stream.step)[name]


def test_a_position_of_other_rewards_is_refused(
        write_histories: Callable[..., Dataset]) -> None:
    made = write_histories([[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 1]])
    path = made.folder / "values" / "reward.npy"
    path.parent.mkdir()
    np.save(path, np.ones(made.num_interactions, np.float32))

    def stream() -> BatchStream:
        return BatchStream(made, length=4, rows=1, values=("reward",))

    state = json.loads(json.dumps(stream().state(2)))
    stream().restore(state)
    stream().restore({name: state[name] for name in state if name != "values/reward"})  # older
    np.save(path, np.full(made.num_interactions, 2, np.float32))
    with pytest.raises(InputError, match="another values/reward than"):
        stream().restore(state)


def test_a_position_of_other_settings_is_refused(dataset: Dataset) -> None:
    state = BatchStream(dataset, length=10, rows=5).state()
    with pytest.raises(InputError, match="length = 10, not 11"):
        BatchStream(dataset, length=11, rows=5).restore(state)
    with pytest.raises(InputError, match="seed = 0, not 1"):
        BatchStream(dataset, length=10, rows=5, seed=1).restore(state)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_shares_make_the_same_batch_together(dataset: Dataset, count: int) -> None:
    whole = BatchStream(dataset, length=10, rows=6)
    shares = [BatchStream(dataset, length=10, rows=6, share=(index, count))
              for index in range(count)]
    for step in (0, 1, whole.steps_per_epoch):
        parts = [share.batch(step) for share in shares]
        for name, values in whole.batch(step).items():
            np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))


@pytest.mark.parametrize(("settings", "message"), [
    ({"length": 0, "rows": 2}, "expected at least 1"),
    ({"length": 5, "rows": 4, "share": (0, 3)}, "divides the rows"),
    ({"length": 5, "rows": 4, "share": (2, 2)}, "below the count"),
    ({"length": 5, "rows": 4, "window": "first"}, "expected 'last' or 'chunks'"),
    ({"length": 5, "rows": 4, "seed": -1}, "expected 0 or more"),
])
def test_impossible_settings_are_named(dataset: Dataset, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchStream(dataset, **settings)


def test_prefetch_keeps_order_and_ends() -> None:
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))


def test_prefetch_raises_errors_in_their_turn() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("torn page")

    values = prefetch(broken())
    assert next(values) == 1
    with pytest.raises(InputError, match="torn page"):
        next(values)


def test_prefetch_stops_its_thread_when_closed() -> None:
    before = threading.active_count()
    values = prefetch(itertools.count(), depth=2)
    assert next(values) == 0
    assert threading.active_count() == before + 1
    values.close()
    assert threading.active_count() == before
