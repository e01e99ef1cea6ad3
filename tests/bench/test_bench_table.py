"""`rec-jax bench table`: which combinations there are, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rec_jax.bench import table as bench_table
from rec_jax.errors import InputError
from rec_jax.train.timed import Cell, Shapes


def test_combinations_that_have_no_cache_stand_once() -> None:
    found = bench_table.cells([100, 1e3], ["device", "disk"], [0.1, 0.5], [0, 8])
    assert len(found) == len(set(found)) == 2 * (2 + 3)
    assert Cell("disk", 1000, 8, 0.5) in found and Cell("disk", 100, 0) in found
    assert {one.name for one in found if one.where == "disk"} == {
        "full softmax, disk", "8 negatives, disk, cache 0.1", "8 negatives, disk, cache 0.5"}


@pytest.mark.parametrize(("arguments", "message"), [
    (([1], ["host"], [0.1], [0]), "items are 1 to 1; expected 2 to"),
    (([9], ["tape"], [0.1], [0]), "placement 'tape' is unknown; expected one of device, host"),
    (([9], ["host"], [2], [1]), "caches above 0 and at most 1"),
    (([9], ["host"], [0.1], [-1]), "negatives from 0"),
    (([9], [], [0.1], [1]), "placement is empty")])
def test_what_is_no_combination_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        bench_table.cells(*arguments)


@pytest.mark.slow
def test_every_kind_of_table_takes_its_steps_and_is_written_of(tmp_path: Path) -> None:
    cells = bench_table.cells([900], bench_table.PLACEMENTS, [0.5], [0, 8])
    shapes = Shapes(positions=20, length=10, dim=8, part=500, warm=1, dtype="bf16")
    result = bench_table.run(cells, shapes, steps=2, rounds=2, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert [one["where"] for one in result["cells"]] == [one.where for one in cells]
    for one in result["cells"]:
        assert 0 < one["fastest_round_seconds"] <= one["median_step_seconds"]
        assert one["median_step_seconds"] <= one["slowest_round_seconds"]
        assert (one["times_the_device"] == 1) == (one["where"] == "device")
    assert result["bytes_per_second"]["disk_read"] > 0
    text = bench_table.markdown(result)
    assert text.count("\n| full softmax |") == 3 and "20 positions, d = 8, rows in bf16" in text
    assert bench_table.plot(result, tmp_path / "plot.png").stat().st_size > 1000
