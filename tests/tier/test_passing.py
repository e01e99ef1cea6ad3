"""Full softmax over a table that passes by in parts: the bits of one that lies on the device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import MeanSoFar, make_step, modes_of, new_state, tables_of
from test_same_bits import leaves, trained_elsewhere

from rec_jax.errors import TrainingError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import Encoder
from rec_jax.objectives import masked_item, next_item
from rec_jax.tables import RowMap, RowOptimizerConfig, TableConfig
from rec_jax.tables.table import padded_size
from rec_jax.tier.part_store import PAGE, DiskParts, HostParts, PartStore, _aligned
from rec_jax.tier.store import Leaf
from rec_jax.train.mode import Setting
from rec_jax.train.passing_step import PassingStep
from rec_jax.train.state import to_items
from rec_jax.train.step import place_batch
from rec_jax.train.tiers import Tiers, passing_table, tiered_table

COUNT, DIM, LENGTH, ROWS, STEPS = 800, 8, 5, 4, 4
MESH = make_mesh(MeshConfig())
RATE = optax.constant_schedule(3e-2)
OBJECTIVES: dict[str, Any] = {
    "next": next_item.Config(backend="xla", z_loss=1e-3),
    "native": next_item.Config(scale=2.0),
    "masked": masked_item.Config(backend="xla", softcap=3.0),
}


class Case(NamedTuple):
    """part: rows of a part, of 1,536."""

    optimizer: str
    dtype: str
    objective: str
    part: int
    where: str
    micro: int = 1
    tied: bool = True


def batches(micro: int):
    random = np.random.default_rng(0)
    shape = (micro, ROWS, LENGTH)
    for _ in range(STEPS):
        items = random.integers(0, COUNT, (*shape[:2], LENGTH + 1)).astype(np.int32)
        there = np.broadcast_to(np.arange(LENGTH) < LENGTH - 1, shape)
        yield {"items": np.where(there, items[..., :-1], 0),
               "targets": np.where(there, items[..., 1:], -1), "segments": there.astype(np.int32),
               "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)}, ROWS


def made(case: Case):
    """Config, arguments of a step, its setting, and a function that makes the first state."""
    config = TableConfig(dim=DIM, dtype=cast(Any, case.dtype), tied=case.tied, part=case.part,
                         optimizer=RowOptimizerConfig(kind=cast(Any, case.optimizer)))
    encoder = cast(Encoder, Hiding() if case.objective == "masked" else MeanSoFar())
    params = {"kernel": jnp.eye(DIM) + 0.1, **({"hidden": jnp.ones(DIM) / 3}
                                               if case.objective == "masked" else {})}
    optimizer, objective = optax.adam(1e-2), OBJECTIVES[case.objective]
    setting = Setting(encoder, objective, tables_of(config), modes_of(config, "streamed"), MESH,
                      jnp.float32)
    return (config, optimizer, setting, lambda: new_state(
        params, optimizer, config, "streamed", COUNT, MESH, row_map=RowMap(COUNT)))


class Hiding(MeanSoFar):
    """With a learned vector in the place of hidden inputs."""

    def __call__(self, params: Any, vectors: jax.Array, inputs: Any, key: Any, hidden: Any = None
                 ) -> jax.Array:
        if hidden is not None:
            vectors = jnp.where(hidden[..., None], params["hidden"], vectors)
        return super().__call__(params, vectors)


def on_device(case: Case) -> tuple[dict[str, bytes], list[float]]:
    config, optimizer, setting, start = made(case)
    step = make_step(setting.encoder, setting.objective, optimizer, config, "streamed", mesh=MESH,
                     rate=RATE)
    state, losses = start(), []
    for batch, _ in batches(case.micro):
        state, metrics = step(state, place_batch(batch, MESH))
        losses.append(float(metrics.loss))
    return leaves(to_items(state)), losses


def passing_by(case: Case, folder: Path) -> tuple[dict[str, bytes], list[float]]:
    config, optimizer, setting, start = made(case)
    state, slots = start(), ROWS * LENGTH * case.micro
    tables, away = dict(state.tables), {}
    for name in tables:
        make = passing_table if setting.modes[name] == "streamed" else tiered_table
        tables[name], away[name] = make(  # type: ignore[operator]
            config, COUNT, 0, MESH, name=name, over=state.items.over, row_map=RowMap(COUNT),
            slots=slots, where=case.where)
        away[name].store.open(folder)
    state, tiers = state._replace(tables=tables), Tiers(away, setting, COUNT)
    step = PassingStep(setting, optimizer, away["items"], rate=RATE)
    return trained_elsewhere(step, state, tiers, batches(case.micro), MESH, 2)


def case_of(text: str) -> Case:
    """`row_adam bf16 next 400 host`, and `2` micro-batches or `untied` behind it."""
    optimizer, dtype, objective, part, where, *rest = text.split()
    return Case(optimizer, dtype, objective, int(part), where, 2 if "2" in rest else 1,
                "untied" not in rest)


FAST = ["adagrad bf16 next 512 disk"]
SLOW = ["adagrad bf16 next 400 disk", "adam f32 native 512 host 2",
        "row_adam bf16 masked 300 host 2",
        "sgd f32 masked 999 disk", "adam bf16 native 8 disk",
        "row_adam f32 next 5000 host", "adagrad f32 native 100 disk 2",
        "sgd bf16 native 400 host", "adam f32 next 700 disk", "adagrad f32 masked 64 host",
        "row_adam f32 next 5000 host untied", "adam f32 next 700 disk untied",
        "adagrad f32 native 5000 host 2 untied", "row_adam bf16 masked 300 disk untied",
        "adam f32 masked 5000 host untied"]


@pytest.mark.parametrize("text", [
    *FAST, *(pytest.param(text, marks=pytest.mark.slow) for text in SLOW)])
def test_rows_state_and_encoder_have_the_same_bits(text: str, tmp_path: Path) -> None:
    case = case_of(text)
    expected, expected_losses = on_device(case)
    found, losses = passing_by(case, tmp_path)
    assert losses == expected_losses and len(losses) == STEPS and losses[-1] != losses[0]
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == value, path
    assert not list(tmp_path.iterdir())


LEAVES = [Leaf((3,), np.dtype(np.float32)), Leaf((), np.dtype(np.int32)),
          Leaf((700,), np.dtype(jnp.bfloat16))]
TOTAL, PART = 100, 24  # the last part has 4 rows


@pytest.mark.parametrize("kind", [HostParts, DiskParts])
def test_a_store_of_parts_gives_back_what_was_written(kind: Any, tmp_path: Path) -> None:
    store: PartStore = kind(TOTAL, LEAVES, PART)
    store.open(tmp_path)
    random, every = np.random.default_rng(0), range(len(LEAVES))
    kept: dict[int, list[np.ndarray]] = {}
    for turn in range(30):
        if turn == 20:
            store.clear()
            kept = {}
        part = int(random.integers(5))
        count = min(PART, TOTAL - part * PART)
        kept[part] = [(random.normal(size=(count, *leaf.shape)) * 50).astype(leaf.dtype)
                      for leaf in LEAVES]
        store.write(part, kept[part])
        assert [store.has(each) for each in range(5)] == [each in kept for each in range(5)]
        for found, value in zip(store.read(part, every), kept[part], strict=True):
            assert found.dtype == value.dtype and found.tobytes() == value.tobytes()
        there = np.concatenate([np.arange(each * PART, each * PART + len(rows[1]))
                                for each, rows in sorted(kept.items())])
        begin = part * PART + int(random.integers(count))
        end = begin + int(random.integers(part * PART + count - begin)) + 1
        for numbers in (random.choice(there, 9), there, np.arange(begin, end),
                        np.arange(begin, begin)):
            for leaf in every:
                expected = [kept[row // PART][leaf][row % PART] for row in numbers.tolist()]
                assert store.rows(leaf, numbers).tobytes() == np.array(
                    expected, LEAVES[leaf].dtype).tobytes()
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_page_that_changed_on_the_disk_is_not_believed(tmp_path: Path) -> None:
    store = DiskParts(TOTAL, LEAVES, PART)
    store.open(tmp_path)
    store.write(0, [np.ones((PART, *leaf.shape), leaf.dtype) for leaf in LEAVES])
    changed = _aligned(PAGE)
    changed[:] = store._read(0, 2, 1, 1)  # the second page of the third leaf
    changed[5] ^= 1
    store._write(changed, store._at(0, 2, 1))
    assert store.rows(2, np.arange(5)).shape == (5, 700)  # of the first page
    with pytest.raises(TrainingError, match=r"row 11 of a table on the disk, or one behind it, is "
                                            r"not as it was written"):
        store.read(0, [2])
    with pytest.raises(TrainingError, match="not as it was written"):
        store.rows(2, np.array([12, 1]))
    store.close()


def test_a_disk_that_is_full_names_the_folder(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskParts(TOTAL, LEAVES, PART)
    store.open(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        store.write(0, [np.ones((PART, *leaf.shape), leaf.dtype) for leaf in LEAVES])
    store.close()


def test_what_is_filled_in_is_there_and_a_part_as_new_takes_nothing() -> None:
    config = TableConfig(dim=DIM, part=256, optimizer=RowOptimizerConfig(kind="row_adam"))
    _, table = passing_table(config, COUNT, 5, MESH, name="items", over=("data", "items"),
                             row_map=RowMap(COUNT), slots=10, where="disk")
    total = padded_size(COUNT)
    values = [table.get(leaf, 0, total) for leaf in range(len(table.store.leaves))]
    assert values[0].any() and not any(leaf.any() for leaf in values[1:])
    values[0][300:310] += 1
    values[2][700:720] = 3
    for leaf, whole in reversed(list(enumerate(values))):
        for first in range(0, total, 100):
            table.fill(leaf, first, whole[first:first + 100])
    for leaf, whole in enumerate(values):
        assert table.get(leaf, 0, total).tobytes() == whole.tobytes()
    assert [part for part in range(-(-total // 256)) if table.store.has(part)] == [1, 2]
    table.close()
