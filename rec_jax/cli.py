"""The command line: one thin function a verb. People read stderr, programs read stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from rec_jax import cli_bench, cli_checkpoint
from rec_jax.allocator import restart_with_kept_memory
from rec_jax.errors import InputError, Preempted, TrainingError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train sequential recommenders with huge catalogues, exactly.")
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_bench.app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Set = Annotated[Optional[list[str]], typer.Option(  # noqa: UP045 (typer reads it at run time)
    "--set", help="One line of TOML over the file, such as train.epochs=3; may be repeated.")]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]
Step = Annotated[Optional[int], typer.Option(  # noqa: UP045
    help="Checkpoint to use; the best one by default.")]
Data = Annotated[Optional[str], typer.Option(  # noqa: UP045
    help="Dataset folder, if it moved since training.")]


@app.command()
def fetch(
    name: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="NAME", help="Data set; without a name, all are listed.")] = None,
    out: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Folder for its files; data/NAME by default.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a public data set from its publisher, check it, and show its terms."""
    from rec_jax.data import fetch as fetching
    from rec_jax.data.sources import SOURCES

    if name is None:
        listed = {key: {"about": source.about, "terms": source.terms,
                        "origins": [origin.where for origin in source.origins]}
                  for key, source in SOURCES.items()}
        _show_sources(listed, as_json)
        return
    found = fetching.fetch(name, out or f"data/{name}", tell=_say)
    _show({"name": found.name, "folder": found.folder, "origin": found.origin,
           "prepare": f"rec-jax prepare --config {found.config_path}"}, as_json, "fetched")


@app.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file to write.")],
    users: Annotated[int, typer.Option(help="How many users.")] = 5_000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 2_000,
    settings: Set = None,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate realistic sessions of any size, streamed; see SynthConfig for --set."""
    from rec_jax import config
    from rec_jax.data.synth import SynthConfig
    from rec_jax.data.synth import synth as generate

    given = config.override({"users": users, "items": items, "seed": seed}, settings or ())
    _show(dataclasses.asdict(generate(config.build(SynthConfig, given), out)), as_json, "synth")


@app.command()
def prepare(
    source: Annotated[Optional[list[str]], typer.Argument(  # noqa: UP045
        metavar="[SOURCE]...", help="CSV, TSV, Parquet or text, also compressed; a file, a folder "
                                    "of files or a glob.")] = None,
    out: Annotated[Optional[str], typer.Option(help="New dataset folder.")] = None,  # noqa: UP045
    config_path: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--config", help="TOML file with the keys of PrepareConfig.")] = None,
    format: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="csv, tsv, parquet, pairs (user item) or lists (user item item ...).")] = None,
    user: Annotated[Optional[str], typer.Option(help="Column of the user.")] = None,  # noqa: UP045
    item: Annotated[Optional[str], typer.Option(help="Column of the item.")] = None,  # noqa: UP045
    time: Annotated[Optional[str], typer.Option(help="Column of the time.")] = None,  # noqa: UP045
    rating: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Column of the rating.")] = None,
    time_unit: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Unit of numeric times: s, ms, us, ns or YYYYMMDD; found where it is clear.")] = None,
    separator: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Between the fields of a text file.")] = None,
    quote: Annotated[Optional[bool], typer.Option(  # noqa: UP045
        "--quote/--no-quote", help="Whether fields may be quoted; in CSV they may.")] = None,
    escape: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="What stands before a quote inside quotes, such as a backslash.")] = None,
    min_rating: Annotated[Optional[float], typer.Option(  # noqa: UP045
        help="Drop interactions below it.")] = None,
    core: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="k-core: fewest interactions of a user and of an item.")] = None,
    duplicates: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Repeated pairs: all, first or last.")] = None,
    split: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="leave_one_out or time.")] = None,
    item_feature: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        metavar="COLUMN", help="Categorical column of the items to keep, of the item file or else "
                               "of the interactions; may be repeated.")] = None,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Replace the output folder.")] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Turn interactions into a memory-mapped dataset folder."""
    from rec_jax import config
    from rec_jax.data.prepare import prepare as run
    from rec_jax.data.prepare_config import PrepareConfig

    flags = _without_none({
        "source": list(source) if source else None, "out": out, "format": format,
        "columns": _without_none({"user": user, "item": item, "time": time, "rating": rating,
                                  "time_unit": time_unit}),
        "separator": separator, "quote": quote, "escape": escape,
        "filters": _without_none({"min_rating": min_rating, "user_core": core, "item_core": core,
                                  "duplicates": duplicates}),
        "split": _without_none({"kind": split}), "overwrite": overwrite or None,
        "item_features": [{"column": name} for name in item_feature] if item_feature else None})
    report = run(config.read(PrepareConfig, config_path, flags, settings or ()))
    shown = _without_none(report.to_dict())
    _show(shown if as_json else {name: value for name, value in shown.items() if name != "notes"},
          as_json, "dataset")
    for line in report.notes:
        _say(f"note: {line}")
    for line in report.bad_lines:
        _say(f"skipped {line}")


