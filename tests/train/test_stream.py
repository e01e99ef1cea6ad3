"""A stream of users and items that come and go: its steps, its rows, what goes on from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest

from rec_jax.errors import InputError
from rec_jax.inference.deltas import apply_deltas, write_deltas
from rec_jax.inference.export import load_embeddings
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import ITEMS, USERS, RowOptimizerConfig, TableConfig
from rec_jax.tables.new_rows import first_of_ids
from rec_jax.tier.admission import AdmissionConfig
from rec_jax.tier.dynamic_ids import DynamicIdsConfig
from rec_jax.tier.live_draws import LiveDraws
from rec_jax.train.stream import Stream, StreamConfig

CONFIG = StreamConfig(
    table=TableConfig(dim=4, init_scale=0.5, optimizer=RowOptimizerConfig("adagrad")),
    users=DynamicIdsConfig(capacity=30, keep=0.8, age=2),
    items=DynamicIdsConfig(capacity=24, keep=0.75, admission=AdmissionConfig(count=2)),
    positions=8, negatives=24, draw="count", rate=0.1, seed=3)
"""One for all tests, which share its compiled step."""


def day(number: int, count: int = 44) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users and items of a day; some of both are of that day and the next ones alone."""
    random = np.random.default_rng(number)
    users = random.integers(0, 10, count) + 4 * number
    items = (users % 2) * 2**40 + random.integers(0, 9, count) + 3 * number
    return users, items, np.full(count, number)


def state_of(stream: Stream) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(stream.state)]


def same(one: Stream, other: Stream) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(state_of(one), state_of(other), strict=True))


def test_a_step_is_that_of_the_formula_and_new_rows_begin_by_their_ids() -> None:
    stream = Stream(CONFIG)
    items = np.array([7, 7, 9, 9, 11, 12, 7, 9])  # 11 and 12 are seen once, and read row 0
    users = np.arange(100, 108)
    tables = {name: np.array(table.rows) for name, table in stream.state.tables.items()}
    learnt = stream.learn(users, items, users * 0)
    assert learnt.new == {USERS: 8, ITEMS: 2} and len(learnt.loss) == 1
    assert stream.ids[ITEMS].find(items).tolist() == [1, 1, 2, 2, 0, 0, 1, 2]
    for name, ids in ((USERS, users), (ITEMS, np.array([7, 9]))):
        tables[name][1:1 + len(ids)] = first_of_ids(3, name, ids, dim=4, scale=0.5)
    drawn = LiveDraws("uniform").draw(stream.ids[ITEMS].live, 24, (3, 0))
    label = stream.ids[ITEMS].find(items)

    q, w = tables[USERS][1:9], tables[ITEMS]
    own, others = np.sum(q * w[label], axis=1), q @ w[drawn.rows].T - drawn.log_expected
    others = np.where(drawn.rows == label[:, None], -np.inf, others)
    share = np.exp(np.c_[own, others])
    share /= share.sum(axis=1, keepdims=True)
    assert learnt.loss[0] == pytest.approx(-np.log(share[:, 0]).mean(), rel=1e-5)
    grads = {name: np.zeros_like(table) for name, table in tables.items()}
    to_own, to_others = (share[:, :1] - 1) / 8, share[:, 1:] / 8
    grads[USERS][1:9] = to_own * w[label] + to_others @ w[drawn.rows]
    np.add.at(grads[ITEMS], label, to_own * q)
    np.add.at(grads[ITEMS], drawn.rows, to_others.T @ q)
    for name, table in stream.state.tables.items():
        root = np.sqrt(np.mean(np.square(grads[name]), axis=1, keepdims=True))
        moved = np.where(root > 0, grads[name] / np.where(root > 0, root, 1), 0)
        np.testing.assert_allclose(table.rows, tables[name] - 0.1 * moved, atol=1e-5)


