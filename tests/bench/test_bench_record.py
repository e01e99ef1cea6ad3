"""A benchmark's record says what ran where, and names no machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rec_jax.bench import record as bench_record


def test_a_record_is_stamped_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/rec-jax", "bench", "--data=/mnt/sets/films"])
    path = bench_record.record(tmp_path / "new" / "speed.json", {"ratio": 2.5})
    found = json.loads(path.read_text())
    assert found["ratio"] == 2.5
    assert found["command"] == "rec-jax bench --data=films"
    assert found["versions"]["jax"] and found["machine"]["cores"] >= 1 and found["date"]
    assert [entry.name for entry in path.parent.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(("argument", "shown"), [
    ("/a/b/c.json", "c.json"), ("data.path=/mnt/x/ml-1m", "data.path=ml-1m"),
    ('data.path="/mnt/x/ml-1m"', 'data.path="ml-1m"'),
    ("configs/ml1m.toml", "configs/ml1m.toml"), ("a/b", "a/b"), ("3", "3")])
def test_absolute_paths_are_cut_to_their_last_part(argument: str, shown: str) -> None:
    assert bench_record.without_folders(argument) == shown


@pytest.mark.parametrize(("flags", "isa"), [
    ({"sse2", "avx2", "fma"}, "avx2"), ({"avx2", "avx512f"}, "avx512"),
    ({"avx2", "avx512f", "amx_tile"}, "amx"), ({"asimd", "fp"}, "neon")])
def test_the_widest_instructions_are_named(flags: set[str], isa: str) -> None:
    assert bench_record._isa(flags) == isa


def test_what_holds_programs_to_lesser_instructions_is_told(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_cpu_max_isa=AVX2")
    monkeypatch.setenv("REC_JAX_NATIVE_ISA", "avx2")
    assert bench_record.about_machine()["held_to"] == {
        "REC_JAX_NATIVE_ISA": "avx2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
