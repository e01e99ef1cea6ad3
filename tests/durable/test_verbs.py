"""`rec-jax checkpoint` shows, checks and prunes what a run has, in text and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

from rec_jax import config, locks
from rec_jax.checkpoint import Checkpoints
from rec_jax.cli.app import app
from rec_jax.errors import InputError
from rec_jax.run import Run, RunConfig


@pytest.fixture
def run(tiny_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 3, 6 and 9, the best one at 3."""
    made = Run(tmp_path / "run")
    made.create(config.build(RunConfig, tiny_mapping()))
    with Checkpoints(made.checkpoints, keep=3) as checkpoints:
        for step, metric in ((3, 0.9), (6, 0.5), (9, None)):
            checkpoints.save(step, {"model": {"rows": jnp.full((4, 2), step)}},
                             {"position": {"best": 0.9}}, metric)
    return made.folder


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def answer(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_names_steps_sizes_and_which_is_best(run: Path) -> None:
    rows = answer("list", str(run))["checkpoints"]
    assert [(row["step"], row["metric"], row["best"], row["latest"]) for row in rows] == [
        (3, 0.9, True, False), (6, 0.5, False, False), (9, None, False, True)]
    assert all(row["bytes"] > 100 and row["kind"] == "full" for row in rows)
    assert "best" in invoke("list", str(run)).stdout


def test_list_shows_a_damaged_checkpoint_and_goes_on(run: Path) -> None:
    (run / "checkpoints" / "step_6" / "info.json").write_text("{")
    rows = answer("list", str(run))["checkpoints"]
    assert [row["kind"] for row in rows] == ["full", "damaged", "full"]
    assert "info.json" in rows[1]["problem"]


def test_inspect_names_the_arrays_of_the_newest_checkpoint(run: Path) -> None:
    found = answer("inspect", str(run))
    assert found["step"] == 9 and found["extra"] == {"position": {"best": 0.9}}
    assert found["arrays"] == [
        {"item": "model", "path": "['rows']", "shape": [4, 2], "dtype": "int32"}]
    assert answer("inspect", str(run), "--step", "3")["metric"] == 0.9


def test_verify_finds_a_flipped_bit_and_says_where(run: Path) -> None:
    assert [row["problem"] for row in answer("verify", str(run))["checkpoints"]] == [None] * 3
    path = run / "checkpoints" / "step_6" / "model" / "packed.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    result = invoke("verify", str(run))
    assert isinstance(result.exception, InputError)
    assert "step_6/model/packed.bin has changed" in str(result.exception)
    assert answer("verify", str(run), "--step", "9")["checkpoints"][0]["problem"] is None


def test_prune_keeps_the_best_and_the_latest(run: Path) -> None:
    assert answer("prune", str(run)) == {"removed": [6], "kept": [3, 9], "cleared": []}
    assert answer("prune", str(run)) == {"removed": [], "kept": [3, 9], "cleared": []}


def leave_things(run: Path) -> list[str]:
    """What a killed save, compaction and removal leave, and a damaged checkpoint; their names."""
    names = ["step_12.orbax-checkpoint-tmp", "step_6.damaged", "step_6.full.ab12.tmp",
             "step_8.ab12.removed"]
    for name in names:
        shutil.copytree(run / "checkpoints" / "step_3", run / "checkpoints" / name)
    return names


def test_list_names_what_killed_processes_left_and_prune_clears_it_away(run: Path) -> None:
    names = leave_things(run)
    (run / "checkpoints" / "step_notes.tmp").mkdir()  # somebody's own
    found = answer("list", str(run))
    assert [row["step"] for row in found["checkpoints"]] == [3, 6, 9]
    assert [row["name"] for row in found["leftovers"]] == names
    assert [row["kind"] for row in found["leftovers"]] == [
        "save", "damaged", "compaction", "removed"]
    assert all(row["bytes"] > 100 for row in found["leftovers"])
    text = " ".join(invoke("list", str(run)).stdout.split())
    assert all(name in text for name in names) and "left by a save that was killed" in text
    cleared = answer("prune", str(run))["cleared"]
    assert cleared == ["step_12.orbax-checkpoint-tmp", "step_6.full.ab12.tmp"]
    assert [row["name"] for row in answer("list", str(run))["leftovers"]] == ["step_6.damaged"]
    assert answer("prune", str(run), "--damaged")["cleared"] == ["step_6.damaged"]
    assert answer("list", str(run))["leftovers"] == []
    assert (run / "checkpoints" / "step_notes.tmp").is_dir()


def test_prune_beside_a_training_and_a_compaction_leaves_what_they_write(run: Path) -> None:
    save, damaged, compaction, _ = leave_things(run)
    with locks.locked(run), locks.locked(run / "checkpoints" / compaction):
        assert answer("prune", str(run)) == {"removed": [6], "kept": [3, 9], "cleared": []}
        rows = answer("list", str(run))["leftovers"]
        assert [row["name"] for row in rows] == [save, damaged, compaction]
        assert [row["about"] for row in rows if row["kind"] != "damaged"] == [
            "a save that is under way", "a compaction that is under way"]
    with locks.locked(run / "checkpoints" / compaction):
        assert answer("prune", str(run))["cleared"] == [save]


def test_no_verb_opens_a_device_which_a_training_may_have(
        run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("process_index", "process_count", "devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_: pytest.fail("a device was opened"))
    for verb in ("list", "inspect", "verify", "compact", "prune"):
        answer(verb, str(run))


def test_no_verb_reads_the_code_that_a_config_names(run: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (run / "config.toml").read_text()
    assert 'kind = "transformer"' in text
    (run / "config.toml").write_text(text.replace('kind = "transformer"', 'kind = "theirs.x"'))
    for verb in ("list", "inspect", "verify", "compact", "prune"):
        answer(verb, str(run))


def test_compact_leaves_a_full_checkpoint_alone(run: Path) -> None:
    assert answer("compact", str(run)) == {"step": 9, "base_before": None}


@pytest.mark.parametrize("verb", ["list", "inspect", "verify", "compact", "prune"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, verb: str) -> None:
    result = invoke(verb, str(tmp_path))
    assert isinstance(result.exception, InputError)
    assert "is not a run" in str(result.exception)
