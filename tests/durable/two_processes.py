"""One of two processes that restore a checkpoint on a mesh of 8 devices and save it again.

    python two_processes.py FOLDER ADDRESS INDEX

FOLDER/in has step 1; each process checks its shards against the bits that `values` gives, saves
step 2 into FOLDER/out, and restores that once more.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 768 * 4


def values() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"rows": random.standard_normal((ROWS, 64)).astype(np.float32),
            "counts": random.integers(0, 99, ROWS, np.int32),
            "kernel": random.standard_normal((30, 10)).astype(np.float32),
            "step": np.asarray(7, np.int32)}


def check(found: dict[str, Any]) -> None:
    for name, value in values().items():
        for shard in found[name].addressable_shards:
            assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes(), name


def main(folder: Path, address: str, index: int) -> None:
    from rec_jax.checkpoint import Checkpoints
    from rec_jax.mesh import MeshConfig, make_mesh, replicated, row_sharding, start_processes

    start_processes(address, 2, index)
    mesh = make_mesh(MeshConfig(2, 4))
    assert jax.process_count() == 2 and mesh.size == 8
    like = {"state": {name: jax.ShapeDtypeStruct(
        value.shape, value.dtype, sharding=(
            row_sharding(mesh) if value.shape[:1] == (ROWS,) else replicated(mesh)))
        for name, value in values().items()}}
    with Checkpoints(folder / "in", read_only=True) as checkpoints:
        found = checkpoints.restore(1, like)
    check(found["state"])
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    for copy_bytes in (2**30, 0):  # copied, and frozen by a child of each process
        with Checkpoints(folder / f"out{copy_bytes}", copy_bytes=copy_bytes) as checkpoints:
            state = jax.tree.map(jnp.copy, found)
            checkpoints.save(2, state, {"processes": 2}, 0.5)
            jax.block_until_ready(overwrite(state))
            checkpoints.wait()
            check(checkpoints.restore(2, like)["state"])
            assert checkpoints.extra(2) == {"processes": 2} and checkpoints.verify(2) > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
