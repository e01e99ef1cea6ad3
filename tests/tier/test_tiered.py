"""The store of a table's rows, and the way between it and the cache."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import TrainingError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.row_map import spread
from rec_jax.tier.disk_store import DiskStore
from rec_jax.tier.store import HostStore, Leaf, RowStore
from rec_jax.tier.tiered import Closed
from rec_jax.train.tiers import tiered_table

COUNT, DIM = 700, 6
F32 = np.dtype(np.float32)


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


LEAVES = [Leaf((3,), F32), Leaf((), np.dtype(np.int32)), Leaf((2,), np.dtype(jnp.bfloat16))]


def stores(folder: Path) -> dict[str, RowStore]:
    """One of each kind; the disk's has segments of 7 records."""
    found: dict[str, RowStore] = {"host": HostStore(100, LEAVES),
                                  "disk": DiskStore(100, LEAVES, segment_bytes=7 * 32 + 1)}
    for store in found.values():
        store.open(folder)
    return found


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_a_store_gives_back_what_was_written_and_knows_what_was(kind: str, tmp_path: Path) -> None:
    store, random = stores(tmp_path)[kind], np.random.default_rng(0)
    expected = [np.zeros((100, *leaf.shape), leaf.dtype) for leaf in LEAVES]
    written = np.zeros(100, bool)
    for step in range(150):
        rows = random.permutation(100)[:random.integers(0, 30)]
        if step == 100:
            store.clear()
            written[:] = False
            for leaf in expected:
                leaf[...] = 0
        if step % 10 == 9:
            rows = rows[written[rows]]
            expected[1][rows] = random.integers(0, 99, len(rows))
            store.set(1, rows, expected[1][rows])
        else:
            for leaf in expected:
                leaf[rows] = random.normal(size=(len(rows), *leaf.shape[1:])) * 50
            written[rows] = True
            store.write(rows, [leaf[rows] for leaf in expected])
        asked = random.permutation(100)[:40]
        assert store.has(asked).tolist() == written[asked].tolist()
        for number, (found, leaf) in enumerate(zip(store.read(asked), expected, strict=True)):
            assert found.dtype == leaf.dtype and found.tobytes() == leaf[asked].tobytes()
            assert store.get(number, asked).tobytes() == leaf[asked].tobytes()
            found[...] = 1  # a copy
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_log_of_rows_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = stores(tmp_path)["disk"]
    assert isinstance(store, DiskStore)
    random = np.random.default_rng(1)
    for _ in range(100):
        rows = random.permutation(60)[:20]
        store.write(rows, [np.ones((20, *leaf.shape), leaf.dtype) for leaf in LEAVES])
        assert sum(one.count for one in store._segments.values()) <= 2 * 60 + 2 * 7 + 20
    store.close()


def test_a_full_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(tmp_path)["disk"]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        store.write(np.arange(2), [np.ones((2, *leaf.shape), leaf.dtype) for leaf in LEAVES])
    store.close()


def test_a_row_that_changed_on_the_disk_is_not_believed(tmp_path: Path) -> None:
    store = stores(tmp_path)["disk"]
    assert isinstance(store, DiskStore)
    rows = np.arange(5)
    store.write(rows, [np.ones((5, *leaf.shape), leaf.dtype) for leaf in LEAVES])
    (segment,) = store._segments.values()
    os.pwrite(segment.handle, b"\xff", 2 * 32 + 13)
    store.read(rows[[0, 1, 3, 4]])
    with pytest.raises(TrainingError, match=r"row 2 of a table on the disk is not as it was wri"):
        store.read(rows)
    os.ftruncate(segment.handle, 3 * 32)
    with pytest.raises(TrainingError, match=r"row 3 of a table on the disk is not as it was wri"):
        store.read(rows[3:4])
    store.close()


def test_rows_that_were_never_written_take_no_memory() -> None:
    before = resident()
    store = HostStore(10**8, [Leaf((64,), F32)])  # 24 GiB
    rows = np.arange(0, 10**8, 10**6)
    store.write(rows, [np.ones((100, 64), F32)])
    assert store.get(0, rows + 1).sum() == 0 and store.get(0, rows).sum() == 6400
    assert resident() - before < 64 * 2**20
    store.close()


def made(dtype: str = "f32", kind: str = "row_adam", shape: tuple[int, int] = (1, 1)):
    config = TableConfig(dim=DIM, dtype=dtype, optimizer=RowOptimizerConfig(kind=kind))
    mesh = make_mesh(MeshConfig(*shape))
    cache, tiered = tiered_table(config, COUNT, 5, mesh, name="items", over=("items",),
                                 row_map=spread(COUNT), slots=40)
    whole = init_table(config, COUNT, 5, mesh, optimizer=row_optimizer(config.optimizer),
                       row_map=spread(COUNT))
    return cache, tiered, whole


