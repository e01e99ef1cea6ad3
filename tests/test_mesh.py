from __future__ import annotations

import jax
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, batch_sharding, make_mesh, replicated, row_sharding


def test_mesh_uses_as_many_devices_as_asked():
    mesh = make_mesh(MeshConfig(data=2, items=3))
    assert dict(mesh.shape) == {"data": 2, "items": 3}
    assert len({device.id for device in mesh.devices.flat}) == 6


def test_too_many_devices_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"mesh\.data = 4 times mesh\.items = 4 needs 16") as error:
        make_mesh(MeshConfig(data=4, items=4))
    assert "\n" not in str(error.value)


def test_an_axis_of_no_devices_is_refused():
    with pytest.raises(InputError, match=r"mesh\.items is 0"):
        MeshConfig(items=0)


def test_rows_are_cut_over_items_and_batches_over_both_axes():
    mesh = make_mesh(MeshConfig(data=2, items=4))
    values = np.arange(32).reshape(16, 2)
    rows = jax.device_put(values, row_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(4, 2)}
    batch = jax.device_put(values, batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2)}
    micro = jax.device_put(values.reshape(2, 16, 1), batch_sharding(mesh, axis=1))
    assert {shard.data.shape for shard in micro.addressable_shards} == {(2, 2, 1)}
    whole = jax.device_put(values, replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(16, 2)}
