"""A checkpoint fits any mesh: arrays come back with the same bits wherever they are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rec_jax.checkpoint import Checkpoints, layout, read_blocks
from rec_jax.mesh import MeshConfig, make_mesh, replicated, row_sharding

ROWS = 768 * 3
MESHES = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (1, 8), (8, 1), (2, 4)]


def values() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"rows": random.standard_normal((ROWS, 256)).astype(np.float32),
            "counts": random.integers(0, 99, ROWS, np.int32),
            "half": random.standard_normal((ROWS, 16)).astype(jnp.bfloat16),
            "kernel": random.standard_normal((300, 1000)).astype(np.float32),
            "step": np.asarray(7, np.int32)}


def on_mesh(data: int, items: int) -> dict[str, jax.Array]:
    mesh = make_mesh(MeshConfig(data, items))
    return {name: jax.device_put(value, row_sharding(mesh) if value.shape[:1] == (ROWS,)
                                 else replicated(mesh)) for name, value in values().items()}


def like(tree: dict[str, jax.Array]) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in tree.items()}


@pytest.fixture(scope="module", params=[(1, 8), (2, 2), (1, 1), (1, 3)], ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"state": on_mesh(*request.param)}, {})
    return folder


def test_every_mesh_restores_the_bits_that_any_mesh_saved(saved: Path) -> None:
    for data, items in MESHES:
        wanted = on_mesh(data, items)
        with Checkpoints(saved, read_only=True) as checkpoints:
            found = checkpoints.restore(1, {"state": like(wanted)})["state"]
        for name, value in values().items():
            assert found[name].sharding == wanted[name].sharding
            assert np.asarray(found[name]).tobytes() == value.tobytes(), (name, data, items)


def test_arrays_larger_than_a_block_pass_through_blocks(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("layout", "block_writer", "array_source", "load"):
        monkeypatch.setattr(f"rec_jax.checkpoint.{module}.BLOCK_BYTES", 64 * 1024)
    monkeypatch.setattr("rec_jax.checkpoint.save_handler.PACKED_BYTES", 1000)
    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:  # written before save returns
        checkpoints.save(1, {"state": on_mesh(1, 8)}, {})
        checkpoints.wait()
        assert len(list((tmp_path / "c").glob("step_1/state/arrays/3/c/*/0"))) == 48
        for mesh in [(1, 3), (1, 1), (2, 4)]:
            wanted = like(on_mesh(*mesh))
            found = checkpoints.restore(1, {"state": wanted})["state"]
            for name, value in values().items():
                assert np.asarray(found[name]).tobytes() == value.tobytes(), name
        source = checkpoints.open(1).items["state"]["['rows']"]
        parts = list(read_blocks(source, 5, 1000))
        assert len(parts) > 10 and all(part.nbytes <= 64 * 1024 for _, part in parts)
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]),
                                      values()["rows"][5:1000])


def test_an_array_that_is_cut_along_another_axis_comes_back_too(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(2, 2))
    value = values()["kernel"]
    cut = jax.device_put(value, NamedSharding(mesh, PartitionSpec("data", "items")))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"state": [cut]}, {})
        checkpoints.wait()
        for target in (cut.sharding, NamedSharding(mesh, PartitionSpec(None, "items")),
                       SingleDeviceSharding(jax.devices()[5])):
            wanted = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=target)
            found = checkpoints.restore(1, {"state": [wanted]})["state"][0]
            assert found.sharding == target
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("rows", [1, 7, 768, 98304 * 7, 98304 * 1018, 96 * 7919])
def test_blocks_divide_a_shard_so_that_no_two_hosts_write_one(rows: int) -> None:
    size = layout.block_rows(rows, 256)
    assert rows % size == 0 and size * 256 <= layout.BLOCK_BYTES
    assert size == rows or size >= 96
