"""Reading, pruning and compacting beside each other: nobody loses what he reads or writes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import files, locks
from rec_jax.checkpoint import Checkpoints, Damaged, Missing, read_blocks, updated_rows
from rec_jax.errors import TrainingError

ROWS, DIM, LONG = 4096, 32, 500
LIKE = {"model": {"rows": jax.ShapeDtypeStruct((ROWS, DIM), jnp.float32)}}


def state(step: int) -> np.ndarray:
    """Rows `[ROWS, DIM]` after so many deltas; each changes one row."""
    rows = np.zeros((ROWS, DIM), np.float32)
    for one in range(1, step + 1):
        rows[one % 7] = one
    return rows


def save_chain(folder: Path, last: int, keep: int = 10**6) -> Path:
    """Full step 0 and a delta a step up to `last`."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        checkpoints.save(0, {"model": {"rows": jnp.asarray(state(0))}}, {})
        for step in range(1, last + 1):
            save_delta(checkpoints, step)
    return folder


def save_delta(checkpoints: Checkpoints, step: int) -> None:
    rows = updated_rows(jnp.asarray(state(step)), np.asarray([step % 7]))
    checkpoints.save(step, {"model": {"rows": rows}}, {}, base=step - 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chain(tmp_path_factory.mktemp("beside") / "c", 4)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "c"))


def rows_of(folder: Path, step: int) -> np.ndarray:
    with Checkpoints(folder, read_only=True) as checkpoints:
        return np.asarray(checkpoints.restore(step, LIKE)["model"]["rows"])


def verb(folder: Path, **settings: Any) -> Checkpoints:
    """As `rec-jax checkpoint` opens a folder in which a training may be at work."""
    return Checkpoints(folder, alone=False, **settings)


def test_what_is_read_is_not_pruned_nor_what_it_builds_on(folder: Path) -> None:
    with Checkpoints(folder, read_only=True) as reader, verb(folder) as other:
        opened = reader.open(2)
        other.compact(4)
        assert other.prune(1) == [3]
        source = opened.items["model"]["['rows']"]
        found = np.concatenate([rows for _, rows in read_blocks(source)])
        np.testing.assert_array_equal(found, state(2))
        del opened, source
        assert other.prune(1) == [0, 1, 2] and other.steps() == [4]


def test_a_reader_that_began_with_a_delta_keeps_it_while_it_is_made_full(folder: Path) -> None:
    with Checkpoints(folder, read_only=True) as reader, verb(folder) as other:
        opened = reader.open(4)
        other.compact(4)
        other.compact(2)
        assert (folder / "step_4").is_dir() and (folder / "step_4.full").is_dir()
        assert other.info(4).base is None and other.prune(1) == []
        np.testing.assert_array_equal(opened.items["model"]["['rows']"].read(0, ROWS), state(4))
        del opened
        assert other.prune(1) == [0, 1, 2, 3]
    assert sorted(os.listdir(folder)) == [".lock", "step_4.full"]
    np.testing.assert_array_equal(rows_of(folder, 4), state(4))


