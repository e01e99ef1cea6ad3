"""The page of results is made from the recorded files, and leaves none out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STAMP = {"date": "2030-01-02T03:04:05+00:00", "command": "python benchmarks/x.py --fast",
         "machine": {"cpu": "Some CPU", "cores": 7, "memory_bytes": 2**33, "devices": ["cpu"]},
         "versions": {"python": "3.11.7", "jax": "0.10.2"}}


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_report", BENCHMARKS / "report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_report"] = module
    spec.loader.exec_module(module)
    return module


def throughput(name: str, targets: float) -> dict[str, Any]:
    return {"name": name, "items": 3416, "rows": 4, "length": 8, "step_seconds": 0.0125,
            "positions_per_second": 2560.0, "targets_per_second": targets,
            "sequences_per_second": 320.0, "share_of_peak": 0.25, "compile_seconds": 3.5}


def test_the_committed_page_is_what_the_files_say(report: ModuleType) -> None:
    text = report.page(report.read_results(BENCHMARKS / "results"))
    assert (BENCHMARKS / "README.md").read_text() == text, "run python benchmarks/report.py"


def test_every_recorded_file_is_on_the_page_with_its_origin(report: ModuleType) -> None:
    results = report.read_results(BENCHMARKS / "results")
    lines = report.page(results).splitlines()
    assert results
    for name, one in results.items():
        origin = [line for line in lines if line.startswith(f"- [{name}](results/{name}): ")]
        assert len(origin) == 1 and f"`{one['command']}`" in origin[0]
        assert one["date"][:10] in origin[0] and one["machine"]["cpu"] in origin[0]


def trained(seed: int, ndcg: float, rows: int = 8) -> dict[str, Any]:
    return {**STAMP, "test": {"hr@10": 0.25, "ndcg@10": ndcg},
            "popularity_baseline": {"ndcg@10": 0.05}, "seconds_per_epoch": 2.0,
            "seconds_to_best": 30.0, "protocol": {"seen_items_filtered": True, "ties": "lose",
                                                  "target": "the last item"},
            "config": {"seed": seed, "data": {"path": "films"}, "encoder": {"kind": "hstu"},
                       "objective": {"kind": "bce"}, "table": {"update": "dense", "dim": 4},
                       "train": {"rows": rows}}}


def test_runs_that_differ_in_the_seed_alone_have_a_mean(report: ModuleType) -> None:
    results = {"a.json": trained(0, 0.1), "b.json": trained(1, 0.2), "c.json": trained(0, 0.9, 4)}
    lines = report.page(results).splitlines()
    assert "| a | 2 | 0.2500 (0.2500 to 0.2500) | 0.1500 (0.1000 to 0.2000) |" in lines
    assert not any("differ in the seed" in line
                   for line in report.page({"c.json": results["c.json"]}).splitlines())


def test_a_result_of_a_known_kind_stands_in_its_section(report: ModuleType) -> None:
    result = {**STAMP, "peak_operations_per_second": {"f32": 1e11},
              "variants": [throughput("data.pack=true", 2500.0),
                           throughput("data.pack=false", 999.5)]}
    text = report.page({"speed.json": result})
    section = text.split("## Training throughput")[1]
    assert "| speed | data.pack=true | 3,416 | 4 x 8 | 12.5 | 2,560 | 2,500 |" in section
    assert "| 999.5 |" in section and "25%" in section
    assert "Some CPU, 7 cores, 8 GiB" in section and "2030-01-02" in section
    assert "## Further results" not in text


def test_models_of_one_dataset_stand_by_their_quality(report: ModuleType) -> None:
    def model(ndcg: float, parameters: int | None, *seeds: int) -> dict[str, Any]:
        return {"parameters": parameters, "runs": [{"seed": seed} for seed in seeds],
                "mean": {"hr@10": 2 * ndcg, "ndcg@10": ndcg}}

    result = {**STAMP, "dataset": "films", "protocol": {"users": 1234, "ties": "lose",
                                                        "ranking": "all"},
              "models": {"one": model(0.1, 5678, 0), "two": model(0.25, None, 0, 1)}}
    lines = report.page({"models.json": result}).splitlines()
    assert "films, 1,234 users, all, ties lose:" in lines
    at = lines.index("| two | 0, 1 |  | 0.5 | 0.25 |")
    assert lines[at + 1] == "| one | 0 | 5,678 | 0.2 | 0.1 |"


def test_surviving_faults_are_shown_by_their_lines(report: ModuleType) -> None:
    counted = {"run": 3, "killed": 1, "timeout": 1, "survived": 1, "share": 2 / 3,
               "share_at_least": 0.2077}
    result = {**STAMP, **counted, "seed": 5, "drawn": 4, "mutations": 1200, "files": 2,
              "rooms": {"tables": counted}, "tests_of": {"a.py": ["test_a.py"]},
              "survivors": [{"file": "a.py", "line": 7, "function": None, "reached": False,
                             "diff": "@@ -7 +7 @@\n a\n-    x = (1 |\n-      2)\n+    x = 3\n"}]}
    text = report.page({"faults.json": result})
    assert "3 of 4 faults, drawn by seed 5 from 1,200 in 2 files" in text
    assert "| tables | 3 | 1 | 1 | 1 | 0.6667 | 0.2077 |" in text
    assert "| a.py:7 |  | no | `x = (1 / 2)` to `x = 3` |" in text
    assert "Further results" not in text and "test_a.py" not in text


def test_a_result_that_no_section_knows_is_shown_as_it_is(report: ModuleType) -> None:
    result = {**STAMP, "seconds": 1.5, "sides": {"left": 3}, "empty": [], "few": [1, 2],
              "cells": [{"n": number, "side": {"left": -number}, "parts": [1]}
                        for number in range(30)]}
    text = report.page({"odd.json": result})
    assert "## Further results" in text and "### odd" in text
    for row in ("| seconds | 1.5 |", "| sides, left | 3 |", "| empty | none |", "| few | 1, 2 |",
                "| n | side, left |", "| 23 | -23 |", "and 6 more in the file"):
        assert row in text
    assert "| 24 | -24 |" not in text and "parts" not in text


@pytest.mark.parametrize(("value", "shown"), [
    (12345.6, "12,346"), (0.123456, "0.1235"), (7, "7"), (True, "yes"), (None, ""), ("a", "a")])
def test_numbers_are_shown_to_a_few_digits(
        report: ModuleType, value: object, shown: str) -> None:
    assert report.show(value) == shown


def test_cells_cannot_break_the_table(report: ModuleType) -> None:
    rows = report.table(["a", "b"], [["x|y\nz", 1234567], ["", None]]).splitlines()
    assert rows == ["| a | b |", "| --- | ---: |", "| x/y z | 1,234,567 |", "|  |  |"]
