"""Bits and buffers at the optimisation level that users have.

`conftest.py` turns LLVM's optimisation off, which is where sums are reordered and copies of a
table appear or vanish. What promises equal bits or an update in place is tried without that too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = " ".join(["--xla_force_host_platform_device_count=8",
                  "--xla_cpu_collective_call_terminate_timeout_seconds=300",
                  "--xla_cpu_collective_timeout_seconds=300"])
FILES = {
    "tables": ["tests/tables/test_update_sparse.py::test_a_donated_table_is_updated_in_place",
               "tests/tables/test_update_sparse.py::test_bf16_rows_get_the_same_bits_on_every_mesh",
               "tests/tables/test_table.py::test_rows_start_with_the_same_bits_on_every_mesh"],
    "steps": ["tests/train/test_step_modes.py::test_the_step_updates_large_tables_in_place",
              "tests/train/test_switches.py::test_both_tables_are_rounded_by_chance_and_right_on_"
              "average",
              "tests/train/test_bf16_rows.py::test_the_average_of_1500_steps_is_that_of_the_"
              "weights_that_the_run_had"],
    "runs": ["tests/durable/test_untied_run.py::test_a_run_that_is_resumed_on_the_way_ends_with_"
             "the_same_bits"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_bits_and_buffers_are_the_same_as_users_have_them(name: str) -> None:
    run(*FILES[name], flags=FLAGS)


def run(*tests: str, flags: str) -> None:
    """These tests pass, compiled with `flags`."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=850,
        env={**os.environ, "XLA_FLAGS": flags})
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert " passed" in found.stdout