def test_a_reader_writes_nothing(folder: Path) -> None:
    (folder / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    with Checkpoints(folder, read_only=True) as reader:
        assert reader.verify(4) > 0 and reader.best() == 4 and not reader.leftovers()
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_a_checkpoint_that_goes_while_it_is_opened_is_looked_for_again(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rec_jax.checkpoint import folder as module

    def and_then(act: Callable[[], object]) -> None:
        """The next checkpoint that is opened is acted upon first."""
        real = module.open_checkpoint

        def once(*arguments: Any) -> Any:
            monkeypatch.setattr(module, "open_checkpoint", real)
            act()
            return real(*arguments)

        monkeypatch.setattr(module, "open_checkpoint", once)

    with Checkpoints(folder, read_only=True) as reader, verb(folder) as other:
        and_then(lambda: other.compact(4))
        assert reader.open(4).info.base is None
        and_then(lambda: other.prune(1))
        with pytest.raises(Missing, match="has no checkpoint of step 2; it has 4"):
            reader.open(2)


def test_the_next_delta_has_its_base_whatever_is_pruned_or_made_full(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=1) as training, verb(tmp_path / "c") as other:
        training.save(0, {"model": {"rows": jnp.asarray(state(0))}}, {})
        for step in range(1, 7):
            save_delta(training, step)  # under way while the others work
            other.prune(1)
            if step % 2 and other.steps():
                other.compact(max(other.steps()))
        training.wait()
        assert training.latest() == 6 and training.verify(6) > 0
    np.testing.assert_array_equal(rows_of(tmp_path / "c", 6), state(6))


def test_a_verb_does_not_touch_the_save_of_a_training(folder: Path) -> None:
    under_way = folder / "step_5.orbax-checkpoint-tmp"
    under_way.mkdir()
    with verb(folder) as other:
        other.prune(1)
        other.compact(4)
        assert under_way.is_dir()
    with Checkpoints(folder):
        assert not under_way.exists()


def test_two_may_make_the_same_delta_full_at_once(folder: Path) -> None:
    problems: list[BaseException] = []

    def compact() -> None:
        try:
            with verb(folder) as other:
                other.compact(4)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=compact) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with verb(folder) as other:
        other.prune(1)
    assert sorted(os.listdir(folder)) == [".lock", "step_4.full"]
    np.testing.assert_array_equal(rows_of(folder, 4), state(4))


def test_a_compaction_that_ends_after_its_step_was_saved_anew_changes_nothing(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rec_jax.checkpoint import compact as module

    real = module.write_manifest

    def anew(whole: Path) -> None:
        real(whole)
        (folder / "step_4").rename(folder / "step_4.damaged")
        with Checkpoints(folder, alone=False) as training:
            training.save(4, {"model": {"rows": jnp.full((ROWS, DIM), 9.0)}}, {})

    monkeypatch.setattr(module, "write_manifest", anew)
    with verb(folder) as other:
        other.compact(4)
    monkeypatch.undo()
    np.testing.assert_array_equal(rows_of(folder, 4), np.full((ROWS, DIM), 9.0, np.float32))
    assert not list(folder.glob("*.full*"))


def test_a_compaction_that_fails_leaves_the_delta_alone(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rec_jax.checkpoint.compact.write_file", full)
    with verb(folder) as other, pytest.raises(
            TrainingError, match=r"c/step_4 could not be made full: No space left on device"):
        other.compact(4)
    assert sorted(os.listdir(folder)) == [".lock", *(f"step_{step}" for step in range(5))]


@pytest.mark.parametrize("cleared_by", ["training", "prune"])
def test_a_compaction_killed_before_its_delta_was_removed_never_brings_it_back(
        folder: Path, cleared_by: str) -> None:
    with verb(folder) as other:
        shutil.copytree(folder / "step_4", folder / "aside")
        other.compact(4)
    (folder / "aside").rename(folder / "step_4")  # as it was, had the kill come a little earlier
    if cleared_by == "training":
        with Checkpoints(folder, keep=1) as training:
            assert not (folder / "step_4").exists()
            training.save(9, {"model": {"rows": jnp.zeros((ROWS, DIM))}}, {})
    else:
        with verb(folder) as other:
            other.save(9, {"model": {"rows": jnp.zeros((ROWS, DIM))}}, {})
            other.wait()
            other.prune(1)
    with Checkpoints(folder, read_only=True) as reader:
        assert reader.steps() == [9]


def test_where_the_full_one_is_damaged_the_delta_beside_it_is_used(folder: Path) -> None:
    shutil.copytree(folder / "step_4", folder / "aside")
    with verb(folder) as other:
        other.compact(4)
    block = next((folder / "step_4.full").rglob("c/0/0"))
    block.write_bytes(block.read_bytes()[:-1])
    (folder / "aside").rename(folder / "step_4")
    warnings: list[str] = []
    with verb(folder, warn=warnings.append) as training:
        found = training.newest(lambda step: training.restore(step, LIKE)["model"]["rows"])
        assert found is not None and found[0] == 4 and len(warnings) == 1
        np.testing.assert_array_equal(found[1], state(4))
    assert (folder / "step_4.damaged").is_dir() and not (folder / "step_4.full").exists()


def test_of_one_step_several_damaged_ones_are_kept(folder: Path) -> None:
    for name in ("step_4.damaged", "step_4.damaged-2"):
        with Checkpoints(folder, warn=lambda _: None) as training:
            (folder / "step_4" / "seal.json").write_text("{}")
            training.newest(lambda step: training.restore(step, LIKE))
            assert (folder / name).is_dir() and training.latest() == 3
            save_delta(training, 4)


def test_a_prune_that_is_killed_leaves_no_delta_without_its_base(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(folder, alone=False) as training:
        training.save(9, {"model": {"rows": jnp.zeros((ROWS, DIM))}}, {})
    real, calls = files.flush, iter(range(3))

    def killed(path: Path) -> None:
        real(path)
        if next(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("rec_jax.checkpoint.removal.files.flush", killed)
    with verb(folder) as other, pytest.raises(KeyboardInterrupt):
        other.prune(1)
    monkeypatch.undo()
    with Checkpoints(folder, read_only=True) as reader:
        assert reader.steps() == [0, 1, 9]
        for step in reader.steps():
            assert reader.verify(step) > 0


def test_a_training_goes_on_where_a_stopped_process_has_the_lock(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.checkpoint.removal.WAIT_SECONDS", 0.1)
    warnings: list[str] = []
    with Checkpoints(tmp_path / "c", keep=1, warn=warnings.append) as training:
        with locks.locked(tmp_path / "c"):
            for step in (1, 2):
                training.save(step, {"model": {"rows": jnp.zeros(3)}}, {})
            training.wait()
        assert training.steps() == [1, 2]
        assert len(warnings) == 2 and "old checkpoints stay for now" in warnings[0]
        training.save(3, {"model": {"rows": jnp.zeros(3)}}, {})
        training.wait()
        assert training.steps() == [3]


@pytest.mark.slow
def test_a_chain_of_five_hundred_deltas_is_read_and_made_full(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of them, and no power cut
    folder = tmp_path / "c"
    save_chain(folder, 2)
    # Each later step is the one before with another number: deltas of the same row again.
    for step in range(3, LONG + 1):
        copy_as(folder, step)
    expected = state(2)
    with verb(folder) as checkpoints:
        opened = checkpoints.open(LONG)
        np.testing.assert_array_equal(opened.items["model"]["['rows']"].read(0, ROWS), expected)
        np.testing.assert_array_equal(checkpoints.restore(LONG, LIKE)["model"]["rows"], expected)
        del opened
        checkpoints.compact(LONG)
        assert len(checkpoints.prune(1)) == LONG
    np.testing.assert_array_equal(rows_of(folder, LONG), expected)


def copy_as(folder: Path, step: int) -> None:
    """A copy of step 2 as delta `step` of the step before, sealed as a save would."""
    from rec_jax.checkpoint.index import CheckpointInfo, write_info
    from rec_jax.checkpoint.manifest import write_file, write_manifest

    path = folder / f"step_{step}"
    shutil.copytree(folder / "step_2", path)
    write_file(path / "info.json", write_info(CheckpointInfo(step, None, step - 1, {})))
    write_manifest(path)


def test_what_a_checkpoint_says_is_held_against_its_seal_first(folder: Path) -> None:
    info = folder / "step_4" / "info.json"
    info.write_text(info.read_text().replace('"base": 3', '"base": 1'))
    with (Checkpoints(folder, read_only=True) as reader,
          pytest.raises(Damaged, match=r"step_4/info.json has changed")):
        reader.open(4)
