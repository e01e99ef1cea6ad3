"""What a training step costs as the catalogue grows: sparse, streamed, and dense beside them.

    python benchmarks/table_updates.py sparse   --out benchmarks/results/sparse_step.json
    python benchmarks/table_updates.py streamed --out benchmarks/results/streamed_step.json

Every (mode, size) runs in a process of its own for its peak memory; times are taken once more in
one process that holds all sizes of a mode and goes round them, so that their ratios hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table as Grid

from rec_jax.bench.record import record
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item, sampled_softmax
from rec_jax.tables import ITEMS, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.train.state import init_state
from rec_jax.train.step import make_train_step, place_batch

DIM, LENGTH, NEGATIVES = 32, 50, 8192
ROWS = {"sparse": 32, "streamed": 8}
SIZES = {"sparse": [10**5, 10**6, 10**7, 5 * 10**7], "streamed": [10**6, 10**7],
         "dense": [10**5, 10**6, 10**7]}
DTYPE = {"sparse": "bf16", "streamed": "f32", "dense": "f32"}


def make(mode: str, items: int, workload: str) -> tuple[Callable[[], float], int]:
    """A function that does one step and returns its seconds, and the table's bytes."""
    mesh, objective, rows = make_mesh(MeshConfig()), objective_of(workload), ROWS[workload]
    config = TableConfig(dim=DIM, dtype=DTYPE[mode], optimizer=RowOptimizerConfig(kind="adagrad"))
    encoder, params = build_encoder(
        transformer.Config(layers=2, heads=2, dropout=0.1), dim=DIM, length=LENGTH, causal=True,
        precision="f32", seed=0)
    optimizer = optax.adam(1e-3)
    table = init_table(config, items, 0, mesh, optimizer=(
        None if mode == "dense" else row_optimizer(config.optimizer)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(table))
    state = init_state(params, {ITEMS: table}, optimizer, modes={ITEMS: mode}, mesh=mesh, seed=0)
    del table
    step = make_train_step(encoder, objective, optimizer, tables={ITEMS: config},
                           modes={ITEMS: mode}, mesh=mesh, rate=optax.constant_schedule(0.05))
    random = np.random.default_rng(items)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (1, rows, LENGTH))
    held = [state]
    del state

    def one() -> float:
        # Popularity falls as a power law, as catalogues do.
        ids = (items * random.random((1, rows, LENGTH + 1)) ** 3).astype(np.int32)
        batch = place_batch({
            "items": ids[..., :-1], "targets": ids[..., 1:],
            "segments": np.ones((1, rows, LENGTH), np.int32), "positions": positions}, mesh)
        began = time.perf_counter()
        new, metrics = step(held.pop(), batch)
        held.append(new)
        jax.block_until_ready(new)
        seconds = time.perf_counter() - began
        if not np.isfinite(float(metrics.loss)):
            raise RuntimeError(f"loss is {float(metrics.loss)}")
        return seconds

    return one, size


def objective_of(workload: str) -> Any:
    """Sampled softmax for the sparse workload, full softmax for the streamed one."""
    if workload == "sparse":
        return sampled_softmax.Config(negatives="log_uniform", count=NEGATIVES)
    return next_item.Config()


def single(workload: str, mode: str, items: int, steps: int) -> dict[str, Any]:
    """Peak memory of this process over the steps, beside a process that has no table."""
    jax.block_until_ready(jnp.zeros(8))
    before = _peak()
    one, size = make(mode, items, workload)
    times = [one() for _ in range(steps + 2)][2:]
    padded = size // (DIM * (2 if DTYPE[mode] == "bf16" else 4) + (0 if mode == "dense" else 4))
    return {"mode": mode, "items": items, "dtype": DTYPE[mode], "table_and_state_bytes": size,
            "bytes_per_row": size / padded, "peak_bytes": _peak(),
            "peak_over_start_bytes": _peak() - before,
            "peak_over_table_bytes": _peak() - before - size,
            "median_step_seconds": float(np.median(times))}


def together(workload: str, mode: str, steps: int) -> dict[str, float]:
    """Median step seconds by size, going round the sizes."""
    jobs = {items: make(mode, items, workload)[0]
            for items in SIZES[mode]}
    for one in jobs.values():
        one(), one()
    times: dict[int, list[float]] = {items: [] for items in jobs}
    for _ in range(steps):
        for items, one in jobs.items():
            times[items].append(one())
    return {str(items): float(np.median(found)) for items, found in times.items()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_process(arguments: list[str]) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1],
                "arguments": arguments}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=["sparse", "streamed"])
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--single", nargs=2, metavar=("MODE", "ITEMS"), help=argparse.SUPPRESS)
    parser.add_argument("--together", metavar="MODE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        mode, items = options.single
        print(json.dumps(single(options.workload, mode, int(items), options.steps)))
        return
    if options.together:
        print(json.dumps(together(options.workload, options.together, options.steps)))
        return
    steps = ["--steps", str(options.steps)]
    runs = [_in_process([options.workload, "--single", mode, str(items), *steps])
            for mode in (options.workload, "dense") for items in SIZES[mode]]
    times = _in_process([options.workload, "--together", options.workload, *steps])
    medians = [value for value in times.values() if isinstance(value, float)]
    grid = Grid("mode", "items", "step ms", "bytes a row", "peak over start GiB")
    for run in runs:
        if "error" in run:
            grid.add_row(*run["arguments"][2:4], run["error"][:60], "", "")
            continue
        grid.add_row(run["mode"], f"{run['items']:,}", f"{run['median_step_seconds'] * 1e3:.1f}",
                     f"{run['bytes_per_row']:.1f}", f"{run['peak_over_start_bytes'] / 2**30:.2f}")
    Console().print(grid, "in one process, going round:", times)
    if options.out:
        record(options.out, {
            "workload": options.workload, "dim": DIM, "positions": ROWS[options.workload] * LENGTH,
            "negatives": NEGATIVES if options.workload == "sparse" else None, "runs": runs,
            "interleaved_median_seconds": times,
            "largest_over_smallest": max(medians) / min(medians) if medians else None})


if __name__ == "__main__":
    main()
