"""A text encoder inside the recommender's step, beside its vectors as they are.

    python benchmarks/text_end_to_end.py DATASET --model FOLDER
        [--table items.csv --id item --column text] [--steps 200] [--rows 8]
        [--length 50] [--negatives 256] [--rank 8] [--out FILE]

DATASET is a folder of `rec-jax prepare` (Online Retail by invoices) and FOLDER a model as Hugging
Face writes it, such as all-MiniLM-L6-v2. Three runs of one config, each in a process of its own,
take the same batches and negatives:

    frozen   vectors that `rec-jax embed` made before; the matrix A that reads them trains
    lora     the encoder in the step, with thin products beside the matrices of its blocks
    all      the encoder in the step, of which everything trains

Of each the loss (mean of the first and of the last tenth of the steps), seconds a step (median,
without the first one, which compiles), the peak of the process's memory, seconds for the vectors of
all items, and what trains. The loss of so few steps is no quality. Results go to
benchmarks/results/text_end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from rec_jax.bench.record import json_path, record

HERE = Path(__file__).resolve().parent
KINDS = ("frozen", "lora", "all")
VECTORS = "text_end_to_end"
"""The name of the vectors that the dataset gets for `frozen`."""


def config_of(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The mapping of a run's config."""
    encoder = {"encoder": options.model, "train": kind, "table": options.table, "id": options.id,
               "columns": options.column}
    found: dict[str, Any] = {
        "seed": options.seed,
        "data": {"path": options.dataset, "length": options.length, "window": "chunks"},
        "table": {"dim": 64, "update": "sparse", "optimizer": {"kind": "adagrad", "rate": 0.05}},
        "content": [{"name": VECTORS, **({} if kind == "frozen" else encoder)}],
        "encoder": {"kind": "bag"},
        "objective": {"kind": "sampled_softmax", "count": options.negatives},
        "optimizer": {"rate": 1e-3 if kind != "all" else 1e-4, "warmup": 10},
        "train": {"rows": options.rows, "steps": options.steps},
        "evaluate": {"filter_seen": False}}
    if kind == "lora":
        found["lora"] = [{"match": "text/blocks/*/kernel", "rank": options.rank}]
    return found


def run(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Train in this process."""
    import jax
    import numpy as np

    from rec_jax import config
    from rec_jax.run import RunConfig
    from rec_jax.train.build import build
    from rec_jax.train.counts import count_parameters
    from rec_jax.train.feed import whole_batches
    from rec_jax.train.step import place_batch

    built = build(config.build(RunConfig, config_of(options, kind)))
    counts = count_parameters(built.state, built.tuning)
    batches = whole_batches(built.stream, 1, built.log_share)
    state, losses, seconds = built.state, [], []
    for _ in range(options.steps):
        batch, _ = next(batches)
        begun = time.perf_counter()
        state, metrics = built.step(state, place_batch(batch, built.mesh), {})
        losses.append(float(metrics.loss))
        seconds.append(time.perf_counter() - begun)
        if len(losses) % 10 == 0:
            print(f"{kind}: step {len(losses)}, loss {losses[-1]:.4f}, {seconds[-1]:.2f} s",
                  file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    catalogue = []
    for _ in range(2 if built.texts is not None else 0):
        begun = time.perf_counter()
        state = built.refreshed(state)
        jax.block_until_ready(state.items.rows)
        catalogue.append(time.perf_counter() - begun)
    tenth = max(1, options.steps // 10)
    if not np.isfinite(losses).all():
        raise SystemExit(f"{kind}: a loss is no number")
    return {"loss_first": mean(losses[:tenth]), "loss_last": mean(losses[-tenth:]),
            "losses": [round(loss, 5) for loss in losses],
            "step_seconds": median(seconds[1:]), "first_step_seconds": seconds[0],
            "peak_bytes": peak, "catalogue_seconds": catalogue[-1] if catalogue else None,
            "items": built.dataset.num_items, **counts._asdict()}


def in_a_process(kind: str) -> dict[str, Any]:
    """The same, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--kind", kind], check=True,
                          stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", required=True)
    parser.add_argument("--table")
    parser.add_argument("--id", default="item_id")
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(HERE / "results" / "text_end_to_end.json"))
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("expected --steps of 2 at least: the first one compiles")
    if options.kind:
        print(json.dumps(run(options, options.kind)))
        return
    out = json_path(options.out)
    from rec_jax import api

    embedded = api.embed(options.dataset, name=VECTORS, model=options.model, table=options.table,
                         id=options.id if options.table else None, columns=options.column)
    found = {kind: in_a_process(kind) for kind in KINDS}
    for kind, one in found.items():
        print(f"{kind:7} loss {one['loss_first']:.4f} -> {one['loss_last']:.4f}   "
              f"{one['step_seconds']:.3f} s a step   {one['peak_bytes'] / 2**20:,.0f} MiB   "
              f"{one['trained']:,} parameters train")
    record(out, {"protocol": {name: value for name, value in vars(options).items() if name not in (
        "out", "kind", "dataset", "model", "table")}, "embed_seconds": embedded["seconds"],
        "model_hash": embedded["source"]["model_hash"], "runs": found})


if __name__ == "__main__":
    main()
