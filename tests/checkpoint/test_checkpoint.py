"""A checkpoint is whole or absent, comes back bit for bit, and gives only what is asked for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.errors import InputError, TrainingError


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


def test_a_folder_may_be_named_by_a_way_back(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """`--run ../runs/x`: tensorstore takes no path with `..` in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    saved = items(rows=50_000)  # arrays with a store of their own
    with Checkpoints(Path("../c")) as checkpoints:
        checkpoints.save(1, saved, {})
    with Checkpoints(Path("../c")) as checkpoints:
        assert_bitwise(checkpoints.restore(1, shapes(saved)), saved)
    assert (tmp_path / "c").is_dir()


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


def test_a_reader_gets_the_items_that_it_asks_for(several: Path) -> None:
    with Checkpoints(several, read_only=True) as checkpoints:
        wanted = {"model": shapes(items()["model"])}
        assert_bitwise(checkpoints.restore(6, wanted), {"model": items(6)["model"]})
        with pytest.raises(InputError, match="has no item 'other'; it has model, training"):
            checkpoints.restore(6, {"other": {}})


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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def link_out(path: Path) -> None:
    data = path.read_bytes()
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_bytes(data)
    path.unlink()
    path.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "data truncated": lambda folder: truncate(folder / "model" / "packed.bin"),
    "bit flipped": lambda folder: flip_a_bit(folder / "training" / "packed.bin"),
    "data deleted": lambda folder: largest(folder).unlink(),
    "data replaced by a link": lambda folder: link_out(folder / "model" / "packed.bin"),
    "item deleted": lambda folder: shutil.rmtree(folder / "training"),
    "index changed": lambda folder: flip_a_bit(folder / "model" / "leaves.json"),
    "info emptied": lambda folder: (folder / "info.json").write_text(""),
    "info changed": lambda folder: (folder / "info.json").write_text(
        (folder / "info.json").read_text().replace('"step": 6', '"step": 7')),
    "seal missing": lambda folder: (folder / "seal.json").unlink(),
    "file added": lambda folder: (folder / "model" / "more.bin").write_bytes(b"1"),
    "block of a large array truncated": lambda folder: truncate(block_of(folder)),
    "bit of a large array flipped": lambda folder: flip_a_bit(block_of(folder)),
    "block of a large array deleted": lambda folder: block_of(folder).unlink(),
    "shape of a large array changed": lambda folder: rewrite(
        block_of(folder).parents[2] / "zarr.json", "[2048,256]", "[2048,257]"),
}


def block_of(folder: Path) -> Path:
    return next(folder.glob("large/arrays/*/c/0/0"))


def rewrite(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def with_large(seed: int) -> dict[str, Any]:
    return {**items(seed), "large": {"rows": jnp.full((2048, 256), seed, jnp.float32)}}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (5, 6):
            checkpoints.save(step, with_large(step), {"step": step})
    return folder


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_of_the_newest_is_one_line_a_loud_warning_and_the_one_before(
        two: Path, tmp_path: Path, damage: Callable[[Path], object],
        capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(two, tmp_path / "c")
    damage(folder / "step_6")
    like = shapes(with_large(0))
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(Damaged, match=r"^checkpoint .*step_6.* ") as caught:
            checkpoints.restore(6, like)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
        with pytest.raises(Damaged):
            checkpoints.verify(6)
        assert checkpoints.verify(5) > 2**21
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.newest(lambda step: checkpoints.restore(step, like))
        assert found is not None and found[0] == 5
        assert_bitwise(found[1], with_large(5))
        shouted = capsys.readouterr().err
        assert "!!!!!!!!!!" in shouted
        assert "DAMAGED CHECKPOINT c/step_6" in shouted and "from step 5" in shouted
        assert checkpoints.steps() == [5]  # step 6 can be saved again
        checkpoints.save(6, with_large(6), {})
        checkpoints.wait()
        assert_bitwise(checkpoints.restore(6, like), with_large(6))
    assert (folder / "step_6.damaged").is_dir()


def test_where_every_checkpoint_is_damaged_nothing_is_lost_and_the_error_says_so(
        two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "c")
    for step in (5, 6):
        truncate(block_of(folder / f"step_{step}"))
    warnings: list[str] = []
    with (Checkpoints(folder, warn=warnings.append) as checkpoints,
          pytest.raises(Damaged, match=r"step_5/large/arrays/0/c/0/0 has 1\d* bytes, expected 2")):
        checkpoints.newest(lambda step: checkpoints.restore(step, shapes(with_large(0))))
    assert len(warnings) == 2
    assert (folder / "step_5").is_dir()


@pytest.mark.parametrize(("change", "reason"), [
    ({"rows": jax.ShapeDtypeStruct((65, 8), jnp.float32)},
     r"model\['rows'\] is \[64, 8\], expected \[65, 8\]"),
    ({"encoder": {"a/kernel": jax.ShapeDtypeStruct((3, 8), jnp.float32)}},
     r"has 1 leaves such as \['encoder'\]\['b'\]"),
    ({"encoder": {"other": jax.ShapeDtypeStruct((3, 8), jnp.float32)}},
     r"lacks 1 leaves such as \['encoder'\]\['other'\]"),
    ({"rows": jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)}, "is float32, expected bfloat16"),
], ids=["shape", "fewer", "names", "type"])
def test_another_structure_is_refused_and_no_damage(several: Path, change: dict[str, Any],
                                                    reason: str) -> None:
    wanted = {"model": {**shapes(items()["model"]), **change}}
    with (Checkpoints(several, read_only=True) as checkpoints,
          pytest.raises(InputError, match=f"c.*/step_6 does not fit: .*{reason}") as caught):
        checkpoints.restore(6, wanted)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, Damaged)


