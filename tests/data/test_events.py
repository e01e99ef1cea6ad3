"""Types of events: kept beside the interactions, held out, counted as labels, and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import EVENT, FeatureConfig
from rec_jax.data.label_frequency import label_counts
from rec_jax.data.prepare import Columns, PrepareConfig, SplitConfig, prepare
from rec_jax.data.verify import verify
from rec_jax.errors import InputError

TYPES = ("view", "cart", "purchase")


def log_of(seed: int, users: int = 30) -> list[tuple[str, str, int, str]]:
    """(user, item, time, type), in no order of time."""
    random = np.random.default_rng(seed)
    rows = [(f"u{user}", f"i{random.integers(20)}", when, str(random.choice(TYPES)))
            for user in range(users) for when in random.permutation(random.integers(1, 12))]
    return [rows[place] for place in random.permutation(len(rows))]


def write(folder: Path, rows: list[tuple[str, str, int, str]]) -> str:
    folder.mkdir(exist_ok=True)
    lines = ["user_id,item_id,time,what", *(",".join(map(str, row)) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "log.csv")


def made(folder: Path, rows: list[tuple[str, str, int, str]], split: SplitConfig | None = None,
         name: str = "d", memory_rows: int = 8_000_000) -> Dataset:
    prepare(PrepareConfig(write(folder, rows), str(folder / name),
                          columns=Columns(time="time", event="what"), memory_rows=memory_rows,
                          split=split or SplitConfig()))
    return Dataset.open(folder / name)


def histories(rows: list[tuple[str, str, int, str]]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for user, item, _, kind in sorted(rows, key=lambda row: row[2]):
        found.setdefault(user, []).append((item, kind))
    return found


def read_back(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    ids, types = dataset.item_ids(), dataset.event_types
    assert dataset.events is not None
    return {user: [(ids[int(item)], types[code - 1]) for item, code in zip(
        dataset.items[start:end], dataset.events[start:end], strict=True)]
        for user, start, end in zip(dataset.user_ids(), dataset.offsets[:-1].tolist(),
                                    dataset.offsets[1:].tolist(), strict=True)}


@pytest.mark.parametrize("memory_rows", [8_000_000, 7])
def test_each_interaction_keeps_its_type(tmp_path: Path, memory_rows: int) -> None:
    rows = log_of(1)
    dataset = made(tmp_path, rows, memory_rows=memory_rows)
    assert read_back(dataset) == histories(rows)
    assert sorted(dataset.event_types) == sorted(TYPES)
    assert not verify(dataset.folder)["problems"]


def test_other_types_make_another_dataset(tmp_path: Path) -> None:
    rows = log_of(1)
    first = made(tmp_path, rows)
    changed = [*rows[:-1], (*rows[-1][:3], "cart" if rows[-1][3] == "view" else "view")]
    renamed = [(*row[:3], row[3].upper()) for row in rows]
    hashes = {made(tmp_path, each, name=f"d{number}").split_hash
              for number, each in enumerate((rows, changed, renamed))}
    assert len(hashes) == 3 and first.split_hash in hashes


def test_the_last_two_purchases_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    monkeypatch.setattr("rec_jax.data.arrays.CHUNK_ROWS", 5)  # users are cut between chunks
    rows = log_of(2)
    dataset = made(tmp_path, rows, SplitConfig(event="purchase"))
    assert dataset.meta["split"]["event"] == "purchase"
    seen = set()
    for number, (user, events) in enumerate(read_back(dataset).items()):
        start = int(dataset.offsets[number])
        bought = [place for place, (_, kind) in enumerate(events) if kind == "purchase"]
        expected = ((bought[-2], bought[-1]) if len(bought) > 1 and bought[-2] > 0
                    else (len(events), len(events)))
        assert (int(dataset.train_end[number]) - start,
                int(dataset.valid_end[number]) - start) == expected, user
        seen.add(expected == (len(events), len(events)))
    assert seen == {True, False}


@pytest.mark.parametrize("split", ["valid", "test", "new"])
def test_targets_of_one_type_are_the_first_of_their_period(tmp_path: Path, split: str) -> None:
    rows = log_of(3)
    dataset = made(tmp_path, rows, SplitConfig(kind="time", valid_quantile=0.4, test_quantile=0.7))
    if split == "new":
        with pytest.raises(InputError, match="was not appended"):
            dataset.targets("new", "cart")
        return
    assert dataset.events is not None
    begin, end = ((dataset.train_end, dataset.valid_end) if split == "valid"
                  else (dataset.valid_end, dataset.offsets[1:]))
    (code,) = dataset.event_codes(["cart"])
    expected = []
    for user in range(dataset.num_users):
        found = [place for place in range(int(begin[user]), int(end[user]))
                 if dataset.events[place] == code]
        if found and found[0] > dataset.offsets[user]:
            expected.append((user, int(dataset.items[found[0]]), found[0]))
    users, items, ends = dataset.targets(split, "cart")  # type: ignore[arg-type]
    assert list(zip(users.tolist(), items.tolist(), ends.tolist(), strict=True)) == expected
    assert 3 < len(expected) < dataset.num_users


def test_only_labels_of_the_asked_types_are_targets(tmp_path: Path) -> None:
    dataset = made(tmp_path, log_of(4))
    assert dataset.events is not None
    feature = (FeatureConfig("event"),)
    every, some = (BatchStream(dataset, length=6, rows=4, window="chunks", features=feature,
                               events=events) for events in ((), ("purchase", "cart")))
    codes = dataset.event_codes(["purchase", "cart"])
    for step in range(every.steps_per_epoch):
        one, other = every.batch(step), some.batch(step)
        for name in ("items", "segments", "positions", EVENT):
            np.testing.assert_array_equal(one[name], other[name])
        kept = other["targets"] >= 0
        np.testing.assert_array_equal(one["targets"][kept], other["targets"][kept])
        # A target is the input of the next place of its segment, whose type is known there.
        follows = (one["segments"][:, 1:] == one["segments"][:, :-1]) & (
            one["segments"][:, 1:] > 0)
        asked = np.isin(one[EVENT][:, 1:, 0], codes)
        np.testing.assert_array_equal(kept[:, :-1][follows], asked[follows])
    ends, starts = dataset.train_end, dataset.offsets[:-1]
    expected = np.zeros(dataset.num_items, int)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for place in range(start + 1, end):
            expected[dataset.items[place]] += dataset.events[place] in codes
    np.testing.assert_array_equal(label_counts(
        dataset, length=6, window="chunks", events=("purchase", "cart")), expected)
    for one, other in ((some, every), (every, some)):
        with pytest.raises(InputError, match="data position was saved with events"):
            one.restore(other.state())


def test_what_is_no_type_is_said_with_those_there_are(tmp_path: Path) -> None:
    rows = log_of(5)
    dataset = made(tmp_path, rows)
    with pytest.raises(InputError, match=r"event 'purchse' is no type of .*; it has .*; did you"):
        dataset.event_codes(["purchse"])
    with pytest.raises(InputError, match="event 'sold' is no type of"):
        made(tmp_path, rows, SplitConfig(event="sold"), name="d2")
    with pytest.raises(InputError, match=r"split\.event needs columns\.event"):
        PrepareConfig("log.csv", "d3", split=SplitConfig(event="view"))
    with pytest.raises(InputError, match=r"split\.kind is 'time'; expected leave_one_out"):
        SplitConfig(kind="time", event="view")
    many = [(user, item, when, f"t{place}") for place, (user, item, when, _) in
            enumerate(log_of(6, users=60))]
    assert len(many) > 255
    with pytest.raises(InputError, match="more than 255 types of events"):
        made(tmp_path, many, name="d4")
    prepare(PrepareConfig(write(tmp_path, rows), str(tmp_path / "plain"),
                          columns=Columns(time="time")))
    plain = Dataset.open(tmp_path / "plain")
    assert plain.events is None and plain.event_types == []
    with pytest.raises(InputError, match="keeps no types of events"):
        BatchStream(plain, length=4, rows=2, features=(FeatureConfig("event"),))
    with pytest.raises(InputError, match=r"keeps no types .*prepare it with columns\.event"):
        BatchStream(plain, length=4, rows=2, events=("view",))


def test_types_go_with_their_interactions_into_a_split_by_chance(tmp_path: Path) -> None:
    rows = log_of(8)
    found = read_back(made(tmp_path, rows, SplitConfig(kind="random")))
    assert {user: sorted(events) for user, events in found.items()} == {
        user: sorted(events) for user, events in histories(rows).items()}


def test_nothing_is_appended_to_types(tmp_path: Path) -> None:
    dataset = made(tmp_path, log_of(9))
    with pytest.raises(InputError, match="append: types of events cannot be appended to"):
        prepare(PrepareConfig(str(tmp_path / "log.csv"), str(tmp_path / "more"),
                              append=str(dataset.folder),
                              columns=Columns(time="time", event="what")))


def test_an_event_without_a_type_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*log_of(7), ("u1", "i1", 99, "")]
    with pytest.raises(InputError, match="no what"):
        prepare(PrepareConfig(write(tmp_path, rows), str(tmp_path / "d"), max_bad_share=0.0,
                              columns=Columns(time="time", event="what")))
