from __future__ import annotations

import jax
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.mesh import (
    MeshConfig,
    batch_sharding,
    fit_mesh,
    make_mesh,
    parse_mesh,
    replicated,
    row_sharding,
)


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


def test_a_mesh_is_read_as_it_is_shown():
    assert parse_mesh(" 2x4 ") == MeshConfig(2, 4) and str(MeshConfig(2, 4)) == "2x4"
    for text in ("", "8", "2x", "2x4x1", "-1x2", "2 x 4", "x"):
        with pytest.raises(InputError, match="expected DATAxITEMS, such as 1x8"):
            parse_mesh(text)


@pytest.mark.parametrize(("devices", "processes", "wanted", "found"), [
    (8, 1, "2x4", "2x4"), (8, 1, "1x1", "1x1"), (8, 2, "2x4", "2x4"),  # as it was
    (1, 1, "2x4", "1x1"), (4, 1, "2x4", "1x4"), (6, 1, "2x4", "1x4"), (8, 1, "4x4", "2x4"),
    (5, 1, "1x8", "1x4"), (6, 1, "1x8", "1x6"), (4, 1, "8x1", "4x1"),  # 5 cut 768 rows unevenly
    (16, 2, "2x4", "4x4"), (4, 2, "1x1", "4x1"), (4, 2, "2x4", "1x4"), (6, 2, "1x4", "1x6"),
])
def test_the_nearest_mesh_keeps_the_share_of_the_table(monkeypatch, devices, processes, wanted,
                                                       found):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    mesh = fit_mesh(parse_mesh(wanted), lambda mesh: 768 % mesh.items == 0)
    assert str(mesh) == found


def test_processes_whose_devices_cannot_cut_the_rows_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 10)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="cut evenly over the 10 devices of 2 processes"):
        fit_mesh(MeshConfig(2, 4), lambda mesh: 768 % (mesh.data * mesh.items) == 0)
