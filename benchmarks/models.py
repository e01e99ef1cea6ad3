"""All models on MovieLens-100K under one protocol, as JSON and as a table in Markdown.

    python benchmarks/models.py data/ml-100k/dataset --runs runs/models --seeds 0 1 2 \\
        --out benchmarks/results/models_ml100k.json
    python benchmarks/models.py data/ml-100k/dataset --runs runs/models --read --out models.json

Models are the configs `ml100k*.toml`, those of graphs, and the baselines that are
solved. What is there is read: a finished run NAME-SEED in the folder of runs, or a file NAME.json
of `benchmarks/results` of that seed and dataset, whose time is that of the machine which it names.
Runs whose protocols differ are refused. With `--read` nothing else is done; without it, what is
missing is trained. `--only` takes names, separated by commas.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rec_jax
from rec_jax import config
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.data.dataset import Dataset
from rec_jax.files import write_atomic
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.counts import count_parameters
from rec_jax.train.log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "benchmarks" / "results"
SOLVED = "popularity,itemknn,userknn,ease,ials"
SAME = ("split", "split_rule", "split_hash", "candidates", "users", "target",
        "seen_items_filtered", "ties", "ranking")
"""What of a protocol must be equal, so that two numbers may stand in one table."""
OF_ITEMS = {"item_graph": "item_graph_ml100k.toml"}
OF_GRAPHS = {"lightgcn": "gowalla_lightgcn.toml", "graphsage": "ml1m_graphsage.toml"}
LINES = ("table.dim=64", "train.rows=16", "evaluate.ks=[5,10,20]", "evaluate.metric='ndcg@10'")
"""What is laid over the configs of `OF_GRAPHS`, which are of larger datasets."""
METRICS = ("hr@10", "ndcg@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", help="names of models; all by default")
    parser.add_argument("--read", action="store_true", help="train and fit nothing")
    parser.add_argument("--out", required=True, help="JSON file to write; .md is beside it")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    wanted = None if options.only is None else options.only.split(",")
    models = {name: found for name, path in configs().items()
              if (wanted is None or name in wanted) and (found := of_config(options, name, path))}
    if not options.read:
        solved = [name for name in SOLVED.split(",") if wanted is None or name in wanted]
        models |= of_solvers(options.dataset, solved) if solved else {}
    if not models:
        parser.error("nothing is there to be read; expected no --read, or other folders")
    protocol = same_protocol(models)
    path = Path(record(options.out, {"dataset": Path(options.dataset).name, "protocol": protocol,
                                     "models": models}))
    write_atomic(path.with_suffix(".md"), table(models).encode())
    print(json.dumps({"out": str(path), "models": len(models)}))


def configs() -> dict[str, Path]:
    """By name of the model, its config."""
    return {**{path.stem: path for path in sorted(CONFIGS.glob("ml100k*.toml"))},
            **{name: CONFIGS / file for name, file in (OF_ITEMS | OF_GRAPHS).items()}}


def of_config(options: argparse.Namespace, name: str, path: Path) -> dict[str, Any] | None:
    """The figures of a config's runs; None where there is none."""
    dataset = Dataset.open(options.dataset)
    lines = [f"data.path='{options.dataset}'", *(LINES if name in OF_GRAPHS else ())]
    found = [one for seed in options.seeds
             if (one := of_seed(options, name, path, [*lines, f"seed={seed}"], seed, dataset))]
    if not found:
        return None
    built = build(config.load(RunConfig, path, lines))
    counts = count_parameters(built.state, built.tuning)
    return {"parameters": counts.trained + counts.frozen, "runs": found, **mean_of(found)}


def of_seed(options: argparse.Namespace, name: str, path: Path, lines: Sequence[str], seed: int,
            dataset: Dataset) -> dict[str, Any] | None:
    """The figures of one run: finished, recorded, or trained now."""
    run = Path(options.runs) / f"{name}-{seed}"
    kept = RESULTS / f"{name}.json"
    if not (run / "report.html").exists() and kept.exists():
        old = json.loads(kept.read_text())
        if old["seed"] == seed and old["protocol"]["split_hash"] == dataset.split_hash:
            return {"seed": seed, "seconds": old["train_seconds"], "from": kept.name,
                    "machine": old["machine"]["cpu"], "test": old["test"],
                    "protocol": old["protocol"]}
    if not (run / "report.html").exists():
        if options.read:
            return None
        begun = (run / "config.toml").exists()
        rec_jax.train(None if begun else path, run=None if begun else run, progress=True,
                      overrides=[] if begun else lines, resume=run if begun else None)
    result = rec_jax.evaluate(run, data=options.dataset)
    seconds = max((line["seconds"] for line in read_metrics(Run(run).metrics_path)
                   if "seconds" in line), default=float("nan"))
    return {"seed": seed, "seconds": seconds, "from": f"run {run.name}", "machine": "here",
            "test": result["metrics"], "protocol": result["protocol"]}


def of_solvers(dataset: str, names: Sequence[str]) -> dict[str, Any]:
    """The figures of the models that are solved, which have no seed but that of iALS."""
    found = rec_jax.baseline(dataset, models=",".join(names), progress=True)
    made = {}
    for name, one in found["models"].items():
        run = {"seed": 0, "seconds": one["fit_seconds"], "from": "baseline", "machine": "here",
               "test": one["metrics"], "protocol": found["protocol"]}
        made[name] = {"parameters": None, "runs": [run], **mean_of([run])}
    return made


def mean_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and range of the metrics of some seeds, and their mean time."""
    values = {name: [run["test"][name] for run in runs] for name in METRICS}
    return {"seconds": statistics.fmean(run["seconds"] for run in runs),
            "mean": {name: statistics.fmean(each) for name, each in values.items()},
            "range": {name: [min(each), max(each)] for name, each in values.items()}}


def same_protocol(models: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs have in common of `SAME`.

    Raises:
      ValueError: they were not measured alike.
    """
    runs = [(name, run) for name, model in models.items() for run in model["runs"]]
    first = {key: runs[0][1]["protocol"].get(key) for key in SAME}
    for name, run in runs:
        for key in SAME:
            if run["protocol"].get(key) != first[key]:
                raise ValueError(f"{name}, seed {run['seed']}: {key} is {run['protocol'].get(key)} "
                                 f"where {runs[0][0]} has {first[key]}")
    return first


def table(models: Mapping[str, Any]) -> str:
    """In Markdown, the best first."""
    lines = ["| model | seeds | parameters | seconds | HR@10 | NDCG@10 |",
             "|---|---|---|---|---|---|"]
    for name, model in sorted(models.items(), key=lambda one: -one[1]["mean"]["ndcg@10"]):
        shown = [f"{model['mean'][metric]:.3f}" + ("" if len(model["runs"]) == 1 else " ({:.3f} to "
                 "{:.3f})".format(*model["range"][metric])) for metric in METRICS]
        count = "" if model["parameters"] is None else f"{model['parameters']:,}"
        elsewhere = "" if all(run["machine"] == "here" for run in model["runs"]) else " *"
        lines.append(f"| {name} | {', '.join(str(run['seed']) for run in model['runs'])} | {count} "
                     f"| {model['seconds']:.1f}{elsewhere} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", "\\* on another machine, see the JSON file.", ""])


if __name__ == "__main__":
    main()
