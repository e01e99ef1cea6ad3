"""What a plan says of a table that passes by."""

from __future__ import annotations

import pytest
from test_plan import run_config

from rec_jax.devices import parse_devices
from rec_jax.errors import InputError
from rec_jax.plan.estimate import make_plan
from rec_jax.plan.passing import Ways, passing
from rec_jax.tables.table import padded_size

LINES = ("table.update=streamed", "table.optimizer.kind=adagrad", "table.dtype=bf16",
         "table.dim=64", "train.precision=bf16", "data.length=50", "train.rows=8")


def test_bytes_are_those_of_two_passes_and_the_bound_is_where_both_take_as_long() -> None:
    rows = padded_size(10**7)
    plan = make_plan(run_config(*LINES, "table.placement=disk"), 10**7, parse_devices("cpu"),
                     Ways(disk_read=2e9, disk_write=1e9))
    by = plan.passing
    assert by is not None and by.positions == 400
    assert by.read == rows * (128 + 132) and by.written == rows * 132
    assert by.seconds == pytest.approx(by.read / 2e9 + by.written / 1e9)
    assert plan.seconds["rows that pass by"] == by.seconds
    assert plan.memory["rows"] < 2**20 < plan.memory["parts that pass by"] == by.held
    positions = by.bound_from
    compute = max(plan.operations["softmax"] / (plan.devices.chip.bf16 * 0.5),
                  plan.seconds["exponentials"]) / 400
    assert (positions - 1) * compute < by.seconds <= positions * compute


def test_an_accelerator_is_bound_by_its_link_up_to_some_thousand_positions() -> None:
    h100 = parse_devices("h100")
    by = make_plan(run_config(*LINES, "table.placement=host"), 10**9, h100).passing
    assert by is not None and 4000 < by.bound_from < 6000
    faster = make_plan(run_config(*LINES, "table.placement=host"), 10**9, h100,
                       Ways(host_link=100e9)).passing
    assert faster is not None and abs(by.bound_from - 2 * faster.bound_from) <= 2


def test_a_table_on_the_device_passes_nobody_by_and_rates_are_positive() -> None:
    assert make_plan(run_config(*LINES), 10**5, parse_devices("cpu")).passing is None
    with pytest.raises(InputError, match=r"plan.disk_read is 0"):
        Ways(disk_read=0)
    host = passing(1000, 8, 4, 10, where="host", memory=1e3, ways=Ways(), positions=5,
                   compute_seconds=1)
    assert host.seconds == (1000 * 20 + 1000 * 12) / 1e3 and host.held == 4 * 10 * 12