def test_types_of_rows_may_change_when_asked(several: Path) -> None:
    saved = items(6)["model"]
    wanted = {**shapes(saved), "rows": jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)}
    with Checkpoints(several, read_only=True) as checkpoints:
        found = checkpoints.restore(6, {"model": wanted}, cast=True)["model"]
        assert_bitwise(found, {**saved, "rows": saved["rows"].astype(jnp.bfloat16)})
        half = {"training": {**shapes(items()["training"]),
                             "half": jax.ShapeDtypeStruct((64, 8), jnp.float32)}}
        widened = checkpoints.restore(6, half, cast=True)["training"]["half"]
        assert_bitwise(widened, items(6)["training"]["half"].astype(jnp.float32))
        whole = {"training": {**shapes(items()["training"]),
                              "step": jax.ShapeDtypeStruct((), jnp.float32)}}
        with pytest.raises(InputError, match="is int32, expected float32"):
            checkpoints.restore(6, whole, cast=True)


def test_every_kth_checkpoint_can_stay_as_well(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=1, keep_every=4) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, {"model": jnp.ones(3)}, {}, 1.0 if step == 2 else 0.5)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 8, 10]
        assert checkpoints.prune(keep=2) == [4] and checkpoints.steps() == [2, 8, 10]


def test_a_save_that_fails_is_one_error_and_leaves_the_one_before(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, items(1), {})
        checkpoints.wait()
        monkeypatch.setattr("rec_jax.checkpoint.save_handler.write_file", full)
        with pytest.raises(TrainingError, match=r"c/step_2 could not be written: .*No space left "
                                                r"on device; that of step 1 stands"):
            checkpoints.save(2, items(2), {})
            checkpoints.wait()
        monkeypatch.undo()
        assert checkpoints.steps() == [1] and not list((tmp_path / "c").glob("*tmp*"))
        checkpoints.save(2, items(2), {})
        checkpoints.wait()
        assert_bitwise(checkpoints.restore(2, shapes(items())), items(2))


def test_a_failed_save_leaves_no_error_to_the_next_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax writes a small file beside the arrays; here it comes after the save has failed."""
    from orbax.checkpoint._src.metadata.checkpoint import _MetadataStoreImpl as Store

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def late(own: Any, path: Any, *values: Any, **named: Any) -> None:
        time.sleep(0.3)
        write(own, path, *values, **named)

    write = Store.write
    with Checkpoints(tmp_path / "c") as checkpoints:
        monkeypatch.setattr(Store, "write", late)
        monkeypatch.setattr("rec_jax.checkpoint.save_handler.write_file", full)
        with pytest.raises(TrainingError, match="No space left"):
            checkpoints.save(2, items(2), {})
            checkpoints.wait()
        monkeypatch.undo()
        checkpoints.save(2, items(2), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(
        several: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "c")
    (folder / "step_5").rename(folder / "step_5.removed")
    (folder / "step_5.removed" / "seal.json").unlink()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [2, 6]
    assert not (folder / "step_5.removed").exists()
