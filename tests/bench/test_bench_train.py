"""Throughput of a config: every variant in turn, counted from the data."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner

from rec_jax import config
from rec_jax.bench import train as bench_train
from rec_jax.cli.app import app
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.devices import Devices, this_machine
from rec_jax.errors import InputError
from rec_jax.plan.estimate import make_plan
from rec_jax.run import RunConfig

if TYPE_CHECKING:
    from conftest import TinyMapping

STEPS, ROUNDS = 3, 2


@pytest.fixture(scope="module")
def result(tiny_mapping: TinyMapping, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "config.toml").write_text(tomli_w.dumps(tiny_mapping("train.accumulate=2")))
    out = folder / "speed.json"
    shown = CliRunner().invoke(app, [
        "bench", "train", str(folder / "config.toml"), "--vary", "data.pack=true,false",
        "--steps", str(STEPS), "--rounds", str(ROUNDS), "--out", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    found: dict[str, Any] = json.loads(shown.stdout)
    written = json.loads(Path(found.pop("out")).read_text())
    assert found.items() <= written.items() and written["machine"]["cores"] >= 1
    return found


def test_every_variant_is_measured_in_every_round(result: dict[str, Any]) -> None:
    assert [one["name"] for one in result["variants"]] == ["data.pack=true", "data.pack=false"]
    for one in result["variants"]:
        assert len(one["rounds"]) == ROUNDS and one["spread"][0] >= 1 >= one["spread"][1]
        assert one["program_bytes"] > 0 and one["compile_seconds"] > 0
    assert result["process_peak_bytes"] > 0


def test_targets_and_sequences_are_those_of_the_batches(
        result: dict[str, Any], tiny_dataset: Path) -> None:
    for one, packed in zip(result["variants"], (True, False), strict=True):
        stream = BatchStream(Dataset.open(tiny_dataset), length=12, rows=8, pack=packed, seed=3)
        # Two steps warm up; a step here is two micro-batches of four rows, the same eight rows.
        for number, measured in enumerate(one["rounds"]):
            first = 2 + number * STEPS
            batches = [stream.batch(step) for step in range(first, first + STEPS)]
            assert measured["targets"] == sum(int((b["targets"] >= 0).sum()) for b in batches)
            assert measured["sequences"] == sum(
                int(b["segments"].max(axis=1).sum()) for b in batches)


def test_the_share_of_peak_is_operations_over_time_over_the_product(
        result: dict[str, Any], tiny_mapping: TinyMapping) -> None:
    settings = config.build(RunConfig, tiny_mapping("train.accumulate=2"))
    plan = make_plan(settings, result["variants"][0]["items"], Devices(this_machine(), 1))
    for one in result["variants"]:
        assert one["operations_per_step"] == pytest.approx(sum(plan.operations.values()))
        rate = one["operations_per_step"] / one["step_seconds"]
        assert one["share_of_peak"] == pytest.approx(
            rate / result["peak_operations_per_second"]["f32"])


def test_useful_operations_are_those_of_items_and_their_pairs(
        result: dict[str, Any], tiny_dataset: Path, tiny_mapping: TinyMapping) -> None:
    """The tiny model by hand: one layer, d = 16, hidden 32, causal, 50 items."""
    stream = BatchStream(Dataset.open(tiny_dataset), length=12, rows=8, pack=True, seed=3)
    one = result["variants"][0]
    expected = 0.0
    for step in range(2, 2 + STEPS):
        batch = stream.batch(step)
        for row in batch["segments"]:
            for number in range(1, row.max() + 1):
                length = int((row == number).sum())
                matrices = 16 * (3 * 16 + 16 + 2 * 32)
                expected += 3 * 2 * length * matrices
                expected += 3 * sum(2 * 2 * 16 * (place + 1) for place in range(length))
        expected += 8 * int((batch["targets"] >= 0).sum()) * one["items"] * 16
    assert one["rounds"][0]["useful"] == pytest.approx(expected)
    mean = sum(entry["useful"] for entry in one["rounds"]) / STEPS / ROUNDS
    assert one["useful_operations_per_step"] == pytest.approx(mean)
    assert one["useful_share_of_peak"] == pytest.approx(
        mean / one["step_seconds"] / result["peak_operations_per_second"]["f32"])
    assert one["useful_share_of_usual"] >= one["useful_share_of_peak"]


def test_the_table_shows_every_variant(result: dict[str, Any]) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(bench_train.table(result))
    text = console.export_text()
    assert "data.pack=true" in text and "data.pack=false" in text


def test_variations_are_all_combinations() -> None:
    assert bench_train.vary([]) == [()]
    assert bench_train.vary(["a.b=1,2", "c=x, y"]) == [
        ("a.b=1", "c=x"), ("a.b=1", "c=y"), ("a.b=2", "c=x"), ("a.b=2", "c=y")]


@pytest.mark.parametrize("line", ["train.rows", "=3", "train.rows=", "train.rows=1,,2"])
def test_a_variation_that_names_nothing_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="expected key=value,value"):
        bench_train.vary([line])


def test_impossible_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps = 0"):
        bench_train.run(tmp_path / "none.toml", steps=0)
