"""The benchmark of the kernels runs on any size and says what it left out."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from rec_jax.bench import softmax as bench_softmax
from rec_jax.bench.softmax import Cell
from rec_jax.kernels.native import build as native_build

OURS = ["xla"] if native_build.problem() else ["native", "xla"]


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    return bench_softmax.run(queries=(8, 16), items=(64,), dims=(4,), rank=(Cell(8, 128, 4),),
                             rounds=2, most_scores=600)


def test_every_contender_has_seconds_and_memory(result: dict[str, list[dict]]) -> None:
    json.dumps(result)
    assert [(cell["n"], cell["v"], cell["d"]) for cell in result["loss"]] == [(8, 64, 4)]
    assert [row["name"] for row in result["loss"][0]["contenders"]] == [*OURS, "dense"]
    assert [row["name"] for row in result["rank"][0]["contenders"]] == [
        *OURS, "matmul + top-100", "matmul + compare"]
    for cell in (*result["loss"], *result["rank"]):
        for row in cell["contenders"]:
            assert row["best"] <= row["seconds"] and row["extra_bytes"] >= 0
    for what, products in (("loss", 4), ("rank", 1)):
        cell = result[what][0]
        operations = products * 2 * cell["n"] * cell["v"] * cell["d"]
        for row in cell["contenders"]:
            assert row["share_of_product"] == pytest.approx(
                operations / row["seconds"] / cell["product_operations_per_second"])


def test_dense_contenders_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_softmax, "free_host_memory", lambda: 1000.0)
    result = bench_softmax.run(queries=(8,), items=(128,), dims=(4,), rank=(Cell(8, 128, 4),),
                               rounds=1)
    for cell, ours in ((result["loss"][0], OURS), (result["rank"][0], OURS)):
        assert [row["name"] for row in cell["contenders"]] == ours
        assert cell["skipped"]


def test_the_tables_show_every_contender(result: dict[str, list[dict]]) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    for table in bench_softmax.tables(result):
        console.print(table)
    text = console.export_text()
    for name in ("dense", "matmul + compare"):
        assert name in text
