"""Ids that come and go, against a plain Python account of the same rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.tier.admission import AdmissionConfig, Group, Sketch
from rec_jax.tier.dynamic_ids import SHARED, DynamicIds, DynamicIdsConfig
from rec_jax.tier.id_table import IdTable, first_to_go
from rec_jax.tier.live_draws import LiveDraws, nth_live
from rec_jax.tier.text_ids import text_ids


class Account:
    """The rules, an id at a time."""

    def __init__(self, config: DynamicIdsConfig) -> None:
        self.config, self.row, self.count, self.last = config, {}, {}, {}
        self.waits, self.waits_last = {}, {}
        self.free, self.end, self.now, self.gone = [], 1, None, set()

    def observe(self, ids: list[int], times: list[int]) -> list[int]:
        known = set(self.row)
        for one, time in zip(ids, times, strict=True):
            count, last = ((self.count, self.last) if one in known else
                           (self.waits, self.waits_last))
            count[one] = count.get(one, 0) + 1
            last[one] = max(last.get(one, time), time)
            self.now = time if self.now is None else max(self.now, time)
        for one in dict.fromkeys(ids):
            if one in known or len(self.row) == self.config.capacity:
                continue
            if self.waits[one] >= self.config.admission.count:
                self.row[one] = self.free.pop(0) if self.free else self.end
                self.end = max(self.end, self.row[one] + 1)
                self.count[one], self.last[one] = self.waits.pop(one), self.waits_last.pop(one)
        if self.config.admission.count == 1:  # nobody is counted apart
            self.waits, self.waits_last = {}, {}
        return [self.row.get(one, SHARED) for one in ids]

    def barrier(self) -> list[int]:
        config, gone = self.config, set()
        if config.age is not None and self.now is not None:
            edge = self.now - config.age
            gone = {one for one in self.row if self.last[one] < edge}
            self.waits = {k: v for k, v in self.waits.items() if self.waits_last[k] >= edge}
        first, then = ((self.last, self.count) if config.first == "time" else
                       (self.count, self.last))
        left = sorted(set(self.row) - gone, key=lambda one: (first[one], then[one], one))
        gone |= set(left[:max(0, len(left) - config.kept)])
        for one in gone:
            self.free = sorted([*self.free, self.row.pop(one)])
            del self.count[one], self.last[one]
        self.gone |= gone
        return sorted(gone)


CONFIGS = [
    DynamicIdsConfig(capacity=60, keep=0.7, age=3, first="time"),
    DynamicIdsConfig(capacity=40, keep=0.9, first="count", admission=AdmissionConfig(count=3)),
    DynamicIdsConfig(capacity=80, keep=0.5, age=2, admission=AdmissionConfig(count=2)),
]


def days(seed: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of a few popular ids and of some that change, with times that are not in order."""
    random = np.random.default_rng(seed)
    spread = random.integers(-2**62, 2**62, 400)
    found = []
    for day in range(count):
        places = np.concatenate([random.integers(0, 12, 30), 12 + 12 * day
                                 + random.integers(0, 40, 60)])
        places = random.permutation(places)
        found.append((spread[places], day + random.integers(-1, 2, len(places))))
    return found


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("native", [False, True])
def test_rows_and_tombstones_are_those_of_the_account(config: DynamicIdsConfig, native: bool,
                                                      tmp_path: Path) -> None:
    tried, account = DynamicIds(config, native=native), Account(config)
    readmitted = evicted = 0
    for number, (ids, times) in enumerate(days(7, 24)):
        before = set(account.row)
        for part in np.array_split(np.arange(len(ids)), 3):
            seen = tried.observe(ids[part], times[part])
            assert seen.rows.tolist() == account.observe(ids[part].tolist(), times[part].tolist())
            assert tried.live.ids[seen.new].tolist() == seen.ids.tolist()
        assert len(tried.live) == len(account.row) <= config.capacity
        readmitted += len(account.gone & (set(account.row) - before))
        gone = tried.barrier()
        assert sorted(gone.ids.tolist()) == account.barrier()
        assert not tried.find(gone.ids).any() and len(tried.live) <= config.kept
        evicted += len(gone.rows)
        live = tried.live.live()
        assert dict(zip(tried.live.ids[live].tolist(), live.tolist(), strict=True)) == account.row
        assert tried.live.counts[live].tolist() == [account.count[one]
                                                    for one in tried.live.ids[live].tolist()]
        assert tried.tombstones().tolist() == sorted(account.gone - set(account.row))
        if number % 8 == 4:
            tried.publish()
            account.gone = set()
        if number % 5 == 3:  # what goes on from a file, with the other kind of map, is the same
            tried.save(tmp_path / "ids")
            tried = DynamicIds.load(tmp_path / "ids", config, native=number % 2 == 0)
    assert evicted > 50 and readmitted


def test_two_runs_write_the_same_bytes_and_so_does_a_resumed_one(tmp_path: Path) -> None:
    config = CONFIGS[2]
    for name, kinds in (("one", (True, True)), ("other", (False, False)), ("resumed",
                                                                           (True, False))):
        ids = DynamicIds(config, native=kinds[0])
        for day, (batch, times) in enumerate(days(3, 12)):
            if name == "resumed" and day == 7:
                ids.save(tmp_path / "half")
                ids = DynamicIds.load(tmp_path / "half", config, native=kinds[1])
            ids.observe(batch, times)
            ids.barrier()
        ids.save(tmp_path / name)
    first = (tmp_path / "one").read_bytes()
    assert (tmp_path / "other").read_bytes() == first == (tmp_path / "resumed").read_bytes()


