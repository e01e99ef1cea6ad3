"""A dataset in periods of time: going on with a run beside training anew on everything so far.

    python benchmarks/continual.py configs/ml1m.toml --data data/ml-1m --periods 5 --first 0.5 \\
        --set-on optimizer.schedule=constant --set-on optimizer.rate=5e-4 --set-on train.epochs=2 \\
        --work runs/continual --out benchmarks/results/continual_ml1m.json

The interactions are cut by time: the first share of them is prepared and trained on, and the rest
comes in equal periods, each appended (`rec-jax prepare --append`). After each period there are two
models: that of the period before that went on (`rec-jax train --continue`), and one trained anew.
Both are asked for every interaction of the period that follows, before either has seen it
(`next`, test-then-train), and for the test users of the dataset so far (`test`).

The JSON is written after each period, with a picture beside it. Whatever is there is not done
again, and a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import rec_jax
from rec_jax import config
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.data.appended import settings_of
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.files import atomic_writer
from rec_jax.run import Run

METRICS = ("ndcg@10", "hr@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file of the runs")
    parser.add_argument("--data", required=True, help="dataset folder with times")
    parser.add_argument("--periods", type=int, default=5, help="periods after the first share")
    parser.add_argument("--first", type=float, default=0.5, help="share before the first period")
    parser.add_argument("--set", action="append", default=[], help="a line of TOML over the config")
    parser.add_argument("--set-on", action="append", default=[],
                        help="a line over the config of runs that go on")
    parser.add_argument("--work", required=True, help="folder for datasets and runs")
    parser.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()  # as the command line does
    run(options)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All periods; the content of the JSON."""
    work, out = Path(options.work), Path(options.out)
    datasets = prepare_periods(Dataset.open(options.data), work, options.periods, options.first)
    done: list[dict[str, Any]] = json.loads(out.read_text())["periods"] if out.exists() else []
    about = {"data": Path(options.data).name, "first_share": options.first,
             "config": Path(options.config).name, "set": options.set, "set_on": options.set_on}
    result: dict[str, Any] = {**about, "periods": done}
    for number in range(len(done), options.periods + 1):
        done.append(one_period(options, work, datasets, number))
        result = {**about, "periods": done}
        record(out, result)
        plot(result, out.with_suffix(".png"))
        print(json.dumps(done[-1]))
    return result


def prepare_periods(data: Dataset, work: Path, periods: int, first: float) -> list[Path]:
    """The datasets so far, after the first share and after each period: d0, d1, .."""
    if data.times is None:
        raise InputError(f"{data.folder} has no times; expected a dataset that has")
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    order = np.argsort(data.times, kind="stable")
    edges = np.round(np.append(0, first + (1 - first) * np.linspace(0, 1, periods + 1))
                     * len(order)).astype(int)
    user_ids, item_ids = data.user_ids(), data.item_ids()
    folders = [work / f"d{number}" for number in range(periods + 1)]
    for number, out in enumerate(folders):
        if out.exists():
            continue
        places = order[edges[number]:edges[number + 1]]
        source = work / f"period{number}.parquet"
        work.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"user_id": user_ids.gather(users[places]),
                      "item_id": item_ids.gather(np.asarray(data.items)[places]),
                      "time": np.asarray(data.times)[places]}).write_parquet(source)
        if number:
            before = folders[number - 1]
            job = config.build(PrepareConfig, {**settings_of(before), "append": str(before),
                                               "source": str(source), "out": str(out)})
        else:
            job = PrepareConfig(source=str(source), out=str(out),
                                columns=Columns(time="time", time_unit="s"))
        prepare(job)
    return folders


def one_period(options: argparse.Namespace, work: Path, datasets: Sequence[Path],
               number: int) -> dict[str, Any]:
    """Train both models on what there is after period `number`, and ask both for the next one."""
    data = Dataset.open(datasets[number])
    scratch = trained(work / f"scratch{number}", config_path=options.config,
                      overrides=[*options.set, f"data.path={datasets[number]}"])
    on = scratch if not number else trained(
        work / f"on{number}", continue_from=work / ("scratch0" if number == 1 else
                                                    f"on{number - 1}"),
        data=datasets[number], overrides=[*start_at(work, number - 1), *options.set_on])
    found: dict[str, Any] = {
        "period": number, "users": data.num_users, "items": data.num_items,
        "interactions": data.num_interactions,
        "new_interactions": (data.meta["appended"] or {}).get("interactions")}
    for name, summary in (("continual", on), ("scratch", scratch)):
        folder = Path(summary["run"])
        step = summary["best_step" if name == "scratch" or not number else "steps"]
        test = rec_jax.evaluate(folder, step=step)
        found[name] = {"steps": summary["steps"], "train_seconds": summary["train_seconds"],
                       "test": {metric: test["metrics"][metric] for metric in METRICS},
                       "test_protocol": test["protocol"]}
        if number < len(datasets) - 1:
            # One step of a run that goes on: what counts is the test before it.
            probe = trained(work / f"probe_{name}{number}", continue_from=folder,
                            data=datasets[number + 1], overrides=[
                                f"continual.step={step}", *options.set_on, "train.steps=1"])
            new = probe["before"]["new"]
            found[name]["next"] = {metric: new[metric] for metric in METRICS}
            found[name]["next_protocol"] = new["protocol"]
    return found


def start_at(work: Path, number: int) -> list[str]:
    """The override that goes on from the best checkpoint of the first run, which may have trained
    too long; those that went on are taken as they ended."""
    if number:
        return []
    summary = json.loads((work / "scratch0.json").read_text())
    return [f"continual.step={summary['best_step']}"]


def trained(folder: Path, *, config_path: str | None = None, overrides: Sequence[str],
            continue_from: Path | None = None, data: Path | None = None) -> dict[str, Any]:
    """The summary of a run that is trained to its end, or was; kept beside its folder."""
    kept = folder.with_suffix(".json")
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    if Run(folder).config_path.exists():
        summary = rec_jax.train(resume=folder, progress=True)
    elif continue_from is not None:
        summary = rec_jax.train(continue_from=continue_from, data=data, run=folder,
                                overrides=overrides, progress=True)
    else:
        summary = rec_jax.train(config_path, run=folder, overrides=overrides, progress=True)
    with atomic_writer(kept, "w") as file:
        json.dump(summary, file)
    return summary


def plot(result: dict[str, Any], path: Path) -> Path:
    """NDCG@10 of both models for the period that follows, and the seconds that each trained."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    quality, cost = figure.subplots(1, 2)
    for name, label in (("continual", "goes on"), ("scratch", "trained anew")):
        asked = [(one["period"], one[name]["next"]["ndcg@10"]) for one in result["periods"]
                 if "next" in one[name]]
        if asked:
            quality.plot(*zip(*asked, strict=True), marker="o", label=label)
        cost.plot([one["period"] for one in result["periods"]],
                  [one[name]["train_seconds"] for one in result["periods"]], marker="o",
                  label=label)
    quality.set(xlabel="periods trained on", ylabel="NDCG@10 of the next period")
    cost.set(xlabel="periods trained on", ylabel="seconds of training")
    for axes in (quality, cost):
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


if __name__ == "__main__":
    main()
