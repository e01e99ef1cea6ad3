from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.kernels.rounding import random_bits
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.tables import (
    RowOptimizerConfig,
    TableConfig,
    init_table,
    padded_size,
    row_optimizer,
    table_stream,
)

DEVICE_COUNTS = [2**a * b for a in range(9) for b in (1, 3) if 2**a * b <= 256]


@pytest.mark.parametrize("num_items", [1, 767, 768, 3706, 99_999, 10**6, 10**9, 2**30])
def test_padding_lets_every_device_count_cut_the_table_evenly(num_items: int):
    total = padded_size(num_items)
    assert total >= num_items
    assert all(total % count == 0 for count in DEVICE_COUNTS)
    assert total - num_items < max(768, num_items / 16)


def test_large_tables_give_every_shard_whole_tiles_of_128_rows():
    assert all(padded_size(10**9) // count % 128 == 0 for count in DEVICE_COUNTS)


@pytest.mark.parametrize("num_items", [0, -3, 2**31])
def test_a_table_without_items_or_beyond_int32_is_refused(num_items: int):
    with pytest.raises(InputError, match=f"a table of {num_items} rows"):
        padded_size(num_items)


@pytest.mark.parametrize(("data", "items"), [(1, 1), (8, 1), (1, 8), (2, 4), (1, 3), (1, 6)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_start_with_the_same_bits_on_every_mesh(data: int, items: int, dtype: str):
    config = TableConfig(dim=8, dtype=dtype)
    alone = init_table(config, 1000, seed=7)
    cut = init_table(config, 1000, 7, make_mesh(MeshConfig(data, items)))
    assert cut.rows.addressable_shards[0].data.shape == (1536 // items, 8)
    np.testing.assert_array_equal(np.asarray(alone.rows, np.float32),
                                  np.asarray(cut.rows, np.float32))


def test_first_rows_are_normal_with_the_scale_asked_for_and_padding_is_zero():
    table = init_table(TableConfig(dim=64, init_scale=0.5), 3000, seed=1)
    rows = np.asarray(table.rows)
    real = rows[:3000].ravel()
    assert not rows[3000:].any()
    assert abs(real.mean()) < 4 * 0.5 / real.size**0.5
    assert abs(real.std() - 0.5) < 0.005
    assert abs((real**4).mean() / 0.5**4 - 3.0) < 0.1  # kurtosis of a normal
    rows_of_items = rows[:3000]
    correlation = np.corrcoef(rows_of_items[:-1].ravel(), rows_of_items[1:].ravel())[0, 1]
    assert abs(correlation) < 4 / real.size**0.5
    assert len(np.unique(rows_of_items, axis=0)) == 3000


def test_another_seed_gives_other_rows():
    first, second = (init_table(TableConfig(dim=8), 100, seed).rows[:100] for seed in (0, 1))
    assert not np.any(np.asarray(first) == np.asarray(second))


@pytest.mark.parametrize("name", ["inputs", "users"])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_a_further_table_of_a_run_has_rows_of_its_own_on_every_mesh(seed: int, name: str):
    first = init_table(TableConfig(dim=8), 300, seed)
    second, cut = (init_table(TableConfig(dim=8), 300, seed, mesh, name=name)
                   for mesh in (None, make_mesh(MeshConfig(2, 4))))
    one, other = np.asarray(first.rows)[:300], np.asarray(second.rows)[:300]
    assert not np.any(one == other)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / one.size**0.5
    np.testing.assert_array_equal(second.rows, cut.rows)


def test_two_tables_are_not_rounded_by_the_same_bits():
    seeds = jnp.arange(50, dtype=jnp.uint32)
    ids = jnp.arange(20, dtype=jnp.int32)
    bits = [np.asarray(jax.vmap(lambda seed: random_bits(seed, ids, 4))(table_stream(seeds, name))
                       & 0xFFFF) for name in ("items", "inputs", "users")]
    for place, one in enumerate(bits):
        for other in bits[place + 1:]:
            assert np.mean(one == other) < 0.01


def test_a_device_count_that_does_not_divide_the_rows_is_refused():
    with pytest.raises(InputError, match=r"mesh\.items = 5 does not divide"):
        init_table(TableConfig(dim=4), 100, 0, make_mesh(MeshConfig(1, 5)))


def test_state_is_cut_like_the_rows():
    optimizer = row_optimizer(RowOptimizerConfig(kind="adam"))
    table = init_table(TableConfig(dim=4), 100, 0, make_mesh(MeshConfig(2, 4)),
                       optimizer=optimizer)
    for leaf in jax.tree.leaves(table.state):
        assert leaf.shape[0] == 768
        assert leaf.sharding == table.rows.sharding
        assert leaf.addressable_shards[0].data.shape[0] == 192


def test_table_is_a_pytree_whose_size_is_static():
    table = init_table(TableConfig(dim=4), 5, 0)
    doubled = jax.jit(lambda table: jax.tree.map(lambda leaf: 2 * leaf, table))(table)
    assert doubled.num_items == 5
    np.testing.assert_array_equal(doubled.rows, 2 * table.rows)
    assert table.replace(rows=jnp.zeros((768, 4))).num_items == 5


@pytest.mark.parametrize("settings", [{"dim": 0}, {"init_scale": -1.0}, {"gather_slack": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict):
    (name,) = settings
    with pytest.raises(InputError, match=f"table.{name} is"):
        TableConfig(**settings)
