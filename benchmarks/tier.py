"""What a step costs whose rows lie in host memory or on a disk, beside one on the device.

    python benchmarks/tier.py --out benchmarks/results/tier.json
    python benchmarks/tier.py --sizes 1e6 1e7 1e8 --cache 1e6 --lookahead 4

Every (placement, size) runs in a process of its own, for its peak memory. A step is timed from one
end to the next with batches that are made ahead, as in training; ids fall as a power law, and
negatives are drawn by it too. On a machine whose devices have the host's memory nothing is won by
leaving it: there the figures show what the way between costs. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table as Grid

from rec_jax.bench.record import record
from rec_jax.data.batches import prefetch
from rec_jax.dtypes import DTYPES
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import sampled_softmax
from rec_jax.tables import ITEMS, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.tables.row_map import spread
from rec_jax.train.mode import Batch, Setting
from rec_jax.train.state import init_state
from rec_jax.train.step import make_train_step, place_batch
from rec_jax.train.tiers import Tiers, tiered_table

DIM, LENGTH, ROWS, NEGATIVES = 64, 50, 32, 8192


def batches(items: int, power: float) -> Iterator[tuple[Batch, int]]:
    random = np.random.default_rng(items)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (1, ROWS, LENGTH))
    while True:
        ids = (items * random.random((1, ROWS, LENGTH + 1)) ** power).astype(np.int32)
        yield {"items": ids[..., :-1], "targets": ids[..., 1:],
               "segments": np.ones((1, ROWS, LENGTH), np.int32), "positions": positions}, ROWS


def single(where: str, items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Step seconds, rows that moved, and peak memory of this process."""
    mesh, name = make_mesh(MeshConfig()), ITEMS
    objective = sampled_softmax.Config(negatives="log_uniform", count=NEGATIVES)
    config = TableConfig(dim=DIM, optimizer=RowOptimizerConfig(kind=options.optimizer))
    encoder, params = build_encoder(
        transformer.Config(layers=2, heads=2, dropout=0.1), dim=DIM, length=LENGTH, causal=True,
        precision="f32", seed=0)
    optimizer, tiered = optax.adam(1e-3), {}
    if where == "device":
        table = init_table(config, items, 0, mesh, row_map=spread(items),
                           optimizer=row_optimizer(config.optimizer))
    else:
        table, tiered[name] = tiered_table(
            config, items, 0, mesh, name=name, over=(ITEMS,), row_map=spread(items),
            slots=min(items, int(options.cache)), where=where)
        tiered[name].store.open(Path(options.folder))
    state = init_state(params, {name: table}, optimizer, modes={name: "sparse"}, mesh=mesh, seed=0)
    del table
    tables, modes = {name: config}, {name: "sparse"}
    step = make_train_step(encoder, objective, optimizer, tables=tables, modes=modes, mesh=mesh,
                           rate=optax.constant_schedule(0.05))
    tiers = Tiers(tiered, Setting(encoder, objective, tables, modes, mesh, DTYPES["f32"]), items)
    feed = prefetch(tiers.feed(batches(items, options.power), state.key, 0), options.lookahead)
    times, into, out, named = [], [], [], []
    try:
        for number, fed in enumerate(itertools.islice(feed, options.warm + options.steps)):
            began = time.perf_counter()
            state, places = tiers.enter(state, fed.loaded)
            state, metrics = step(state, place_batch(fed.batch, mesh), places)
            jax.block_until_ready(metrics)
            if number >= options.warm:
                times.append(time.perf_counter() - began)
                for loaded in fed.loaded.values():
                    moves = loaded.planned.moves
                    into.append(sum(len(each.into) for each in moves))
                    out.append(sum(len(each.out) for each in moves))
                    named.append(sum(len(each.rows) for each in moves))
        if not np.isfinite(float(metrics.loss)):
            raise RuntimeError(f"loss is {float(metrics.loss)}")
    finally:
        tiers.close()
        feed.close()
    memory = jax.devices()[0].memory_stats() or {}
    return {"where": where, "items": items, "median_step_seconds": float(np.median(times)),
            "slowest_tenth_seconds": float(np.quantile(times, 0.9)),
            "rows_named": float(np.mean(named or [0])), "rows_in": float(np.mean(into or [0])),
            "rows_out": float(np.mean(out or [0])),
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": memory.get("peak_bytes_in_use")}


def in_process(where: str, items: int, arguments: list[str]) -> dict[str, Any]:
    """`single` in a process of its own, or what ended it."""
    done = subprocess.run([sys.executable, __file__, *arguments, "--single", where, str(items)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        return {"where": where, "items": items,
                "error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e5, 1e6, 1e7])
    parser.add_argument("--cache", type=float, default=1e5, help="rows on the device")
    parser.add_argument("--where", nargs="+", default=["device", "host", "disk"])
    parser.add_argument("--folder", default=".", help="of the files of rows on a disk")
    parser.add_argument("--lookahead", type=int, default=2)
    parser.add_argument("--optimizer", default="adagrad")
    parser.add_argument("--power", type=float, default=3.0, help="of the law by which ids fall")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm", type=int, default=20, help="steps before, not timed")
    parser.add_argument("--single", nargs=2, metavar=("WHERE", "ITEMS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        where, items = options.single
        print(json.dumps(single(where, int(items), options)))
        return
    arguments = sys.argv[1:]
    runs = [in_process(where, int(items), arguments)
            for items in options.sizes for where in options.where]
    grid = Grid("rows", "items", "step ms", "named", "in", "out", "host GiB", "device GiB")
    for run in runs:
        if "error" in run:
            grid.add_row(run["where"], f"{run['items']:,}", run["error"][:60], *[""] * 5)
            continue
        device = run["peak_device_bytes"]
        grid.add_row(run["where"], f"{run['items']:,}", f"{run['median_step_seconds'] * 1e3:.1f}",
                     f"{run['rows_named']:.0f}", f"{run['rows_in']:.0f}", f"{run['rows_out']:.0f}",
                     f"{run['peak_host_bytes'] / 2**30:.2f}",
                     "" if device is None else f"{device / 2**30:.2f}")
    Console().print(grid)
    if options.out:
        record(options.out, {"dim": DIM, "positions": ROWS * LENGTH, "negatives": NEGATIVES,
                             "cache": int(options.cache), "lookahead": options.lookahead,
                             "optimizer": options.optimizer, "power": options.power,
                             "runs": runs})


if __name__ == "__main__":
    main()
