"""Queries in a log: kept beside the interactions, and places of histories where they are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax import tasks
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_arrays import open_arrays
from rec_jax.data.dataset_check import out_of_bounds
from rec_jax.data.features import EVENT, QUERY, FeatureConfig
from rec_jax.data.item_vectors import write_item_vectors
from rec_jax.data.label_frequency import label_counts
from rec_jax.data.prepare import (
    Columns,
    Filters,
    PrepareConfig,
    SplitConfig,
    Withheld,
    prepare,
)
from rec_jax.data.queries import Query, Timeline, open_timeline, texts_in
from rec_jax.data.verify import verify
from rec_jax.errors import InputError

WIDTH = 3
COLUMNS = Columns(time="time", event="what", query="text")
Row = tuple[str, str, int, str, str]
"""user, item, time, type, text."""


def log_of(seed: int, users: int = 30) -> list[Row]:
    """Rows in no order of time, of which a third are queries; times are often the same."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(users):
        for when in random.integers(0, 8, random.integers(1, 16)).tolist():
            if random.random() < 0.35:
                rows.append((f"u{user}", "", when, "query", f"text {random.integers(9)}"))
            else:
                kind = str(random.choice(["view", "purchase"]))
                rows.append((f"u{user}", f"i{random.integers(20)}", when, kind, ""))
    return [rows[place] for place in random.permutation(len(rows))]