@app.command()
def train(
    config: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="CONFIG", help="TOML file, see configs/.")] = None,
    settings: Set = None,
    run: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Folder of the new run; runs/NAME-DATE by default.")] = None,
    resume: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="RUN|auto", help="Go on with a run from its newest checkpoint; auto: the run of "
                                 "this config, or a new one.")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Resume although config or dataset changed; says what differs.")] = False,
    start_from: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="RUN", help="Start a new run with the rows and encoder of another; items are "
                            "matched by id.")] = None,
    keep_state: Annotated[bool, typer.Option(
        "--keep-state", help="With --start-from: take the optimizer state too.")] = False,
    coordinator: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="HOST:PORT", envvar="JAX_COORDINATOR_ADDRESS",
        help="Address of process 0 of a multi-host run.")] = None,
    processes: Annotated[Optional[int], typer.Option(  # noqa: UP045
        envvar="JAX_NUM_PROCESSES", help="Processes of the run.")] = None,
    process: Annotated[Optional[int], typer.Option(  # noqa: UP045
        envvar="JAX_PROCESS_ID", help="Which of them this one is, from 0.")] = None,
    multihost: Annotated[bool, typer.Option(
        "--multihost", help="Join the processes that SLURM, a TPU pod or MPI started.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model; write checkpoints, metrics and a report into a run folder."""
    from rec_jax import api
    from rec_jax.mesh import start_processes

    if multihost or coordinator is not None:
        start_processes(coordinator, processes, process)
    summary = api.train(config, run=run, overrides=settings or (), resume=resume, force=force,
                        start_from=start_from, keep_state=keep_state,
                        progress=not as_json and not process)
    _show(summary, as_json, "training")


@app.command()
def evaluate(
    run: RunDir,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    step: Step = None,
    filter_seen: Annotated[Optional[bool], typer.Option(  # noqa: UP045
        help="Leave out items of the history; the run's setting by default.")] = None,
    batch: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="Users ranked at once; changes speed only.")] = None,
    baseline: Annotated[bool, typer.Option(help="Show popularity beside it.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Rank the whole catalogue for every user of a split."""
    from rec_jax import api

    if split not in ("valid", "test"):
        raise InputError(f"--split is {split!r}; expected valid or test")
    result = api.evaluate(run, split=split, step=step,  # type: ignore[arg-type]
                          filter_seen=filter_seen, batch=batch, baseline=baseline, data=data,
                          progress=not as_json)
    if as_json:
        print(json.dumps(result))
    else:
        _show_metrics(result)


@app.command()
def export(
    run: RunDir,
    out: Annotated[str, typer.Option(help="New folder for the files.")],
    what: Annotated[str, typer.Option(help="items, users, or inputs (untied tables).")] = "items",
    format: Annotated[str, typer.Option(help="npy, safetensors, parquet or zarr.")] = "npy",
    step: Step = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write embeddings with the ids of the source."""
    from rec_jax import api

    if what not in ("items", "users", "inputs"):
        raise InputError(f"--what is {what!r}; expected items, users or inputs")
    folder = api.export(run, out=out, what=what, format=format,  # type: ignore[arg-type]
                        step=step, data=data, progress=not as_json)
    about = json.loads((folder / "export.json").read_text())
    _show({"folder": str(folder), **about}, as_json, "export")


@app.command()
def recommend(
    run: RunDir,
    user: Annotated[Optional[str], typer.Option(help="A user of the dataset.")] = None,  # noqa: UP045
    history: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Item ids, oldest first, separated by commas.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many items.")] = 10,
    keep_seen: Annotated[bool, typer.Option(
        "--keep-seen", help="Items of the history may come again.")] = False,
    step: Step = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Recommend items to a user, or after a history."""
    from rec_jax import api

    items = None if history is None else [part.strip() for part in history.split(",")
                                          if part.strip()]
    found = api.recommend(run, user=user, history=items, k=k, filter_seen=not keep_seen,
                          step=step, data=data)
    if as_json:
        print(json.dumps({"recommendations": [dataclasses.asdict(entry) for entry in found]}))
        return
    table = Table("rank", "item", "title", "score")
    for entry in found:
        table.add_row(str(entry.rank), entry.item, entry.title or "", f"{entry.score:.3f}")
    Console().print(table)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TOML file, see configs/.")],
    items: Annotated[float, typer.Option(help="Size of the catalogue, such as 1e9.")],
    devices: Annotated[str, typer.Option(help="v5p:4x4x4, h100x8, cpu, ...")] = "cpu",
    dim: Annotated[Optional[int], typer.Option(help="Width of a row.")] = None,  # noqa: UP045
    settings: Set = None,
    compile: Annotated[bool, typer.Option(
        "--compile", help="Compile the step for a TPU slice; show XLA's own figures.")] = False,
    as_json: Json = False,
) -> None:
    """Bytes, operations, traffic and time of a step, before there is a machine."""
    from rec_jax import api

    lines = [*(settings or ()), *([f"table.dim={dim}"] if dim else [])]
    result = api.plan(config, items=items, devices=devices, overrides=lines, compiled=compile)
    if as_json:
        print(json.dumps(result))
    else:
        _show_plan(result)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _show_sources(listed: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(listed))
        return
    table = Table("name", "what", "terms")
    for name, source in listed.items():
        table.add_row(name, source["about"], source["terms"])
    Console().print(table)


def _show(values: Mapping[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(values))
        return
    table = Table("", title, show_header=True)
    for name, value in values.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)


def _show_plan(result: Mapping[str, Any]) -> None:
    console = Console()
    data, items = result["mesh"]
    console.print(f"{result['rows']:,} rows on {result['devices']}, mesh {data} x {items}, table "
                  f"{result['mode']}: {result['reason']}", highlight=False)
    table = Table("a device needs", "GiB")
    for name, size in result["memory_bytes"].items():
        table.add_row(name, f"{size / 2**30:.3f}")
    table.add_row("in all", f"{result['needed_bytes'] / 2**30:.3f} of "
                            f"{result['available_bytes'] / 2**30:.1f}")
    if "compiled" in result:
        table.add_row("XLA's own count", f"{result['compiled']['needed'] / 2**30:.3f}")
    console.print(table)
    table = Table("a step", "")
    for name, value in result["operations"].items():
        table.add_row(f"{name}, operations", f"{value:.3g}")
    for name, value in result["communication_bytes"].items():
        table.add_row(f"{name}, sent", f"{value / 2**20:.3f} MiB")
    for name, value in result["seconds"].items():
        table.add_row(f"{name}, time", f"{value * 1e3:.3f} ms")
    table.add_row("predicted", f"{result['step_seconds'] * 1e3:.3f} ms")
    if "compiled" in result:
        largest = result["compiled"]["largest_collective"]
        table.add_row("XLA's largest collective", f"{largest / 2**20:.3f} MiB")
    console.print(table)
    if not result["fits"]:
        console.print("It does not fit. Any one of these does:")
        for line in result["fitting_changes"] or ["nothing tried; give more devices"]:
            console.print(f"  {line}", highlight=False)


def _show_metrics(result: Mapping[str, Any]) -> None:
    baseline = result.get("popularity_baseline")
    table = Table("metric", "model", *(["popularity", "ratio"] if baseline else []))
    for name, value in result["metrics"].items():
        row = [name, f"{value:.4f}"]
        if baseline and name in baseline:
            ratio = value / baseline[name] if baseline[name] else float("inf")
            row += [f"{baseline[name]:.4f}", f"{ratio:.1f}x"]
        table.add_row(*row)
    console = Console()
    console.print(table)
    protocol = result["protocol"]
    seen = "filtered" if protocol["seen_items_filtered"] else "kept"
    console.print(f"{protocol['users']} {protocol['split']} users, "
                  f"{protocol['candidates']} candidates, seen items {seen}, ties "
                  f"{protocol['ties']}, split {protocol['split_hash'][:12]}, "
                  f"checkpoint of step {result['step']}", highlight=False)


def start() -> None:
    """Entry point of the command: `main` in a process whose malloc keeps freed memory."""
    restart_with_kept_memory()
    main()


def main() -> None:
    """All of the command line. Exit codes: 0 done, 2 bad input or config, 75 stopped by a signal
    after saving, 1 anything else."""
    sys.unraisablehook = _unraisable
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except TrainingError as error:
        _fail(str(error), 1)
    except Preempted as error:
        _fail(str(error), 75)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    _say(f"rec-jax: {line}")
    sys.exit(code)


def _unraisable(found: Any) -> None:
    # Reads that orbax left pending when another one failed raise once more, at great length.
    trace = found.exc_traceback
    if trace is None or "orbax" not in trace.tb_frame.f_code.co_filename:
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    start()
