"""A checkpoint is whole or absent, comes back bit for bit, and gives only what is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError


def items(seed: int = 0, rows: int = 64) -> dict[str, Any]:
    """Named pytrees as a run saves them: nested, several types, a NaN and a negative zero."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 8)).astype(np.float32)
    values[0, :2] = np.nan, -0.0
    return {
        "model": {"encoder": {"a/kernel": jnp.asarray(values[:3]), "b": jnp.ones(4)},
                  "rows": jnp.asarray(values)},
        "training": {"step": jnp.asarray(seed, jnp.int32), "rows": (),
                     "key": jnp.asarray([1, 2**31 + seed], jnp.uint32),
                     "half": jnp.asarray(values, jnp.bfloat16)},
    }


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def assert_bitwise(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_what_is_restored_has_the_bits_that_were_saved(tmp_path: Path) -> None:
    saved, extra = items(), {"position": {"best": 0.1 + 0.2, "best_step": None}, "list": [1, "a"]}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, saved, extra)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [3] and checkpoints.latest() == 3
        assert_bitwise(checkpoints.restore(3, shapes(saved)), saved)
        assert checkpoints.extra(3) == extra


def test_a_save_has_the_values_of_its_moment_even_if_the_arrays_are_given_away(
        tmp_path: Path) -> None:
    state = items(rows=50_000)
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 7, tree),
                        donate_argnums=0)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        assert_bitwise(checkpoints.restore(1, shapes(items(rows=50_000))), expected)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which steps 1 to 6 were saved; the best metric is that of step 2."""
    folder = tmp_path_factory.mktemp("several") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, metric in enumerate([0.1, 0.9, 0.3, None, 0.5, None], start=1):
            checkpoints.save(step, items(step), {"step": step}, metric)
    return folder


def test_the_newest_two_and_the_best_one_stay(several: Path) -> None:
    with Checkpoints(several) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.latest() == 6 and checkpoints.best() == 2
        assert_bitwise(checkpoints.restore(2, shapes(items())), items(2))


def test_without_a_metric_the_newest_is_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, items(step), {})
        checkpoints.wait()
        assert checkpoints.best() == 3


def test_of_equal_metrics_the_first_one_is_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 3, 4, 5):
            checkpoints.save(step, items(step), {}, 0.1 if step == 1 else 0.5)
        checkpoints.wait()
        assert checkpoints.best() == 2 and checkpoints.steps() == [2, 4, 5]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [] and checkpoints.latest() is None
        assert checkpoints.best() is None


def test_a_step_that_is_there_is_not_saved_again(several: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(6, items(99), {"step": 99})
        checkpoints.wait()
        assert checkpoints.extra(6) == {"step": 6}


def test_a_reader_touches_only_what_it_asks_for(several: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    shutil.rmtree(folder / "step_6" / "training")
    with Checkpoints(folder) as checkpoints:
        wanted = {"model": shapes(items()["model"])}
        assert_bitwise(checkpoints.restore(6, wanted), {"model": items(6)["model"]})
        assert checkpoints.extra(6) == {"step": 6}
        with pytest.raises(InputError, match=r"step_6 cannot be read"):
            checkpoints.restore(6, shapes(items()))


def test_an_unfinished_folder_is_no_checkpoint_and_is_cleared_away_by_a_writer(
        several: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    shutil.copytree(folder / "step_6", folder / "step_7.orbax-checkpoint-tmp")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6] and checkpoints.latest() == 6
        checkpoints.save(7, items(7), {"step": 7})
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 7
        assert_bitwise(checkpoints.restore(7, shapes(items())), items(7))
    assert not list(folder.glob("*tmp*"))


def test_a_reader_leaves_the_save_of_a_running_training_alone(
        several: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    under_way = folder / "step_7.orbax-checkpoint-tmp"
    shutil.copytree(folder / "step_6", under_way)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert_bitwise(checkpoints.restore(2, shapes(items())), items(2))
    assert under_way.is_dir()


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()),
               key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def scramble(folder: Path) -> None:
    path = largest(folder)
    path.write_bytes(b"\x00" * path.stat().st_size)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "data truncated": truncate,
    "data overwritten": scramble,
    "data deleted": lambda folder: largest(folder).unlink(),
    "model deleted": lambda folder: shutil.rmtree(folder / "model"),
    "extra emptied": lambda folder: [path.write_text("") for path in
                                     (folder / "extra").rglob("*") if path.is_file()],
    "array index deleted": lambda folder: [path.unlink() for path in
                                           (folder / "model").rglob("manifest*")],
    "metadata deleted": lambda folder: [path.unlink() for path in
                                        (folder / "model").glob("_METADATA")],
}


def refusal(folder: Path, like: Any) -> str:
    """The message with which step 6 is refused."""
    try:
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore(6, like)
            assert_bitwise(found, items(6))  # damage that nobody notices would be worse
            checkpoints.extra(6)
    except InputError as error:
        return str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_one_line_of_error(
        several: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    damage(folder / "step_6")
    message = refusal(folder, shapes(items()))
    assert message.startswith("checkpoint c/step_6 cannot be read: ") and "\n" not in message


@pytest.mark.parametrize("change", [
    {"rows": jax.ShapeDtypeStruct((65, 8), jnp.float32)},
    {"encoder": {"a/kernel": jax.ShapeDtypeStruct((3, 8), jnp.float32)}},
    {"encoder": {"other": jax.ShapeDtypeStruct((3, 8), jnp.float32)}},
], ids=["shape", "fewer", "names"])
def test_another_structure_is_refused(several: Path, change: dict[str, Any]) -> None:
    message = refusal(several, {"model": {**shapes(items()["model"]), **change}})
    assert "step_6 cannot be read: " in message and "\n" not in message
