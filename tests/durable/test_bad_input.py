"""Whatever is in a config, a dataset or a checkpoint: it works, or it is one line of refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from rec_jax import locks
from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.checkpoint.manifest import write_manifest
from rec_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("verbs", "examples"), [
    (["plan", "export", "prepare", "prepare --overwrite", "data verify", "checkpoint list",
      "checkpoint inspect", "checkpoint verify", "checkpoint compact", "checkpoint prune"], 120),
    (["train", "train --resume", "evaluate", "recommend"], 22)], ids=["quick", "compiling"])
def test_mutated_input_works_or_is_refused_in_one_line(tmp_path: Path, verbs: list[str],
                                                       examples: int) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bad_input.py"), "--examples", str(examples),
         "--verbs", ",".join(verbs), "--out", str(out)], capture_output=True, text=True,
        timeout=1700, check=False, env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["findings"] == [] and found["examples"] >= examples
    counts = found["outcomes"]
    assert {pair.partition(":")[0] for pair in counts} == set(verbs)
    for outcome in ("works", "refused"):
        assert sum(count.get(outcome, 0) for count in counts.values()) > len(verbs) // 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One checkpoint with a large and a small array."""
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"model": {"rows": jnp.ones((1024, 128)), "small": jnp.ones(3)}}, {})
    return tmp_path / "c"


def rewrite(folder: Path, old: str, new: str) -> None:
    """Change the index and seal it again, as somebody hostile would."""
    path = folder / "step_1" / "model" / "leaves.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    write_manifest(folder / "step_1")


@pytest.mark.parametrize(("old", "new"), [
    ('"store": "array"', '"store": "packed"'),
    ('"dtype": "float32"', '"dtype": "object"'),
    ('"stored": ""', '"stored": "object"'),
    ("1024", "4611686018427387903"),
    ("1024", "-1"),
    ('"offset": 0', '"offset": 4611686018427387903'),
    ('"format": 2', '"format": 3'),
], ids=["store", "pickled type", "stored type", "absurd shape", "negative", "offset", "format"])
def test_a_hostile_index_is_refused_before_memory_is_taken(folder: Path, old: str,
                                                           new: str) -> None:
    rewrite(folder, old, new)
    with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(Damaged) as caught:
        checkpoints.verify(1)
    assert "\n" not in str(caught.value)


def test_paths_of_a_seal_lead_nowhere_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    seal = folder / "step_1" / "seal.json"
    content = json.loads(seal.read_text())
    content["files"]["../../secret"] = {"size": 1, "sha256": ""}
    seal.write_text(json.dumps(content))
    with (Checkpoints(folder, read_only=True) as checkpoints,
          pytest.raises(Damaged, match=r"\.\./secret is missing")):
        checkpoints.open(1)


def test_names_of_items_are_plain_words(tmp_path: Path) -> None:
    with (Checkpoints(tmp_path / "c") as checkpoints,
          pytest.raises(InputError, match="item name")):
        checkpoints.save(1, {"../model": jnp.ones(3)}, {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == [locks.LOCK]


def test_nothing_that_could_run_code_is_on_the_load_path() -> None:
    for path in (ROOT / "rec_jax" / "checkpoint").glob("*.py"):
        text = path.read_text()
        for word in ("pickle", "eval(", "exec(", "cloudpickle", "marshal", "import_module"):
            assert word not in text, (path.name, word)
