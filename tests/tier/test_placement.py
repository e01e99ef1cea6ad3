"""Where a table lies: by size, by what is asked for, and what a plan says of it."""

from __future__ import annotations

import pytest

from rec_jax import config
from rec_jax.devices import parse_devices
from rec_jax.errors import InputError
from rec_jax.plan.estimate import Plan, make_plan
from rec_jax.run import RunConfig
from rec_jax.tables import RowOptimizerConfig, TableConfig, row_optimizer
from rec_jax.tables.placement import Asked, choose_placement, row_bytes

GIB = 2**30
BASE = {"data": {"path": "anywhere", "length": 64}, "train": {"rows": 64},
        "objective": {"kind": "sampled_softmax"}}


def plan(items: float, devices: str, *lines: str) -> Plan:
    return make_plan(config.build(RunConfig, config.override(BASE, lines)), int(items),
                     parse_devices(devices))


def test_a_table_lies_on_the_devices_where_it_fits_and_else_on_the_host() -> None:
    assert plan(1e6, "h100").placements["items"].where == "device"
    large = plan(1e9, "h100")
    found = large.placements["items"]
    assert found.where == "host" and "more than 52.2 GiB" in found.reason and large.fits
    assert large.memory["rows"] == found.slots * 64 * 4
    assert large.memory["rows"] + large.memory["row optimizer"] <= 0.4 * 80e9
    assert large.host["rows"] == large.rows * (64 * 4 + 64 * 4 + 8)
    assert plan(1e9, "v5p:4x4x4").placements["items"].where == "device"  # 64 of them
    assert plan(1e9, "cpu").placements["items"].where == "device"


def test_a_table_that_must_be_on_the_devices_stays_there_by_itself_and_says_why() -> None:
    found = plan(1e9, "h100", "objective.kind=hard_negatives").placements["items"]
    assert found.where == "device" and "searches all rows" in found.reason
    found = plan(1e9, "h100x2", "objective.kind=next_item").placements["items"]
    assert found.where == "device" and "pass by one device, and the mesh has 2" in found.reason
    with pytest.raises(InputError, match="cannot be: the rows of a full softmax pass by one"):
        plan(1e9, "h100x2", "objective.kind=next_item", "table.placement=disk")


def test_the_rows_of_a_full_softmax_pass_by_where_they_do_not_fit() -> None:
    found = plan(1e9, "h100", "objective.kind=next_item")
    placed = found.placements["items"]
    assert placed.where == "host" and placed.passes and placed.slots == 2 * 64 * 64
    assert "they pass by in parts, twice a step" in placed.line and found.fits
    assert "which of them, and where" in found.host and not found.host["which of them, and where"]
    assert not plan(1e6, "h100", "objective.kind=next_item").placements["items"].passes


def test_a_disk_is_taken_where_it_is_asked_for_and_the_host_keeps_where_rows_are() -> None:
    found = plan(1e8, "h100", "table.placement=disk", "table.cache=0.05")
    assert found.placements["items"].where == "disk"
    assert found.placements["items"].slots == 5_000_000
    assert found.host == {"rows": 0.0, "which of them, and where": found.rows * 12.0}


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam", "row_adam"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_bytes_of_a_row_are_those_of_its_arrays(kind: str, dtype: str) -> None:
    import jax

    settings = TableConfig(dim=16, dtype=dtype, optimizer=RowOptimizerConfig(kind=kind))  # type: ignore[arg-type]
    state = row_optimizer(settings.optimizer).init((3, 16))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // 3
    assert row_bytes(settings) == size + 16 * (4 if dtype == "f32" else 2)


def test_a_cache_has_room_for_any_step_and_no_more_rows_than_there_are() -> None:
    asked = Asked(10_000, 600, None)

    def slots(cache: float | None, shards: int = 1, memory: float | None = None) -> int:
        return choose_placement(TableConfig(placement="host", cache=cache), asked, shards=shards,
                                needed=10 * GIB, memory=memory).slots

    assert slots(0.1) == 1000 and slots(2500) == 2500 and slots(0.3, shards=4) == 750
    assert slots(1.0) == 10_000 and slots(2**30) == 10_752
    assert slots(None) == 2400 and slots(None, memory=10 * GIB) == int(10_752 * 0.4)
    assert slots(None, memory=GIB / 100) == 600
    with pytest.raises(InputError, match=r"table.cache = 0.05 is 500 rows a shard, and a step may "
                                         r"read 600 of one shard; expected at least 600"):
        slots(0.05)
    with pytest.raises(InputError, match=r"expected at least 2400"):
        slots(0.1, shards=4)
