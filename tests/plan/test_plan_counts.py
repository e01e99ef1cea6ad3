"""A plan's operations and bytes are those that XLA counts of the compiled step, on eight devices.

The kernels are the dense reference here: XLA counts a loop over tiles once, whatever its length,
and does not look into kernels. For the same reason a plan's traffic with memory, that of a kernel
which keeps scores on the chip, has no counterpart among XLA's counts.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
from marks import fast_where

from rec_jax import config
from rec_jax.devices import parse_devices
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.plan.compile import lower_step, sent_bytes
from rec_jax.plan.estimate import Plan, make_plan
from rec_jax.run import RunConfig

ITEMS, WITHIN = 6000, 0.15
SAMPLED = ("objective.kind=sampled_softmax", "objective.count=128")
CASES = {
    "dense": ("table.update=dense",),
    "sparse": ("table.update=sparse", *SAMPLED),
    "streamed": ("table.update=streamed",),
    "sparse untied": ("table.update=sparse", "table.tied=false", *SAMPLED),
    "streamed untied": ("table.update=streamed", "table.tied=false"),
    "sparse bce": ("table.update=sparse", "objective.kind=bce", "objective.count=2"),
}
ALL = fast_where(lambda *case: case in {("dense", 1, 8), ("sparse", 2, 4), ("streamed", 2, 4)},
                 CASES, (1, 2), (8, 4))
ALL = [case for case in ALL if case.values[1] * case.values[2] == 8]  # (1, 8) and (2, 4)


@functools.cache
def both(case: str, data: int, items: int) -> tuple[Plan, Any]:
    settings = config.build(RunConfig, config.override(
        {"data": {"path": "anywhere", "length": 32}, "train": {"rows": 64},
         "mesh": {"data": data, "items": items},
         "encoder": {"kind": "transformer", "layers": 1, "backend": "xla"}},
        (*CASES[case], *([] if "bce" in case else ["objective.backend=reference"]))))
    compiled = lower_step(settings, ITEMS, make_mesh(MeshConfig(data, items))).compile()
    return make_plan(settings, ITEMS, parse_devices("h100x8")), compiled


@pytest.mark.parametrize(("case", "data", "items"), ALL)
def test_operations_are_those_of_the_compiled_step(case: str, data: int, items: int) -> None:
    plan, compiled = both(case, data, items)
    counted = compiled.cost_analysis()["flops"]
    assert sum(plan.operations.values()) == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize(("case", "data", "items"), ALL)
def test_bytes_of_the_state_are_those_of_the_compiled_step(
        case: str, data: int, items: int) -> None:
    plan, compiled = both(case, data, items)
    memory = compiled.memory_analysis()
    # Of the encoder's four arrays one is the gradient, which lives in a step only.
    state = (plan.memory["rows"] + plan.memory["row optimizer"]
             + plan.memory["encoder and its optimizer"] * 3 / 4)
    assert state == pytest.approx(memory.alias_size_in_bytes, rel=0.01)
    assert state == pytest.approx(memory.argument_size_in_bytes, rel=WITHIN)


@pytest.mark.parametrize(("case", "data", "items"), ALL)
def test_bytes_sent_are_those_of_the_compiled_steps_collectives(
        case: str, data: int, items: int) -> None:
    plan, compiled = both(case, data, items)
    counted = sent_bytes(compiled.as_text(), data * items)
    assert sum(plan.communication.values()) == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize(("data", "items"), [(1, 8), (2, 4)])
def test_bytes_that_a_sparse_step_needs_are_those_of_the_compiled_one(
        data: int, items: int) -> None:
    plan, compiled = both("sparse", data, items)
    memory = compiled.memory_analysis()
    needed = (memory.argument_size_in_bytes + memory.output_size_in_bytes
              - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
    assert plan.needed == pytest.approx(needed, rel=WITHIN)


@pytest.mark.parametrize(("line", "expected"), [
    ("%a = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to", 2 * 32 * 3 / 4),
    ("%a = f32[8]{0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}", 32 / 2),
    ("%a = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], "
     "device_ids=([2,4]T(1,0)) {'axis_0'}, use", 2 * 32 * 3 / 4),
    ("%a = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=1,'axis_1'=8] "
     "{'axis_0','axis_1'}, use", 2 * 32 * 7 / 8),
    ("%a = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}, to", 0),
    ("%a = f32[8]{0} all-to-all(%x), channel_id=1", 32 * 7 / 8),
    ("%a = f32[8]{0} add(%x, %y)", 0)])
def test_bytes_sent_are_read_from_a_programs_text(line: str, expected: float) -> None:
    assert math.isclose(sent_bytes(line, 8), expected)