def write(path: Path, rows: list[Row]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["user_id,item_id,time,what,text", *(
        ",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def made(folder: Path, rows: list[Row], name: str = "d", **how: Any) -> Dataset:
    source = write(folder / "log.csv", rows)
    prepare(PrepareConfig(source, str(folder / name), **{"columns": COLUMNS, **how}))
    return Dataset.open(folder / name)


def histories(rows: list[Row]) -> dict[str, list[tuple[str, str]]]:
    """By user, what was done in order: (item, type), or (text, "query")."""
    found: dict[str, list[tuple[str, str]]] = {}
    for user, item, _, kind, text in sorted(rows, key=lambda row: row[2]):
        found.setdefault(user, []).append((text if kind == "query" else item, kind))
    return {user: events for user, events in found.items()
            if any(kind != "query" for _, kind in events)}


def give_vectors(dataset: Dataset) -> np.ndarray:
    """Vectors of the texts of its queries, called `text`."""
    texts = texts_in(dataset)
    vectors = np.random.default_rng(1).standard_normal((texts.num_items, WIDTH)).astype(np.float32)
    texts.vectors_folder.mkdir()
    write_item_vectors(texts, "text", [vectors], np.ones(len(vectors), bool), WIDTH,
                       {"source": {"kind": "file"}})
    return vectors


def read_back(dataset: Dataset, timeline: Timeline) -> dict[str, list[tuple[str, str]]]:
    ids, types, texts = dataset.item_ids(), dataset.event_types, texts_in(dataset).item_ids()
    assert dataset.queries is not None and dataset.events is not None
    found: dict[str, list[tuple[str, str]]] = {}
    for user, name in enumerate(dataset.user_ids()):
        at = timeline.find(np.arange(timeline.offsets[user], timeline.offsets[user + 1]))
        found[name] = [
            (texts[int(dataset.queries.texts[query])], "query") if query >= 0 else
            (ids[int(dataset.items[place])], types[dataset.events[place] - 1])
            for query, place in zip(at.query.tolist(), at.position.tolist(), strict=True)]
    return found


@pytest.mark.parametrize("memory_rows", [8_000_000, 7])
def test_a_query_stands_where_it_was_made(tmp_path: Path, memory_rows: int,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.arrays.CHUNK_ROWS", 5)  # users are cut between chunks
    rows = log_of(1)
    dataset = made(tmp_path, rows, memory_rows=memory_rows)
    give_vectors(dataset)
    timeline = open_timeline(dataset, "text")
    assert read_back(dataset, timeline) == histories(rows)
    assert dataset.meta["queries"]["types"] == ["query"] and timeline.only_type
    assert not verify(dataset.folder)["problems"]
    assert {entry["name"] for entry in verify(dataset.folder)["files"]} >= {
        "queries.npy", "query_times.npy", "query_vectors/text.npy"}


@pytest.mark.parametrize("how", [
    {}, {"split": SplitConfig("time", valid_quantile=0.5, test_quantile=0.8)},
    {"split": SplitConfig(event="purchase")}, {"withheld": Withheld(0.2)},
    {"filters": Filters(user_core=3, item_core=3, duplicates="last")},
    {"filters": Filters(duplicates="first")}])
def test_all_else_is_as_if_there_were_none(tmp_path: Path, how: dict[str, Any],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.arrays.CHUNK_ROWS", 7)
    rows = log_of(2)
    # Users are numbered as the source names them, so that an item comes first of each.
    order = list(dict.fromkeys(row[0] for row in rows))
    rows = [(user, "i0", 0, "view", "") for user in order] + rows
    dataset = made(tmp_path, rows, **how)
    plain = made(tmp_path, [row for row in rows if row[3] != "query"], "plain", **{
        **how, "columns": Columns(time="time", event="what")})
    for name in ("items", "offsets", "train_end", "valid_end", "times", "withheld"):
        one, other = getattr(dataset, name), getattr(plain, name)
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert dataset.item_ids().to_list() == plain.item_ids().to_list()
    assert dataset.user_ids().to_list() == plain.user_ids().to_list()
    np.testing.assert_array_equal(dataset.popularity(), plain.popularity())
    for name in ("repeat_share", "num_valid", "num_test"):
        assert dataset.meta[name] == plain.meta[name]
    assert dataset.split_hash != plain.split_hash and plain.queries is None
    # Each query stands behind as many of its user's interactions as are left before it.
    give_vectors(dataset)
    timeline = open_timeline(dataset, "text")
    asked = {user: [text for text, kind in events if kind == "query"]
             for user, events in histories(rows).items()}
    found = {user: [text for text, kind in events if kind == "query"]
             for user, events in read_back(dataset, timeline).items()}
    assert found == {user: asked[user] for user in found} and any(found.values())
    if not how:
        assert read_back(dataset, timeline) == histories(rows)


def test_workers_make_the_same_dataset(tmp_path: Path) -> None:
    rows = log_of(3)
    parts = tmp_path / "parts"
    for number in range(3):
        write(parts / f"{number}.csv", rows[number::3])
    one, other = (PrepareConfig(str(parts), str(tmp_path / name), columns=COLUMNS)
                  for name in ("one", "two"))
    prepare(one)
    with tasks.processes(2) as workers:
        prepare(other, tasks=workers)
    assert (Dataset.open(one.out).meta["hashes"] == Dataset.open(other.out).meta["hashes"])
    assert "queries" in Dataset.open(one.out).meta["hashes"]


@pytest.mark.parametrize(("window", "length", "pack"), [
    ("last", 5, True), ("chunks", 4, True), ("last", 9, False)])
def test_a_batch_has_them_as_inputs_and_never_as_targets(
        tmp_path: Path, window: Any, length: int, pack: bool) -> None:
    dataset = made(tmp_path, log_of(4))
    vectors = give_vectors(dataset)
    timeline = open_timeline(dataset, "text")
    stream = BatchStream(dataset, length=length, rows=3, window=window, pack=pack, times=True,
                         features=(FeatureConfig("event"), FeatureConfig("query", "text")))
    code = int(dataset.event_codes(["query"])[0])
    assert dataset.queries is not None and dataset.times is not None
    # Of each user the places up to the last interaction of training, and what each predicts.
    expected = []
    for user in range(dataset.num_users):
        last = int(dataset.train_end[user]) - 1
        if last < dataset.offsets[user]:
            continue
        place = last + int(np.sum(np.asarray(dataset.queries.positions) <= last))
        at = timeline.find(np.arange(timeline.offsets[user], place + 1))
        whole = [(int(query), int(position)) for query, position in zip(*at, strict=True)]
        assert whole[-1][0] < 0
        count = len(whole) - 1
        starts = ([max(0, count - length)] if window == "last" else
                  [max(0, stop - length) for stop in range(count, 0, -length)])
        stops = [count] if window == "last" else list(range(count, 0, -length))
        expected += [tuple(whole[start:stop + 1]) for start, stop in zip(starts, stops, strict=True)
                     if stop > start]
    found = []
    for step in range(-(-stream.rows_per_epoch // 3)):
        batch = stream.batch(step)
        for row in range(3):
            if step * 3 + row >= stream.rows_per_epoch:
                continue
            for segment in range(1, int(batch["segments"][row].max()) + 1):
                own = batch["segments"][row] == segment
                found.append({name: values[row][own] for name, values in batch.items()})
    assert len(found) == len(expected) > 10
    labels = np.zeros(dataset.num_items, int)
    keys = {}
    for pieces in expected:
        inputs, after = pieces[:-1], pieces[1:]
        items = tuple(0 if query >= 0 else int(dataset.items[at]) for query, at in inputs)
        targets = tuple(-1 if query >= 0 else int(dataset.items[at]) for query, at in after)
        rows = np.stack([np.append(1, vectors[dataset.queries.texts[query]]) if query >= 0
                         else np.zeros(WIDTH + 1) for query, _ in inputs])
        types = tuple(code if query >= 0 else int(dataset.events[at]) for query, at in inputs)
        when = [int(timeline.queries.times[query]) if query >= 0 else int(dataset.times[at])
                for query, at in inputs]
        key = (items, targets, types, tuple(np.array(when) - when[0]),
               rows.astype(np.float32).tobytes())
        keys[key] = keys.get(key, 0) + 1
        for target in targets:
            labels[target] += target >= 0
    for piece in found:
        key = (tuple(piece["items"].tolist()), tuple(piece["targets"].tolist()),
               tuple(piece[EVENT][:, 0].tolist()), tuple(piece["times"].tolist()),
               piece[QUERY].tobytes())
        keys[key] = keys.get(key, 0) - 1
    assert not any(keys.values())
    np.testing.assert_array_equal(labels, label_counts(
        dataset, length=length, window=window, timeline=timeline))
    state = stream.state()
    assert state["queries"] == timeline.hash
    with pytest.raises(InputError, match="data position was saved with queries"):
        BatchStream(dataset, length=length, rows=3, window=window, pack=pack).restore(state)


def test_ends_of_histories_hold_the_queries_before_the_target(tmp_path: Path) -> None:
    dataset = made(tmp_path, log_of(5))
    give_vectors(dataset)
    timeline = open_timeline(dataset, "text")
    users, items, ends = dataset.targets("test")
    places = timeline.ends(users, ends)
    at = timeline.find(places)
    assert (at.query < 0).all()
    np.testing.assert_array_equal(dataset.items[at.position], items)
    np.testing.assert_array_equal(at.position, ends)
    assert (timeline.find(places - 1).query >= 0).any()
    every = np.arange(dataset.num_users)
    np.testing.assert_array_equal(timeline.ends(every, np.asarray(dataset.offsets[1:])),
                                  timeline.offsets[1:])


def test_what_is_no_query_is_what_it_was(tmp_path: Path) -> None:
    rows = log_of(6)
    # A text beside an item is that of an interaction, and is not read.
    beside = [(*row[:4], "text 1") if row[3] == "view" else row for row in rows]
    one, other = made(tmp_path, rows), made(tmp_path, beside, "beside")
    assert one.split_hash == other.split_hash
    # A row with neither, and a query of nobody, are bad rows; blanks are no text.
    for bad, said in ((("u1", "", 3, "view", "  "), "no item_id"),
                      (("", "", 3, "query", "a text"), "no user_id"),
                      (("u1", "", "", "query", "a text"), "no time")):
        with pytest.raises(InputError, match=said):
            made(tmp_path, [*rows, bad], "bad", max_bad_share=0.0)  # type: ignore[list-item]
    # Somebody who only searched is nobody's history.
    more = made(tmp_path, [*rows, ("new", "", 3, "query", "text 1")], "more")
    assert "new" not in more.user_ids().to_list() and more.split_hash == one.split_hash
    none = made(tmp_path, [row for row in rows if row[3] != "query"], "none")
    assert none.queries is None and "no row has a text in 'text'" in none.meta["notes"][0]


def test_ratings_are_of_interactions_alone(tmp_path: Path) -> None:
    lines = ["user_id,item_id,time,stars,text"]
    for user in range(6):
        lines += [f"u{user},i{place},{place},{1 + place % 3}," for place in range(5)]
        lines += [f"u{user},,{3},,somewhere", f"u{user},i9,9,0,"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(
        str(tmp_path / "log.csv"), str(tmp_path / "d"), filters=Filters(min_rating=1),
        columns=Columns(time="time", rating="stars", query="text")))
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.rating_values == [1.0, 2.0, 3.0] and dataset.num_interactions == 30
    assert dataset.queries is not None
    np.testing.assert_array_equal(dataset.queries.positions, 4 + 5 * np.arange(6))


def test_refusals_are_one_line(tmp_path: Path) -> None:
    rows = log_of(7)
    dataset = made(tmp_path, rows)
    feature = (FeatureConfig("query", "text"),)
    with pytest.raises(InputError, match=r"has no query vectors 'text'.*embed --what queries"):
        BatchStream(dataset, length=4, rows=2, features=feature)
    give_vectors(dataset)
    with pytest.raises(InputError, match=r"event 'query' of .* is that of queries alone"):
        BatchStream(dataset, length=4, rows=2, features=feature, events=("query",))
    with pytest.raises(InputError, match=r"event 'query' of .* is that of queries alone"):
        BatchStream(dataset, length=4, rows=2, events=("query", "view"))
    for wrong in ({"targets": "self"}, {"first": np.asarray(dataset.offsets[:-1])}):
        with pytest.raises(InputError, match="queries stand between items that predict"):
            BatchStream(dataset, length=4, rows=2, features=feature, **wrong)  # type: ignore[arg-type]
    plain = made(tmp_path, [row for row in rows if row[3] != "query"], "plain",
                 columns=Columns(time="time"))
    with pytest.raises(InputError, match="has no queries; expected one that was prepared"):
        BatchStream(plain, length=4, rows=2, features=feature)
    with pytest.raises(InputError, match=r"a split by chance knows no order"):
        PrepareConfig("a", "b", columns=COLUMNS, split=SplitConfig("random"))
    with pytest.raises(InputError, match="which is the column of the user or of the item"):
        Columns(query="item_id")
    with pytest.raises(InputError, match="append: queries cannot be appended to"):
        made(tmp_path, rows, "more", append=str(plain.folder), columns=Columns(
            time="time", query="text"))
    with pytest.raises(InputError, match="feature of kind 'query' needs `name`"):
        FeatureConfig("query")
    lines = [" ".join(row[:2]) for row in rows if row[1]]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="has neither times nor ratings nor types of events nor"):
        prepare(PrepareConfig(str(tmp_path / "pairs.txt"), str(tmp_path / "p"), format="pairs",
                              columns=Columns(query="text")))


def test_a_typed_history_has_the_vectors_of_known_texts(tmp_path: Path) -> None:
    dataset = made(tmp_path, log_of(8))
    vectors = give_vectors(dataset)
    timeline = open_timeline(dataset, "text")
    text = str(texts_in(dataset).item_ids()[2])
    own = np.arange(WIDTH)
    found = timeline.rows_of([None, Query(text), Query("what nobody searched", own)])
    np.testing.assert_array_equal(found, np.float32(
        [[0] * (WIDTH + 1), [1, *vectors[2]], [1, *own]]))
    with pytest.raises(InputError, match="nobody searched 'elsewhere' in"):
        timeline.rows_of([Query("elsewhere")])
    for wrong in (np.arange(WIDTH + 1), np.full(WIDTH, np.nan)):
        with pytest.raises(InputError, match=r"the vector of query 'x' is .*expected \[3\]"):
            timeline.rows_of([Query("x", wrong)])


def test_positions_that_leave_their_user_are_damage(tmp_path: Path) -> None:
    dataset = made(tmp_path, log_of(9))
    arrays = open_arrays(dataset.folder, dataset.meta)
    assert not list(out_of_bounds(dataset.meta, arrays, dataset.folder))
    positions = np.array(arrays["query_positions"])
    for place, value in ((0, positions[-1]), (-1, -1)):
        changed = positions.copy()
        changed[place] = value
        assert any("query_positions.npy" in line for line in out_of_bounds(
            dataset.meta, {**arrays, "query_positions": changed}, dataset.folder))