def test_rows_come_and_go_with_their_state() -> None:
    stream, reused = Stream(CONFIG), 0
    for number in range(7):
        before = {name: (table.live.ids.copy(), set(table.live.ids[table.live.live()].tolist()))
                  for name, table in ((n, stream.ids[n]) for n in (USERS, ITEMS))}
        learnt = stream.learn(*day(number))
        assert np.isfinite(learnt.loss).all()
        for name, (rows, ids) in before.items():
            live = stream.ids[name].live
            now = live.live()
            old = rows[now[now < len(rows)]]
            reused += int((live.ids[now][now < len(rows)] != old).sum())
            assert learnt.new[name] == len(set(live.ids[now].tolist()) - ids)
        gone = stream.barrier()
        for name, evicted in gone.items():
            table, ids = stream.state.tables[name], stream.ids[name]
            assert len(ids.live) <= ids.config.kept
            for leaf in jax.tree.leaves((table.rows, table.state)):
                assert not np.asarray(leaf)[evicted.rows].any()
            assert np.array_equal(stream.rows_of(name, evicted.ids),
                                  np.repeat(np.asarray(table.rows[:1]), len(evicted.ids), axis=0))
            live = ids.live.live()
            assert (np.asarray(table.state)[live] > 0).all()
    assert reused > 20
    new = np.array([12345])
    row = stream.ids[USERS].observe(new, np.array([7])).new
    stream._give(USERS, row, new)
    assert np.array_equal(stream.rows_of(USERS, new), first_of_ids(3, USERS, new, dim=4, scale=0.5))
    for leaf in jax.tree.leaves(stream.state.tables[USERS].state):
        assert not np.asarray(leaf)[row].any()


def test_a_run_again_and_one_that_goes_on_have_the_same_bits(tmp_path: Path) -> None:
    whole, again = Stream(CONFIG), Stream(CONFIG, native=False)
    for stream in (whole, again):
        stream.learn(*day(0))
    for number in range(1, 6):
        for stream in (whole, again):
            stream.barrier()
            if stream is again and number in (2, 4):
                saved = stream.save(tmp_path / "run")
                again = stream = Stream(CONFIG, native=number == 2)
                assert stream.resume(tmp_path / "run") == saved == 6 * number
            stream.learn(*day(number))
    assert same(whole, again) and whole.steps == again.steps == 36
    losses = [again.learn(*day(5)).loss.mean() for _ in range(9)]
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(InputError, match="behind a barrier"):
        whole.save(tmp_path / "run")
    with pytest.raises(InputError, match="another config"):
        Stream(dataclasses.replace(CONFIG, rate=0.2)).resume(tmp_path / "run")
    with pytest.raises(InputError, match="no checkpoints"):
        Stream(CONFIG).resume(tmp_path / "none")
    with pytest.raises(InputError, match="8 users, 7 items"):
        whole.learn(np.arange(8), np.arange(7), np.arange(8))


def test_a_copy_that_serves_follows_and_no_longer_finds_who_is_gone(tmp_path: Path) -> None:
    stream, copy, gone_in_all = Stream(CONFIG), tmp_path / "copy", 0
    for number in range(5):
        stream.learn(*day(number))
        stream.barrier()
        if not number:
            stream.publish(copy)
            continue
        before = set(load_embeddings(copy).ids.to_list())
        gone = stream.publish(tmp_path / f"v{number}")
        about = write_deltas(tmp_path / f"v{number}", copy, tmp_path / f"d{number}")
        apply_deltas(tmp_path / f"d{number}", copy)
        found = load_embeddings(copy)
        assert about["gone"] == len(before & set(map(str, gone.tolist())))
        assert not set(map(str, gone.tolist())) & set(found.ids.to_list())
        ids = found.ids.cast(pl.Int64).to_numpy()
        assert np.array_equal(np.sort(ids), np.sort(
            stream.ids[ITEMS].live.ids[stream.ids[ITEMS].live.live()]))
        assert np.array_equal(found.vectors, stream.rows_of(ITEMS, ids))
        gone_in_all += about["gone"]
    assert gone_in_all > 5


@pytest.mark.slow
def test_rows_are_those_of_any_mesh(tmp_path: Path) -> None:
    one, cut = Stream(CONFIG), Stream(CONFIG, make_mesh(MeshConfig(data=2, items=2)))
    for number in range(3):
        for stream in (one, cut):
            stream.learn(*day(number))
            stream.barrier()
    for name in (USERS, ITEMS):
        for ours, theirs in zip(one.ids[name].live.arrays().values(),
                                cut.ids[name].live.arrays().values(), strict=True):
            assert np.array_equal(ours, theirs)
    for ours, theirs in zip(state_of(one), state_of(cut), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    cut.save(tmp_path / "run")
    back: Any = Stream(CONFIG)
    back.resume(tmp_path / "run")
    assert same(back, cut)
