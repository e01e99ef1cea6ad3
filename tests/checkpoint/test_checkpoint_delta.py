"""Deltas hold the touched rows alone; a chain of them is the state, bit for bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.checkpoint import Checkpoints, Damaged, updated_rows
from rec_jax.mesh import MeshConfig, make_mesh, row_sharding

ROWS, DIM, CHAIN = 76_800, 32, 20


def first_state() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"rows": random.standard_normal((ROWS, DIM)).astype(np.float32),
            "mu": random.standard_normal((ROWS, DIM)).astype(np.float32),
            "steps": np.zeros(ROWS, np.int32), "kernel": np.ones((4, 4), np.float32)}


def advance(state: dict[str, np.ndarray], seed: int, count: int) -> np.ndarray:
    """Change `count` random rows and the kernel in place; which rows."""
    random = np.random.default_rng(seed)
    ids = np.sort(random.choice(ROWS, count, replace=False)).astype(np.int64)
    for name in ("rows", "mu"):
        state[name][ids] = random.standard_normal((count, DIM)).astype(np.float32)
    state["steps"][ids] += 1
    state["kernel"] += 1
    return ids


def copied(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `advance` cannot reach: an array on a CPU device may share memory with numpy's, and
    it is saved in the background."""
    return {name: value.copy() for name, value in state.items()}


def delta(state: dict[str, np.ndarray], ids: np.ndarray, stored: Any = "exact") -> dict[str, Any]:
    mesh = make_mesh(MeshConfig(1, 4))
    return {name: updated_rows(jax.device_put(value, row_sharding(mesh)), ids, stored)
            if len(value) == ROWS else jnp.asarray(value) for name, value in state.items()}


def like() -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for name, value in first_state().items()}


def assert_equal(found: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        assert np.asarray(found[name]).tobytes() == value.tobytes(), name


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A full checkpoint (step 0) and 20 deltas, with the states they stand for."""
    folder = tmp_path_factory.mktemp("chain") / "checkpoints"
    state = first_state()
    states = [copied(state)]
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(0, {"state": jax.tree.map(jnp.asarray, states[0])}, {})
        for step in range(1, CHAIN + 1):
            ids = advance(state, step, ROWS // 100 if step != 5 else 0)
            states.append(copied(state))
            checkpoints.save(step, {"state": delta(states[-1], ids)}, {}, base=step - 1)
    return folder, states


def test_a_chain_of_twenty_restores_every_state_of_it(
        chain: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    folder, states = chain
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == list(range(CHAIN + 1))  # what the last one builds on stays
        for step in (0, 1, 7, CHAIN):
            found = checkpoints.restore(step, {"state": like()})["state"]
            assert_equal(found, states[step])


def test_a_delta_of_one_percent_of_the_rows_takes_at_most_1_3_percent(
        chain: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    with Checkpoints(chain[0], read_only=True) as checkpoints:
        full = checkpoints.size(0)
        assert full > ROWS * (2 * DIM + 1) * 4
        assert all(checkpoints.size(step) <= 0.013 * full for step in range(1, CHAIN + 1))
        assert checkpoints.size(5) < 0.001 * full  # nothing was touched


def test_a_chain_can_be_made_full_and_then_needs_no_base(
        chain: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    folder, states = shutil.copytree(chain[0], tmp_path / "c"), chain[1]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.verify(CHAIN) < checkpoints.size(0) / 10
        checkpoints.compact(CHAIN)
        assert checkpoints.info(CHAIN).base is None
        assert checkpoints.prune(1) == list(range(CHAIN))
        assert checkpoints.steps() == [CHAIN]
        assert_equal(checkpoints.restore(CHAIN, {"state": like()})["state"], states[CHAIN])
        checkpoints.compact(CHAIN)  # a full one stays as it is
        assert checkpoints.verify(CHAIN) > 0
    assert sorted(os.listdir(folder)) == [".lock", f"step_{CHAIN}.full"]


def test_a_kill_between_the_full_one_and_its_delta_leaves_the_full_one(
        chain: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    folder, states = shutil.copytree(chain[0], tmp_path / "c"), chain[1]
    with Checkpoints(folder) as checkpoints:
        checkpoints.compact(3)
    shutil.copytree(chain[0] / "step_3", folder / "step_3")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.info(3).base is None
        assert_equal(checkpoints.restore(4, {"state": like()})["state"], states[4])
        assert checkpoints.prune(1) == [0, 1, 2]  # step 20 builds on the others


def test_a_delta_whose_base_is_damaged_or_gone_is_passed_over(
        chain: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    folder, states = shutil.copytree(chain[0], tmp_path / "c"), chain[1]
    shutil.rmtree(folder / "step_18")
    warnings: list[str] = []
    with Checkpoints(folder, read_only=True, warn=warnings.append) as checkpoints:
        with pytest.raises(Damaged, match=r"step_19 changes step 18, which is missing"):
            checkpoints.restore(CHAIN, {"state": like()})
        found = checkpoints.newest(lambda step: checkpoints.restore(step, {"state": like()}))
    assert found is not None and found[0] == 17 and len(warnings) == 2
    assert_equal(found[1]["state"], states[17])


@pytest.mark.parametrize(("stored", "error"), [("bfloat16", 2.0**-8), ("int8", 0.5 / 127)])
def test_a_quantised_delta_is_smaller_and_off_by_no_more_than_it_says(
        tmp_path: Path, stored: str, error: float) -> None:
    state, sizes = first_state(), {}
    ids = np.arange(0, ROWS, 100)
    with Checkpoints(tmp_path / "c", keep=9) as checkpoints:
        checkpoints.save(0, {"state": jax.tree.map(jnp.asarray, copied(state))}, {})
        state["rows"][ids] *= 3
        for step, how in ((1, "exact"), (2, stored)):
            checkpoints.save(step, {"state": delta(state, ids, how)}, {}, base=0)
            checkpoints.wait()
            sizes[how] = checkpoints.size(step)
        found = checkpoints.restore(2, {"state": like()})["state"]
    rows, wanted = np.asarray(found["rows"])[ids], state["rows"][ids]
    bound = error * (np.abs(wanted) if stored == "bfloat16"
                     else np.abs(wanted).max(axis=1, keepdims=True)) * 1.001
    assert np.all(np.abs(rows - wanted) <= bound) and np.any(rows != wanted)
    assert np.asarray(found["steps"]).tobytes() == state["steps"].tobytes()
    assert sizes[stored] < 0.65 * sizes["exact"]
