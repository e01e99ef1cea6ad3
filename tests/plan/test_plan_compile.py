"""The real step, compiled for pods that are not here: it fits, and no message grows with V."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rec_jax.plan.compile import collective_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (pip install rec-jax[tpu-aot])")


def test_collectives_are_read_from_a_programs_text() -> None:
    text = """
  %a = f32[8,64]{1,0} all-reduce(%x), replica_groups={}
  %b = (bf16[4,2]{1,0}, s32[3]{0}) all-to-all(%y, %z), channel_id=1
  %c = f32[2]{0} add(%a, %a)
  ROOT %d = pred[16]{0} all-gather-start(%w)
"""
    assert collective_bytes(text) == [("all-reduce", 2048), ("all-to-all", 28), ("all-gather", 16)]


@functools.cache
def planned(name: str, items: int, devices: str, *lines: str) -> dict[str, Any]:
    """`rec-jax plan --compile` in a process of its own: libtpu serves one topology at a time."""
    chips = {"v5p:4x4x4": 64, "v5p:4x8x8": 256}[devices]
    command = [sys.executable, "-m", "rec_jax.cli.app", "plan", str(CONFIGS / name),
               "--items", str(items), "--devices", devices, "--compile", "--json",
               "--set", f"mesh.items={chips}", "--set", "train.rows=256"]
    command += [part for line in lines for part in ("--set", line)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["billion.toml", "billion_sampled.toml"])
@pytest.mark.parametrize("devices", ["v5p:4x4x4", "v5p:4x8x8"])
def test_a_billion_rows_fit_and_messages_do_not_grow_with_them(name: str, devices: str) -> None:
    small, large = (planned(name, items, devices) for items in (2**24, 2**30))
    print(f"{name} on {devices}: {large['compiled']}, predicted {large['needed_bytes']} bytes")
    assert large["compiled"]["needed"] < large["available_bytes"]
    assert large["memory_bytes"]["rows"] <= large["compiled"]["arguments"]
    assert (small["compiled"]["largest_collective"] == large["compiled"]["largest_collective"] > 0)
    # State is donated: the table exists once.
    assert large["compiled"]["aliased"] >= large["memory_bytes"]["rows"]
    assert large["compiled"]["needed"] < 1.5 * large["needed_bytes"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("name", "states"), [
    ("billion.toml", 2),  # the kernel may get a copy of the row optimizer's [V] and give one
    ("billion_sampled.toml", 0)])
def test_no_copy_of_the_rows_is_made(name: str, states: int) -> None:
    small, large = (planned(name, items, "v5p:4x4x4") for items in (2**24, 2**30))
    grown, state = (large[part][key] - small[part][key] for part, key in (
        ("compiled", "temporary"), ("memory_bytes", "row optimizer")))
    assert grown < (states + 1 / 8) * state  # the compiler orders other arrays as it likes
    assert large["compiled"]["temporary"] < large["memory_bytes"]["rows"] / 8


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [
    ("billion.toml", "streamed"), ("billion_sampled.toml", "sparse")])
def test_two_tables_of_a_billion_rows_are_twice_one_and_messages_stay(name: str, mode: str) -> None:
    small, large = (planned(name, items, "v5p:4x4x4", "table.tied=false")
                    for items in (2**24, 2**30))
    tied = planned(name, 2**30, "v5p:4x4x4")
    assert large["mode"] == mode
    assert large["memory_bytes"]["rows"] == 2 * tied["memory_bytes"]["rows"]
    assert large["memory_bytes"]["rows"] <= large["compiled"]["aliased"]
    assert large["compiled"]["temporary"] < tied["memory_bytes"]["rows"] / 8  # no copy of either
    assert large["compiled"]["needed"] < 1.5 * large["needed_bytes"]
    assert small["compiled"]["collectives"] == large["compiled"]["collectives"]
