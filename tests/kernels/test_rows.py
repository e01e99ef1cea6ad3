"""Rows are read and written in place, by XLA and by the TPU kernels (interpreted) alike."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rec_jax.kernels import rows
from rec_jax.kernels.mosaic_tpu import gather as mosaic_tpu_gather
from rec_jax.kernels.mosaic_tpu import scatter as mosaic_tpu_scatter

Array = jax.Array
interpreted_scatter = jax.jit(
    functools.partial(mosaic_tpu_scatter.scatter_rows, interpret=True))
PUT = {"xla": jax.jit(rows.scatter_rows), "interpreted": interpreted_scatter}
BEHIND = jnp.iinfo(jnp.int32).max
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def table(count: int, dim: int, dtype: Any = jnp.float32, seed: int = 0) -> Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=(count, dim)), dtype)


def written(items: Array, ids: np.ndarray, values: Array) -> np.ndarray:
    """By definition, row after row."""
    expected = np.array(items)
    for row, value in zip(ids, np.asarray(values.astype(items.dtype)), strict=True):
        if 0 <= row < len(expected):
            expected[row] = value
    return expected


def assert_same_bits(ours: Any, theirs: Any) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


ID_SETS = {
    "none_here": [-7, -1, 640, 641, BEHIND, BEHIND],
    "one_tile": [0, 1, 5, 126, 127],
    "ends_and_beyond": [-3, -2, 0, 127, 128, 511, 512, 639, 640, 700, BEHIND],
    "every_row": list(range(640)),
    "one": [639],
}


@pytest.mark.parametrize("name", ID_SETS)
@pytest.mark.parametrize("backend", ["xla", "interpreted"])
def test_the_named_rows_are_replaced_and_the_others_keep_their_bits(
        name: str, backend: str) -> None:
    items, ids = table(640, 16), np.full(640, BEHIND, np.int32)
    ids[:len(ID_SETS[name])] = ID_SETS[name]
    values = table(len(ids), 16, seed=1).at[0, 0].set(-0.0).at[-1, 1].set(jnp.nan)
    assert_same_bits(PUT[backend](items, jnp.asarray(ids), values), written(items, ids, values))


@dtypes
@pytest.mark.parametrize("dim", [13, 64])
def test_more_ids_than_one_step_takes_and_more_tiles_than_slots(
        dtype: Any, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps meet in the middle of a tile: the second must see what the first wrote."""
    monkeypatch.setattr(mosaic_tpu_scatter, "MOST_IDS", 128)
    items = table(4096, dim, dtype)
    ids = np.sort(np.random.default_rng(2).choice(4096, 300, replace=False)).astype(np.int32)
    assert len(set(ids // 128)) > 2 * mosaic_tpu_scatter.SLOTS
    assert ids[127] // 128 == ids[128] // 128
    values = table(300, dim, seed=3)
    assert_same_bits(interpreted_scatter(items, jnp.asarray(ids), values),
                     written(items, ids, values))


def test_no_copy_of_a_tile_races_with_another() -> None:
    strict = pltpu.InterpretParams(detect_races=True)
    items = table(1536, 16)
    ids = np.concatenate([np.arange(3, 1536, 70), [1536]]).astype(np.int32)
    values = table(len(ids), 16, seed=1)
    ours = mosaic_tpu_scatter.scatter_rows(items, jnp.asarray(ids), values, interpret=strict)
    assert_same_bits(ours, written(items, ids, values))


@dtypes
def test_ids_outside_the_table_read_zero(dtype: Any) -> None:
    items = table(300, 16, dtype)
    ids = jnp.asarray([-1, 0, 299, 300, 5, BEHIND, 5], jnp.int32)
    expected = np.zeros((7, 16), items.dtype)
    for place, row in enumerate(ids.tolist()):
        if 0 <= row < 300:
            expected[place] = np.asarray(items[row])
    assert_same_bits(rows.gather_rows(items, ids), expected)


def test_numbers_and_marks_of_rows_are_read_and_written_as_rows_are() -> None:
    ids = jnp.asarray([-1, 2, 5, 9], jnp.int32)
    totals, marks = jnp.arange(6.0), jnp.zeros(6, bool)
    assert rows.gather_rows(totals, ids).tolist() == [0.0, 2.0, 5.0, 0.0]
    assert rows.scatter_rows(totals, ids, -ids).tolist() == [0.0, 1.0, -2.0, 3.0, 4.0, -5.0]
    assert rows.scatter_rows(marks, ids, jnp.ones(4, bool)).tolist() == [
        False, False, True, False, False, True]


def test_the_kernels_serve_narrow_tables_on_tpu_and_xla_the_rest(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(*size: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(size, dtype)

    narrow = shape(2**20, 64)
    assert rows.choose(narrow) == "xla"  # this is a CPU
    monkeypatch.setattr(rows, "platform", lambda: "tpu")
    assert rows.choose(narrow) == "mosaic_tpu"
    assert rows.choose(narrow, "xla") == "xla"
    assert rows.choose(shape(2**20, 32, dtype=jnp.bfloat16), whole_tiles=True) == "mosaic_tpu"
    for other in (shape(2**20, 128), shape(2**20), shape(2**20, 1100),
                  shape(2**20, 64, dtype=jnp.int8)):
        assert rows.choose(other) == "xla"
    assert rows.choose(shape(2**20 + 1, 64)) == "mosaic_tpu"
    assert rows.choose(shape(2**20 + 1, 64), whole_tiles=True) == "xla"


def test_a_backend_that_cannot_serve_says_why() -> None:
    with pytest.raises(ValueError, match="stored row by row"):
        rows.choose(table(256, 128), "mosaic_tpu")
    with pytest.raises(ValueError, match="expected auto, xla or mosaic_tpu"):
        rows.choose(table(256, 128), "cuda")


def test_the_platform_is_that_of_the_mesh_being_traced_for() -> None:
    assert rows.platform() == "cpu"
    device = jax.sharding.AbstractDevice("TPU v5", 2, "tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("items",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert rows.platform() == "tpu"


def test_gathering_copies_bits() -> None:
    items = table(256, 16).at[3, 3].set(-0.0)
    ids = jnp.asarray([3, 200, 3], jnp.int32)
    picked = mosaic_tpu_gather.gather_rows(items, ids, interpret=True)
    np.testing.assert_array_equal(picked, items[ids])
