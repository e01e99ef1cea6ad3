"""The recipe as it stands on data that it was not tuned for, as JSON: each dataset with three seeds
beside the best that hand-tuned configs have of it; and what the others say of its constants.

    python benchmarks/recipe.py run ml-100k wikipedia beauty-s3 online-retail ml-1m \\
        beauty-bert4rec --sources RAW --data data --runs runs/recipe \\
        --out benchmarks/results/recipe.json
    python benchmarks/recipe.py votes --data data

`run`: a dataset that is not in DATA yet is prepared from its raw file in SOURCES. Each training is
that of `rec-jax train --data DATASET --set seed=N`; the best step is that of the validation, and
the test is measured once, by the protocol of the figures that it stands beside. Then
RUNS/NAME-seedN.json is written: the same command again trains only what is missing, and goes on
with a run that was stopped. `votes`: of each rule what the hand-tuned config of each dataset says,
and what the recipe would be for a dataset if its own were not known.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rec_jax
from rec_jax import api, config
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.inference.evaluate import evaluate_served
from rec_jax.jsons import dumps
from rec_jax.plan.recipe import LENGTHS, RULES, Machine, Rules, recipe_of
from rec_jax.plan.statistics import Statistics, statistics_of
from rec_jax.plan.suggest import machine_here
from rec_jax.train.log import read_metrics

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = ("hr@10", "ndcg@10")
Figures = dict[str, float]


@dataclass(frozen=True)
class Known:
    """A dataset. source: its raw file, format: of `prepare`. records: of the hand-tuned config in
    `results/`, one a seed; none: EASE is measured on the same dataset."""

    source: str
    format: str
    records: tuple[str, ...] = ()


def seeds_of(stem: str) -> tuple[str, ...]:
    return (stem, f"{stem}_seed1", f"{stem}_seed2")


KNOWN = {
    "ml-100k": Known("ml-100k/ml-100k.inter", "tsv", ("ml100k",)),
    "ml-1m": Known("ml-1m/ml-1m.txt", "pairs", seeds_of("ml1m")),
    "beauty-s3": Known("s3rec-beauty/Beauty.txt", "lists", seeds_of("beauty_s3")),
    "beauty-bert4rec": Known("amazon-beauty/beauty.txt", "pairs", seeds_of("beauty_bert4rec")),
    "wikipedia": Known("wikipedia-edits/wikipedia.txt", "pairs"),
    "online-retail": Known("online-retail-invoices/sequences.txt", "lists"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("names", nargs="+", choices=KNOWN)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--sources", help="folder of the raw files")
    run.add_argument("--runs", required=True, help="folder of the runs")
    run.add_argument("--out", required=True, help="JSON file to write")
    votes = verbs.add_parser("votes")
    for verb in (run, votes):
        verb.add_argument("--data", required=True, help="folder of the datasets")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    if options.verb == "votes":
        print(dumps(table_of_votes(votes_in(Path(options.data))), indent=1))
        return
    found = {name: measured(name, options) for name in options.names}
    record(options.out, {"rules": dataclasses.asdict(RULES), "datasets": found})
    for name, one in found.items():
        print(json.dumps({"dataset": name, **one["mean"], **one["reference"]["mean"],
                          "ratio": one["ratio"]}))


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe's runs on one dataset, their mean, and its ratio to the hand-tuned config's."""
    folder = prepared(name, Path(options.data), options.sources)
    dataset = rec_jax.Dataset.open(folder)
    found = statistics_of(dataset)
    made = recipe_of(found, machine_here(), str(folder))
    reference = reference_of(name, folder, made.config().evaluate.filter_seen)
    runs = {str(seed): run_of(name, folder, seed, Path(options.runs), reference["protocol"])
            for seed in options.seeds}
    mean = mean_of([one["test"] for one in runs.values()])
    return {
        "split_hash": dataset.split_hash, "statistics": dataclasses.asdict(found),
        "recipe": {one.key: one.value for one in made.settings if one.key != "data.path"},
        "seeds": runs, "mean": mean, "reference": reference,
        "same_split": reference["split_hash"] == dataset.split_hash,
        "ratio": {key: mean[key] / reference["mean"][key] for key in METRICS}}


def prepared(name: str, data: Path, sources: str | None) -> Path:
    """The dataset's folder, made of its raw file where it is not there."""
    folder, known = data / name, KNOWN[name]
    if not (folder / "meta.json").exists():
        if sources is None or not (source := Path(sources) / known.source).exists():
            raise SystemExit(f"recipe.py: there is neither {folder} nor its raw file; expected "
                             f"--sources FOLDER with {known.source}")
        columns = {"columns": {"time": "timestamp"}} if known.format == "tsv" else {}
        rec_jax.prepare(config.build(rec_jax.PrepareConfig, {
            "source": str(source), "format": known.format, "out": str(folder), **columns}))
    return folder