def everything(tiered) -> list[np.ndarray]:
    return [tiered.get(leaf, 0, tiered.store.total) for leaf in range(len(tiered.store.leaves))]


@pytest.mark.parametrize(("dtype", "shape"), [("f32", (1, 1)), ("bf16", (2, 2))])
def test_rows_that_were_never_written_are_those_of_a_new_table(dtype, shape) -> None:
    cache, tiered, whole = made(dtype, shape=shape)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves((whole.rows, whole.state))]
    for found, value in zip(everything(tiered), expected, strict=True):
        assert found.dtype == value.dtype and found.tobytes() == value.tobytes()
    ids = np.arange(3, 33, dtype=np.int32)
    planned = tiered.plan(ids, np.ones(30, bool))
    cache, places = tiered.enter(cache, tiered.load(planned))
    rows = np.asarray(spread(COUNT).rows(ids))
    assert sorted(np.concatenate([each.rows for each in planned.moves])) == sorted(rows)
    tiered.flush(cache)  # made on the device, and brought here
    assert tiered.store.has(rows).all()
    for found, value in zip(everything(tiered), expected, strict=True):
        assert found.tobytes() == value.tobytes()
    del places
    tiered.close()


def test_what_is_filled_in_is_there_and_what_is_as_new_takes_nothing() -> None:
    _, tiered, whole = made(kind="adam")
    values = [np.array(leaf) for leaf in jax.tree.leaves((whole.rows, whole.state))]
    random = np.random.default_rng(1)
    moved = random.permutation(len(values[0]))[:60]
    values[0][moved[:40]] += 1
    for leaf in values[1:]:
        leaf[moved[20:]] = random.integers(1, 9, leaf[moved[20:]].shape)
    for leaf, whole_leaf in reversed(list(enumerate(values))):  # the rows last, as nobody promises
        for first in range(0, len(whole_leaf), 100):
            tiered.fill(leaf, first, whole_leaf[first:first + 100])
    for found, value in zip(everything(tiered), values, strict=True):
        assert found.tobytes() == value.tobytes()
    assert sorted(np.flatnonzero(tiered.store.has(np.arange(tiered.store.total)))) == sorted(moved)
    tiered.close()


def test_ids_that_name_no_row_are_not_asked_for() -> None:
    _, tiered, _ = made()
    ids = np.array([5, 5, -1, COUNT, 9, 2**31 - 1], np.int32)
    planned = tiered.plan(ids, np.array([True, True, True, True, False, True]))
    assert planned.moves[0].rows.tolist() == [int(spread(COUNT).rows(np.array([5]))[0])]
    tiered.close()


def waiting(cache, tiered, store_write):
    """A table one step before a row is needed again that is on its way out; and that step."""
    tiered.store.write = store_write
    for first in (0, 30):  # of 40 slots: the second step turns rows of the first out
        ids = np.arange(first, first + 30, dtype=np.int32)
        cache, _ = tiered.enter(cache, tiered.load(tiered.plan(ids, np.ones(30, bool))))
    return tiered.plan(np.arange(30, dtype=np.int32), np.ones(30, bool))


def test_a_row_that_is_on_its_way_out_is_waited_for() -> None:
    cache, tiered, _ = made()
    may_write, write = threading.Event(), tiered.store.write

    def slow(rows, values):
        assert may_write.wait(60)
        write(rows, values)

    planned = waiting(cache, tiered, slow)
    assert planned.after == 1
    found: list = []
    thread = threading.Thread(target=lambda: found.append(tiered.load(planned)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not found
    may_write.set()
    thread.join(60)
    assert found[0].old[0].all()
    tiered.close()


def test_who_waits_for_a_row_hears_of_the_end_and_of_an_error() -> None:
    cache, tiered, _ = made()
    go_on = threading.Event()

    def stuck(rows, values):
        go_on.wait(60)

    planned, raised = waiting(cache, tiered, stuck), []

    def load() -> None:
        try:
            tiered.load(planned)
        except Closed as error:
            raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    with tiered._changed:
        tiered._closed = True
        tiered._changed.notify_all()
    thread.join(60)
    assert len(raised) == 1
    go_on.set()
    tiered.close()

    cache, tiered, _ = made()

    def broken(rows, values):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        tiered.load(waiting(cache, tiered, broken))
    tiered.close()
