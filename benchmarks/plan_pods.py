"""What the step of a billion rows needs on a pod, from programs that libtpu compiles on any host.

    python benchmarks/plan_pods.py

Compiles the training steps of `configs/billion.toml` (exact softmax, table updated tile by tile)
and `configs/billion_sampled.toml` (sampled softmax, touched rows alone) for slices of 64 and 256
TPU v5p chips, with 2^24 and 2^30 rows: bytes of a chip's memory, and of the largest message.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from rec_jax.bench.record import record

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("billion.toml", "billion_sampled.toml")
SLICES = {"v5p:4x4x4": 64, "v5p:4x8x8": 256}
SIZES = (2**24, 2**30)
SEQUENCES = 256


def plan(config: str, items: int, devices: str) -> dict[str, Any]:
    """Facts of one program; in a process of its own, since libtpu serves one topology a process."""
    command = [sys.executable, "-m", "rec_jax.cli.app", "plan", f"configs/{config}",
               "--items", str(items), "--devices", devices, "--compile", "--json",
               "--set", f"mesh.items={SLICES[devices]}", "--set", f"train.rows={SEQUENCES}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise SystemExit(f"{config} on {devices}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"config": config, "items": items, "devices": devices, "chips": SLICES[devices],
            "table_bytes_a_chip": int(found["memory_bytes"]["rows"]),
            "available_bytes": int(found["available_bytes"]),
            "predicted_bytes": int(found["needed_bytes"]), **found["compiled"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan_v5p.json")
    arguments = parser.parse_args()
    facts = []
    for devices in SLICES:
        for config in CONFIGS:
            for items in SIZES:
                facts.append(plan(config, items, devices))
                print(facts[-1], file=sys.stderr, flush=True)
    grid = Grid("config", "devices", "rows", "table MB", "scratch MB", "needed MB", "of",
                "largest message kB", title="one chip")
    for fact in facts:
        megabytes = (f"{fact[name] / 1e6:,.0f}" for name in (
            "table_bytes_a_chip", "temporary", "needed", "available_bytes"))
        grid.add_row(fact["config"], fact["devices"], f"{fact['items']:,}", *megabytes,
                     f"{fact['largest_collective'] / 1e3:,.0f}")
    Console().print(grid)
    record(arguments.out, {"sequences_a_step": SEQUENCES, "programs": facts})


if __name__ == "__main__":
    main()
