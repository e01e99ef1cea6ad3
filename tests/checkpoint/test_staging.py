"""A state is staged while it is written: copied, frozen by a child, or waited for."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.checkpoint import Checkpoints, staging
from rec_jax.checkpoint.layout import PACKED_BYTES
from rec_jax.checkpoint.snapshot import Snapshot
from rec_jax.checkpoint.staging import HostBuffer
from rec_jax.errors import TrainingError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")

ROWS = 40_000


def state(rows: int = ROWS) -> dict[str, Any]:
    """Tables that are staged in place, and leaves that are too small for that."""
    values = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    assert values.nbytes > PACKED_BYTES
    return {"model": {"rows": jnp.asarray(values), "half": jnp.asarray(values, jnp.bfloat16),
                      "bias": jnp.asarray(values[:5]), "host": values[:3]},
            "training": {"step": jnp.asarray(3, jnp.int32)}}


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def assert_bitwise(one: Any, other: Any) -> None:
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 7, tree), donate_argnums=0)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """The snapshots that are taken."""
    taken: list[Snapshot] = []
    real = staging.take_snapshot

    def noted() -> Snapshot | None:
        found = real()
        assert found is not None
        taken.append(found)
        return found

    monkeypatch.setattr(staging, "take_snapshot", noted)
    return taken


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_frozen_state_is_saved_as_it_was_while_steps_change_it_in_place(
        tmp_path: Path, children: list[Snapshot]) -> None:
    tree = state()
    expected, address = jax.tree.map(np.array, tree), tree["model"]["rows"].unsafe_buffer_pointer()
    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:
        checkpoints.save(1, tree, {})
        for _ in range(5):
            tree = overwrite(tree)
        jax.block_until_ready(tree)
        assert tree["model"]["rows"].unsafe_buffer_pointer() == address
        checkpoints.wait()
        assert_bitwise(checkpoints.restore(1, shapes(expected)), expected)
        assert float(tree["model"]["rows"][0, 0]) == 7
    assert len(children) == 1 and is_gone(children[0].pid)


def test_a_state_that_is_waited_for_is_saved_in_place(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "take_snapshot", lambda: None)
    tree = state()
    expected, address = jax.tree.map(np.array, tree), tree["model"]["rows"].unsafe_buffer_pointer()
    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:
        checkpoints.save(1, tree, {})
        tree = jax.block_until_ready(overwrite(tree))
        checkpoints.wait()
        assert_bitwise(checkpoints.restore(1, shapes(expected)), expected)
    assert tree["model"]["rows"].unsafe_buffer_pointer() == address


def test_a_small_state_is_copied(tmp_path: Path, children: list[Snapshot]) -> None:
    tree = state()
    with Checkpoints(tmp_path / "c", copy_bytes=2**30) as checkpoints:
        checkpoints.save(1, tree, {})
    assert not children


def test_a_state_is_frozen_only_where_memory_has_room_for_what_may_change(
        monkeypatch: pytest.MonkeyPatch, children: list[Snapshot]) -> None:
    values = [state()["model"]["rows"]]
    size = values[0].nbytes
    monkeypatch.setattr(staging, "_free_host_memory", lambda: size)
    everything = staging.stage(values, copy_bytes=0, moving=1.0)
    assert not everything.in_background and everything.snapshot is None
    assert isinstance(everything.values[0][0].data, HostBuffer)
    a_part = staging.stage(values, copy_bytes=0, moving=0.5)
    assert a_part.in_background and a_part.snapshot is children[0]
    a_part.snapshot.close()


@pytest.mark.parametrize(("share", "behind"), [(0.49, False), (0.51, True)])
def test_a_state_is_frozen_only_where_it_may_grow_by_as_much(
        share: float, behind: bool, children: list[Snapshot]) -> None:
    values = [state()["model"]["rows"]]
    staged = staging.stage(values, copy_bytes=0, moving=0.5, growth_bytes=share * values[0].nbytes)
    assert staged.in_background == behind and len(children) == behind
    for child in children:
        child.close()


def test_the_shards_of_a_mesh_are_frozen_each_in_its_place(
        tmp_path: Path, children: list[Snapshot]) -> None:
    devices = jax.devices()
    mesh = jax.sharding.Mesh(devices, ("items",))
    spec = jax.sharding.PartitionSpec("items")
    values = np.arange(len(devices) * 8192 * 16, dtype=np.float32).reshape(-1, 16)
    rows = jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))
    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:
        checkpoints.save(1, {"model": {"rows": rows}}, {})
        jax.block_until_ready(overwrite(rows))
        checkpoints.wait()
        like = {"model": {"rows": jax.ShapeDtypeStruct(values.shape, values.dtype)}}
        assert_bitwise(checkpoints.restore(1, like)["model"]["rows"], values)
    assert len(children) == 1


def test_a_child_that_is_killed_fails_the_save_and_the_checkpoint_before_stands(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = state()
    expected, real = jax.tree.map(np.array, tree), staging.take_snapshot
    killed: list[int] = []

    def killed_at_once() -> Snapshot | None:
        found = real()
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        killed.append(found.pid)
        return found

    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:
        checkpoints.save(1, tree, {})
        checkpoints.wait()
        monkeypatch.setattr(staging, "take_snapshot", killed_at_once)
        checkpoints.save(2, tree, {})
        with pytest.raises(TrainingError, match=r"step_2 could not be written: .* has ended; "
                                                r"that of step 1 stands"):
            checkpoints.wait()
        monkeypatch.setattr(staging, "take_snapshot", real)
        checkpoints.save(3, tree, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
        assert_bitwise(checkpoints.restore(3, shapes(expected)), expected)
    assert all(map(is_gone, killed))


def test_a_write_that_fails_ends_the_child(
        tmp_path: Path, children: list[Snapshot], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rec_jax.checkpoint.block_writer.flush", full)
    with Checkpoints(tmp_path / "c", copy_bytes=0) as checkpoints:
        checkpoints.save(1, state(), {})
        with pytest.raises(TrainingError, match="No space left"):
            checkpoints.wait()
        assert checkpoints.steps() == []
    assert is_gone(children[0].pid)