def test_damage_and_other_configs_are_one_line(tmp_path: Path) -> None:
    ids, path = DynamicIds(CONFIGS[1]), tmp_path / "ids"
    ids.observe(*days(1, 1)[0])
    ids.save(path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match="another config"):
        DynamicIds.load(path, CONFIGS[0])
    with pytest.raises(InputError, match="is missing"):
        DynamicIds.load(tmp_path / "none")
    for place in range(0, len(whole), 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        with pytest.raises(InputError, match="is damaged"):
            DynamicIds.load(path, CONFIGS[1])
    for wrong in (whole[:-1], whole + b"0", whole[:40], b""):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="is damaged"):
            DynamicIds.load(path)


def test_a_sketch_never_counts_too_little_and_is_of_its_seed() -> None:
    random = np.random.default_rng(5)
    config = AdmissionConfig(count=2, by="sketch", width=97, depth=3, seed=2**62)
    sketch, other, true = Sketch(config), Sketch(AdmissionConfig(
        count=2, by="sketch", width=97, depth=3, seed=1)), {}
    exact = differs = 0
    for _ in range(20):
        ids, counts = np.unique(random.integers(-60, 60, 40), return_counts=True)
        group = Group(ids, counts, counts * 0, counts * 0, counts * 0)
        found, elsewhere = sketch.add(group).counts, other.add(group).counts
        for one, count in zip(ids.tolist(), counts.tolist(), strict=True):
            true[one] = true.get(one, 0) + count
        expected = np.array([true[one] for one in ids.tolist()])
        assert (found >= expected).all() and (found <= sum(true.values())).all()
        exact += int((found == expected).sum())
        differs += int((found != elsewhere).sum())
    assert exact > 100 and differs > 20
    again = Sketch(config)
    again.restore(sketch.arrays())
    assert (again.add(group).counts == sketch.add(group).counts).all()


def test_a_sketch_admits_every_id_that_was_seen_often_enough(tmp_path: Path) -> None:
    config = DynamicIdsConfig(capacity=500, keep=1.0, admission=AdmissionConfig(
        count=3, by="sketch", width=4096, seed=1))
    ids = DynamicIds(config)
    stream = np.random.default_rng(0).zipf(1.3, 3000) % 700
    for part in np.array_split(stream, 10):
        ids.observe(part, part * 0)
        ids.save(tmp_path / "ids")
        ids = DynamicIds.load(tmp_path / "ids", config)
    found, counts = np.unique(stream, return_counts=True)
    assert ids.find(found[counts >= 3]).all() and not ids.find(found[counts < 3]).all()


def test_texts_with_one_hash_are_refused_wherever_the_first_one_is() -> None:
    texts = text_ids(["a", "b", "a", "\ud800", ""])
    assert len(set(texts.ids.tolist())) == 4 and texts.ids[0] == texts.ids[2]
    assert texts.checks[0] == texts.checks[2] and not np.isin(texts.checks, (0, -1)).any()
    assert texts.ids[0] == text_ids(["a"]).ids[0]
    one = np.array([5, 5, 6])
    for count, batch in ((1, [8, 9, 7]), (1, [8, 8, 7]), (3, [8, 8, 7])):
        ids = DynamicIds(DynamicIdsConfig(capacity=4, admission=AdmissionConfig(count=count)))
        if batch[0] == batch[1]:
            ids.observe(one, one, np.array([8, 8, 7]))
            before = ids.live.counts.copy()
            with pytest.raises(InputError, match="place 1 of a batch has the hash of another"):
                ids.observe(np.array([6, 5]), one[:2], np.array([7, 9]))
            assert (ids.live.counts == before).all()
            ids.observe(one, one, np.array([8, 8, 7]))
        else:
            with pytest.raises(InputError, match="has the hash of another"):
                ids.observe(one, one, np.array(batch))
            assert not len(ids.live)


def test_the_first_to_go_are_those_of_a_sort() -> None:
    random = np.random.default_rng(2)
    for _ in range(40):
        n = int(random.integers(1, 30))
        keys = [random.integers(0, 4, n), random.integers(-2, 2, n), random.permutation(n)]
        order = np.lexsort(keys[::-1])
        for count in (0, 1, n // 2, n):
            assert first_to_go(keys, count).tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("by", ["uniform", "count"])
def test_draws_are_of_live_rows_as_often_as_they_say(by: str) -> None:
    table, draws = IdTable(100), LiveDraws(by)
    none = draws.draw(table, 4, (0,))
    assert (none.rows == SHARED).all() and (none.log_expected == np.inf).all()
    counts = np.arange(1, 41)
    rows = table.add(np.arange(40) * 7, counts, counts, counts * 0)
    table.drop(rows[[0, 3, 4, 17, 38]])
    live = table.live()
    assert nth_live(table, np.arange(len(table))).tolist() == live.tolist()
    draws.refresh(table)
    drawn = draws.draw(table, 200_000, (1, 2))
    assert set(drawn.rows.tolist()) == set(live.tolist())
    share = counts[live - 1] / counts[live - 1].sum() if by == "count" else np.full(
        len(live), 1 / len(live))
    expected = np.zeros(100)
    expected[drawn.rows] = np.exp(drawn.log_expected)
    assert expected[live] == pytest.approx(200_000 * share, rel=1e-5)
    found = np.bincount(drawn.rows, minlength=100)[live]
    assert (np.abs(found - 200_000 * share) < 6 * np.sqrt(200_000 * share)).all()
    again = draws.draw(table, 200_000, (1, 2))
    assert (again.rows == drawn.rows).all()
