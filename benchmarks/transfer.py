"""Transfer between two catalogues by the content of their items, as JSON: from scratch, fine-tuned
whole, by adapters alone, and zero-shot; with the parameters that train and the memory that it took.

    python benchmarks/transfer.py --from-data data/ml-1m --data data/ml-100k/dataset \\
        --runs runs/transfer --out benchmarks/results/transfer

Both datasets have item vectors `text` of the same model (docs/transfer.md). Each training is a
process of its own and writes OUT/WAY_seedN.json when it is evaluated; the same command again makes
what is missing, and goes on with a training that was stopped. The table at the end is of all files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FIRST = "pretrained"
LORA = 'lora=[{match="blocks/*/kernel",rank=8,alpha=16.0}]'


class Way(NamedTuple):
    """A way to train on the second catalogue. lines: laid over its config; starts: from the model
    of the first one."""

    lines: tuple[str, ...] = ()
    starts: bool = True


WAYS = {
    "scratch_ids": Way(("content=[]",), starts=False),
    "scratch": Way(starts=False),
    "full": Way(),
    "layer_wise": Way(('tune=[{match="blocks/*",rate=0.5},{match="blocks/0/*",rate=0.25}]',)),
    "rows": Way(('tune=[{match="*"},{match="tables/items",rate=1.0}]',)),
    "adapters_rows": Way((LORA, 'tune=[{match="*"},{match="lora/*",rate=1.0},'
                                '{match="tables/items",rate=1.0}]')),
    "adapters": Way((LORA, 'tune=[{match="*"},{match="lora/*",rate=1.0}]')),
    "zero_shot": Way(('tune=[{match="*"}]', "train.steps=1")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from-data", required=True, help="dataset of the first catalogue")
    parser.add_argument("--data", required=True, help="dataset of the second one")
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--out", required=True, help="folder of the JSON files")
    parser.add_argument("--from-config", default="ml1m_content", help="config of the first run")
    parser.add_argument("--config", default="transfer_ml100k", help="config of the others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--set", action="append", default=[], help="a line of TOML over all")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = Path(options.out)
    if options.one:
        measure(options, options.one[0], int(options.one[1]))
        return
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(FIRST, 0), *((way, seed) for seed in options.seeds for way in options.ways)]
    for way, seed in wanted:
        if not result_of(out, way, seed).exists():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", way, str(seed)],
                           check=True)
            print(f"{way}, seed {seed}: {result_of(out, way, seed)}", file=sys.stderr)
    print(table([json.loads(path.read_text()) for path in sorted(out.glob("*_seed*.json"))]))


def result_of(out: Path, way: str, seed: int) -> Path:
    return out / f"{way}_seed{seed}.json"


def measure(options: argparse.Namespace, way: str, seed: int) -> None:
    """Train one run, or go on with it, and write what it reached."""
    import rec_jax
    from rec_jax import config
    from rec_jax.allocator import restart_with_tuned_malloc
    from rec_jax.bench.record import record
    from rec_jax.run import Run

    restart_with_tuned_malloc()
    first = way == FIRST
    run = Run(Path(options.runs) / f"{way}_seed{seed}")
    lines = [f"data.path={options.from_data if first else options.data}", f"seed={seed}",
             *options.set, *(() if first else WAYS[way].lines)]
    starts = not first and WAYS[way].starts
    begun = run.config_path.exists()
    summary = rec_jax.train(
        None if begun else options.from_config if first else options.config,
        overrides=() if begun else lines, progress=True,
        **({"resume": run.folder} if begun else {"run": run.folder}),
        **({"start_from": Path(options.runs) / f"{FIRST}_seed0", "encoder_only": True}
           if starts else {}))
    found = rec_jax.evaluate(run.folder, baseline=True, progress=True)
    settings = config.to_mapping(run.config())
    settings["data"]["path"] = Path(settings["data"]["path"]).name
    record(result_of(Path(options.out), way, seed), {
        "way": way, "seed": seed, "test": found["metrics"], "protocol": found["protocol"],
        "popularity_baseline": found["popularity_baseline"],
        "parameters": summary["parameters"],
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "steps": summary["steps"], "best_step": summary["best_step"],
        "steps_per_epoch": summary["steps_per_epoch"], "train_seconds": summary["train_seconds"],
        "config": settings})


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each way the mean of its seeds."""
    head = ["way", "seeds", "parameters that train", "frozen", "optimizer MiB", "peak MiB",
            "epochs to the best", "seconds", "HR@10", "NDCG@10", "popularity NDCG@10"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for way in (FIRST, *WAYS):
        own = [each for each in results if each["way"] == way]
        if not own:
            continue
        parameters = own[0]["parameters"]

        def mean(*keys: str, own: list[dict[str, Any]] = own) -> float:
            values = own
            for key in keys:
                values = [each[key] for each in values]
            return float(np.mean(values))

        epochs = np.mean([each["best_step"] / each["steps_per_epoch"] for each in own])
        lines.append("| " + " | ".join([
            way, str(len(own)), f"{parameters['trained']:,}", f"{parameters['frozen']:,}",
            f"{parameters['optimizer_bytes'] / 2**20:.2f}",
            f"{mean('peak_memory_bytes') / 2**20:,.0f}", f"{epochs:.1f}",
            f"{mean('train_seconds'):,.0f}", f"{mean('test', 'hr@10'):.4f}",
            f"{mean('test', 'ndcg@10'):.4f}", f"{mean('popularity_baseline', 'ndcg@10'):.4f}",
        ]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