def run_of(name: str, folder: Path, seed: int, runs: Path,
           protocol: Mapping[str, bool]) -> dict[str, Any]:
    """Test metrics, steps and time of one run; from its JSON where it is finished."""
    run, done = runs / f"{name}-seed{seed}", runs / f"{name}-seed{seed}.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    if (run / "config.toml").exists():
        summary = api.train(resume=run, progress=True)
    else:
        summary = api.train(data=folder, overrides=[f"seed={seed}"], run=run, progress=True)
    served = api.load(run).served
    settings = dataclasses.replace(served.config.evaluate, **protocol)
    result = evaluate_served(served, settings=settings)
    valid = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "valid"]
    best = next(line for line in valid if line["step"] == summary["best_step"])
    found = {"test": result["metrics"], "protocol": result["protocol"],
             "valid_at_best": {key: value for key, value in best.items() if "@" in key},
             "steps": summary["steps"], "best_step": summary["best_step"],
             "epochs": summary["steps"] / summary["steps_per_epoch"],
             "best_epoch": summary["best_step"] / summary["steps_per_epoch"],
             "validations": len(valid), "seconds_to_best": best["seconds"],
             "train_seconds": summary["train_seconds"]}
    done.write_text(dumps(found, indent=1))
    return found


def reference_of(name: str, folder: Path, filter_seen: bool) -> dict[str, Any]:
    """What hand-tuned configs have reached, and the protocol that the recipe is measured by."""
    records = [read_record(stem) for stem in KNOWN[name].records]
    if records:
        first = records[0]["protocol"]
        return {"what": list(KNOWN[name].records), "split_hash": first["split_hash"],
                "protocol": {"filter_seen": first["seen_items_filtered"],
                             "filter_cold": first["cold_items_filtered"]},
                "mean": mean_of([one["test"] for one in records])}
    asked = f"evaluate.filter_seen={str(filter_seen).lower()}"
    ease = api.baseline(folder, models="ease", overrides=["ease.ridge=500", asked])
    return {"what": ["ease, ridge 500"], "split_hash": ease["protocol"]["split_hash"],
            "protocol": {"filter_seen": filter_seen, "filter_cold": False},
            "mean": mean_of([ease["models"]["ease"]["metrics"]])}


def read_record(stem: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{stem}.json").read_text()))


def mean_of(each: Sequence[Mapping[str, float]]) -> Figures:
    return {key: statistics.fmean(one[key] for one in each) for key in METRICS}


@dataclass(frozen=True)
class Vote:
    """What a hand-tuned config has, and what its dataset is like."""

    statistics: Statistics
    dropout: float
    smoothing: float
    length: int
    positions: int


def votes_in(data: Path) -> dict[str, Vote]:
    """The votes of the datasets in `data` that have a hand-tuned config."""
    return {name: vote_of(statistics_of(rec_jax.Dataset.open(data / name)), known.records[0])
            for name, known in KNOWN.items() if known.records and (data / name).exists()}


def vote_of(found: Statistics, stem: str) -> Vote:
    settings = read_record(stem)["config"]
    length = settings["data"]["length"]
    return Vote(found, settings["encoder"]["dropout"], settings["objective"]["label_smoothing"],
                length, length * settings["train"]["rows"])


def rules_from(votes: Sequence[Vote]) -> Rules:
    """The constants that these votes ask for. `sparse` and `dropout_least` are no votes: a number
    that lies between the sparse and the dense sets, and the encoder's own default."""
    sparse = [one for one in votes if one.statistics.per_item < RULES.sparse]
    dense = [one for one in votes if one.statistics.per_item >= RULES.sparse]
    most = statistics.median(one.dropout for one in sparse)
    falls = [(most - one.dropout) / math.log2(one.statistics.per_item / RULES.sparse)
             for one in dense]
    return dataclasses.replace(
        RULES, dropout=most, dropout_fall=min(falls),
        smoothing=statistics.median(one.smoothing for one in sparse),
        step=statistics.geometric_mean(
            one.positions / math.sqrt(one.statistics.interactions) for one in votes))


VOTED = ("data.length", "train.rows", "encoder.dropout", "objective.label_smoothing")


def table_of_votes(votes: Mapping[str, Vote]) -> dict[str, Any]:
    """Of each dataset its vote, the recipe, and the recipe by the votes of all others."""
    machine = Machine(16 * 2**30, 120e9)

    def settings(found: Statistics, rules: Rules) -> dict[str, Any]:
        values = {one.key: one.value for one in recipe_of(found, machine, "d", rules).settings}
        return {key: values.get(key) for key in VOTED}

    rows = {}
    for name, vote in votes.items():
        others = rules_from([one for other, one in votes.items() if other != name])
        shipped, without = settings(vote.statistics, RULES), settings(vote.statistics, others)
        rows[name] = {"per_item": vote.statistics.per_item, "vote": {
            "data.length": vote.length, "train.rows": vote.positions / vote.length,
            "encoder.dropout": vote.dropout, "objective.label_smoothing": vote.smoothing},
            "recipe": shipped, "recipe_of_the_others": without, "same": shipped == without,
            "rules_of_the_others": dataclasses.asdict(others)}
    return {"rules": dataclasses.asdict(RULES), "lengths": LENGTHS,
            "rules_of_all": dataclasses.asdict(rules_from(list(votes.values()))), "sets": rows}


if __name__ == "__main__":
    main()
