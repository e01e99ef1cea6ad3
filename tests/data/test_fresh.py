"""A run that goes on trains on what the training part did not have before, each of it once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.fresh import ContinualConfig, first_targets
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.errors import InputError


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with a second period: some users are new in it, and some are not in it."""
    folder, random = tmp_path_factory.mktemp("grown"), np.random.default_rng(4)
    for period, users in enumerate((range(12), range(6, 18))):
        lines = ["user_id,item_id,time"]
        lines += [f"u{user},i{random.integers(20 + 10 * period)},{100 * period + place}"
                  for user in users for place in range(int(random.integers(1, 14)))]
        (folder / f"{period}.csv").write_text("\n".join(lines) + "\n")
        prepare(PrepareConfig(
            source=str(folder / f"{period}.csv"), out=str(folder / f"d{period}"),
            columns=Columns(time="time"), append=str(folder / "d0") if period else None))
    return Dataset.open(folder / "d1")


def targets_in(stream: BatchStream) -> Counter[tuple[int, int]]:
    """(user, item) of the targets of one epoch."""
    found: Counter[tuple[int, int]] = Counter()
    for row in range(stream.rows_per_epoch):
        batch = stream.batch(row)
        there = batch["targets"] >= 0
        assert (batch["segments"][there] > 0).all()
        found.update(zip(batch["users"][there].tolist(), batch["targets"][there].tolist(),
                         strict=True))
    return found


@pytest.mark.parametrize("replay", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("targets", "shift"), [("next", 1), ("self", 0)])
@pytest.mark.parametrize(("window", "length"), [("last", 40), ("last", 3), ("chunks", 3)])
def test_an_epoch_has_every_fresh_target_once(grown: Dataset, window: Any, length: int,
                                              targets: Any, shift: int, replay: float) -> None:
    first = first_targets(grown, ContinualConfig("run", 1, replay), seed=1)
    stream = BatchStream(grown, length=length, rows=1, window=window, targets=targets, users=True,
                         first=first)
    expected: Counter[tuple[int, int]] = Counter()
    assert grown.old_train_end is not None
    for user in range(grown.num_users):
        begin, end = int(grown.offsets[user]), int(grown.train_end[user])
        if end - begin < 2:
            continue
        begin += shift
        if first[user] > grown.offsets[user]:  # not replayed
            begin = max(begin, int(grown.old_train_end[user]))
        if window == "last":
            begin = max(begin, end - length)
        expected.update((user, int(item)) for item in grown.items[begin:end])
    assert targets_in(stream) == expected
    if replay == 1:
        whole = BatchStream(grown, length=length, rows=1, window=window, targets=targets,
                            users=True)
        assert targets_in(whole) == expected


def test_older_interactions_are_read(grown: Dataset) -> None:
    first = first_targets(grown, ContinualConfig("run", 1, 0.0), seed=1)
    stream = BatchStream(grown, length=40, rows=1, pack=False, users=True, first=first)
    batch = next(batch for batch in map(stream.batch, range(stream.rows_per_epoch))
                 if (batch["targets"] < 0)[batch["segments"] > 0].any())
    user = int(batch["users"][0, 0])
    end = grown.train_end[user] - 1
    size = int((batch["segments"] > 0).sum())
    assert batch["items"][0, :size].tolist() == grown.items[end - size:end].tolist()
    fresh = batch["targets"][0, :size] >= 0
    assert fresh[-1] and (np.diff(fresh.astype(int)) >= 0).all()


def test_a_position_of_other_targets_is_refused(grown: Dataset) -> None:
    def stream(replay: float) -> BatchStream:
        return BatchStream(grown, length=9, rows=2, first=first_targets(
            grown, ContinualConfig("run", 1, replay), seed=1))

    stream(0.3).restore(stream(0.3).state(5))
    with pytest.raises(InputError, match="saved with first"):
        stream(0.3).restore(stream(0.9).state(5))


def test_a_dataset_that_did_not_grow_is_refused(grown: Dataset) -> None:
    old = Dataset.open(Path(grown.folder).with_name("d0"))
    with pytest.raises(InputError, match="was not appended to a dataset"):
        first_targets(old, ContinualConfig("run", 1), seed=0)
    with pytest.raises(InputError, match="nothing in it is new"):
        old.targets("new")


def test_what_is_new_is_asked_after_all_before_it(grown: Dataset) -> None:
    users, targets, ends = grown.targets("new")
    expected = [(user, int(grown.items[place]), place) for user in range(grown.num_users)
                for place in range(int(grown.old_end[user]), int(grown.offsets[user + 1]))
                if place > grown.offsets[user]]
    assert list(zip(users.tolist(), targets.tolist(), ends.tolist(), strict=True)) == expected
    assert expected and grown.num_users > 12
