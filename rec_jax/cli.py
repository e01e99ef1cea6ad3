"""The command line: one thin function a verb. People read stderr, programs read stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from rec_jax import (
    cli_baseline,
    cli_bench,
    cli_checkpoint,
    cli_config,
    cli_data,
    cli_ope,
    cli_summary,
)
from rec_jax.allocator import restart_with_kept_memory
from rec_jax.cli_options import App, with_optional_value
from rec_jax.cli_show import (
    NobodyReads,
    console,
    drop_stdout,
    open_streams,
    own_stdout,
    print_json,
    print_table,
    say,
)
from rec_jax.errors import InputError, Preempted, TrainingError, describe_os_error
from rec_jax.solvers import SOLVERS

app = App(no_args_is_help=True, pretty_exceptions_enable=False,
          help="Train sequential recommenders with huge catalogues, exactly.")
app.add_typer(cli_config.app, name="config")
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_baseline.app)

_UsageError: Any = typer.BadParameter.__mro__[1]  # typer does not export it
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Set = Annotated[Optional[list[str]], typer.Option(  # noqa: UP045 (typer reads it at run time)
    "--set", metavar="KEY=VALUE", help="Set a key of the config, such as seed=1 (a line of TOML); "
                                       "`rec-jax config keys` lists them. May be repeated.")]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]
Step = Annotated[Optional[int], typer.Option(  # noqa: UP045
    help="Checkpoint to use; the best one by default.")]
Trust = Annotated[bool, typer.Option(
    "--trust-code", help="Load modules of third parties that the config names; their code runs.")]
Data = Annotated[Optional[str], typer.Option(  # noqa: UP045
    help="Dataset folder, if it moved since training.")]
OnMesh = Annotated[Optional[str], typer.Option(  # noqa: UP045
    "--mesh", metavar="DATAxITEMS", help="Devices that hold the model, such as 1x8: groups of "
                                         "users times shards of the table; the run's by default.")]
Coordinator = Annotated[Optional[str], typer.Option(  # noqa: UP045
    metavar="HOST:PORT", envvar="JAX_COORDINATOR_ADDRESS",
    help="Address of process 0 of a multi-host run.")]
Processes = Annotated[Optional[int], typer.Option(  # noqa: UP045
    envvar="JAX_NUM_PROCESSES", help="Processes of the run.")]
Process = Annotated[Optional[int], typer.Option(  # noqa: UP045
    envvar="JAX_PROCESS_ID", help="Which of them this one is, from 0.")]
Multihost = Annotated[bool, typer.Option(
    "--multihost", help="Join the processes that SLURM, a TPU pod or MPI started.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"rec-jax {version('rec-jax')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Train sequential recommenders with huge catalogues, exactly."""


@app.command()
def fetch(
    name: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="NAME", help="Data set; without a name, all are listed.")] = None,
    out: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Folder for its files; data/NAME by default.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a public data set. Its hash is checked, and its terms are shown."""
    from rec_jax.data import fetch as fetching
    from rec_jax.data.sources import SOURCES
    from rec_jax.progress import progress_bar

    if name is None:
        listed = {key: {"about": source.about, "terms": source.terms,
                        "origins": [origin.where for origin in source.origins],
                        "pinned": [origin.pinned for origin in source.origins]}
                  for key, source in SOURCES.items()}
        _show_sources(listed, as_json)
        return
    with progress_bar("fetch", show=not as_json, unit="bytes") as progress:
        found = fetching.fetch(name, out or f"data/{name}", tell=say if as_json else progress.say,
                               reporter=progress)
    done = {"name": found.name, "folder": found.folder, "origin": found.origin,
            "prepare": f"rec-jax prepare --config {found.config_path}"}
    if as_json:
        print_json(done)
    else:
        cli_summary.other(f"Data set {found.name}", {**done, "name": ""},
                          {"origin": "from", "prepare": "next"})


@app.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file to write.")],
    users: Annotated[int, typer.Option(help="How many users.")] = 5_000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 2_000,
    settings: Set = None,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate realistic sessions. `rec-jax config keys synth` lists the settings."""
    from rec_jax import config
    from rec_jax.data.synth import SynthConfig
    from rec_jax.data.synth import synth as generate
    from rec_jax.progress import progress_bar

    given = config.override({"users": users, "items": items, "seed": seed}, settings or ())
    with progress_bar("synth", show=not as_json, unit="users") as progress:
        made = dataclasses.asdict(generate(config.build(SynthConfig, given), out, progress))
    if as_json:
        print_json(made)
    else:
        cli_summary.other(f"Interactions in {out}", made)


@app.command()
def prepare(
    source: Annotated[Optional[list[str]], typer.Argument(  # noqa: UP045
        metavar="SOURCE", help="CSV, TSV, Parquet or text, also compressed; a file, a folder "
                                    "of files or a glob.")] = None,
    out: Annotated[Optional[str], typer.Option(help="New dataset folder.")] = None,  # noqa: UP045
    config_path: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--config", help="TOML file; `rec-jax config keys prepare` lists its keys.")] = None,
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
    from rec_jax.progress import progress_bar

    flags = _without_none({
        "source": list(source) if source else None, "out": out, "format": format,
        "columns": _without_none({"user": user, "item": item, "time": time, "rating": rating,
                                  "time_unit": time_unit}),
        "separator": separator and separator.replace(r"\t", "\t"),  # as shells pass it
        "quote": quote, "escape": escape,
        "filters": _without_none({"min_rating": min_rating, "user_core": core, "item_core": core,
                                  "duplicates": duplicates}),
        "split": _without_none({"kind": split}), "overwrite": overwrite or None,
        "item_features": [{"column": name} for name in item_feature] if item_feature else None})
    job = config.read(PrepareConfig, config_path, flags, settings or ())
    with progress_bar("prepare", show=not as_json, unit="rows") as progress:
        report = run(job, progress)
    if as_json:
        print_json(_without_none(report.to_dict()))
    else:
        cli_summary.dataset(report.to_dict())
    for line in report.notes:
        say(f"note: {line}")
    for line in report.bad_lines:
        say(f"skipped {line}")


@app.command()
def train(
    config: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="CONFIG", help="TOML file, or a name of `rec-jax config list`.")] = None,
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
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Train a model. Checkpoints, metrics and a report go into a run folder."""
    from rec_jax.kernels import auto

    if not process:
        auto.begin()  # the library is built while the rest is imported and traced
    from rec_jax import api
    from rec_jax.train.starting import process_began

    _join(coordinator, processes, process, multihost)
    summary = api.train(config, run=run, overrides=settings or (), resume=resume, force=force,
                        start_from=start_from, keep_state=keep_state, trust_code=trust_code,
                        progress=not as_json and not process, since=process_began())
    if as_json:
        print_json(summary)
    else:
        cli_summary.training(summary)


@app.command(cls=with_optional_value("--baseline", SOLVERS, "popularity"))
def evaluate(
    run: RunDir,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    step: Step = None,
    filter_seen: Annotated[Optional[bool], typer.Option(  # noqa: UP045
        help="Leave out items of the history; the run's setting by default.")] = None,
    seen_targets: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="What a target is that the history holds, if those are left out: a miss, or its user "
             "is left out (leave_out); the run's setting by default.")] = None,
    batch: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="Users ranked at once; changes speed only.")] = None,
    baseline: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--baseline", metavar="[NAME,...]",
        help=f"Show popularity beside it, or one or more of {', '.join(SOLVERS)} as `rec-jax "
             "baseline` has them by default.")] = None,
    data: Data = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Rank the whole catalogue for every user of a split."""
    from rec_jax import api

    if split not in ("valid", "test"):
        raise InputError(f"--split is {split!r}; expected valid or test")
    first = _join(coordinator, processes, process, multihost)
    result = api.evaluate(run, split=split, step=step,  # type: ignore[arg-type]
                          filter_seen=filter_seen, seen_targets=seen_targets, batch=batch,
                          baseline=_beside(baseline), data=data, mesh=mesh,
                          trust_code=trust_code, progress=not as_json, tell=say)
    if not first:
        return
    if as_json:
        print_json(result)
    else:
        cli_summary.evaluation(result)


@app.command()
def export(
    run: RunDir,
    out: Annotated[str, typer.Option(help="New folder for the files.")],
    what: Annotated[str, typer.Option(help="items, users, or inputs (untied tables).")] = "items",
    format: Annotated[str, typer.Option(help="npy, safetensors, parquet or zarr.")] = "npy",
    step: Step = None,
    data: Data = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write embeddings with the ids of the source."""
    from rec_jax import api

    if what not in ("items", "users", "inputs"):
        raise InputError(f"--what is {what!r}; expected items, users or inputs")
    first = _join(coordinator, processes, process, multihost)
    folder = api.export(run, out=out, what=what, format=format,  # type: ignore[arg-type]
                        step=step, data=data, mesh=mesh, trust_code=trust_code,
                        progress=not as_json, tell=say)
    if not first:
        return
    about = json.loads((folder / "export.json").read_text())
    if as_json:
        print_json({"folder": str(folder), **about})
    else:
        cli_summary.other(f"Embeddings in {folder}", about, {"what": "rows of", "dim": "width"})


@app.command()
def recommend(
    run: RunDir,
    user: Annotated[Optional[str], typer.Option(help="A user of the dataset.")] = None,  # noqa: UP045
    history: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        metavar="ID", help="Item ids, oldest first: repeat the option, or separate them by commas "
                           "where no id has one.")] = None,
    history_file: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="Item ids, oldest first, one a line.")] = None,
    times: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        metavar="TIME", help="Times of the history's items, seconds since 1970 or ISO 8601: "
                             "repeat the option, or separate them by commas.")] = None,
    times_file: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="The same, one a line.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many items.")] = 10,
    keep_seen: Annotated[Optional[bool], typer.Option(  # noqa: UP045
        "--keep-seen/--filter-seen", help="Whether items of the history may come again; as the "
                                          "run is evaluated by default.")] = None,
    step: Step = None,
    data: Data = None,
    mesh: OnMesh = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    multihost: Multihost = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Recommend items to a user, or after a history."""
    from rec_jax import retrieve, typed
    from rec_jax.mesh import parse_mesh
    from rec_jax.run import Run
    from rec_jax.served import load_served

    if (history and history_file) or (times and times_file):
        raise InputError("ids and times come from options or from a file, not from both")
    when = typed.read_times(typed.read_lines(times_file) if times_file else times or [])
    items = typed.read_lines(history_file) if history_file else None
    first = _join(coordinator, processes, process, multihost)
    served = load_served(Run(Path(run), trust_code), step=step, dataset_path=data,
                         mesh=None if mesh is None else parse_mesh(mesh), tell=say)
    if history:
        items = typed.read_ids(served.dataset, history)
    found = retrieve.recommend(
        served, user=user, history=items, times=when if times or times_file else None, k=k,
        filter_seen=None if keep_seen is None else not keep_seen, tell=say if first else None)
    if not first:
        return
    if as_json:
        print_json({"recommendations": [dataclasses.asdict(entry) for entry in found]})
        return
    print_table(["rank", "item", "title", "score"],
                [(entry.rank, entry.item, entry.title or "", f"{entry.score:.3f}")
                 for entry in found], numbers=("rank", "score"))


app.command()(cli_ope.ope)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine computes with. Devices, versions, and backends with their times."""
    from rec_jax import machine

    with machine.telling(say):
        found = machine.doctor()
    if as_json:
        print_json(found)
    else:
        cli_summary.doctor(found)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(
        metavar="CONFIG", help="TOML file, or a name of `rec-jax config list`.")],
    items: Annotated[float, typer.Option(help="Size of the catalogue, such as 1e9.")],
    devices: Annotated[str, typer.Option(help="v5p:4x4x4, h100x8, cpu, ...")] = "cpu",
    dim: Annotated[Optional[int], typer.Option(help="Width of a row.")] = None,  # noqa: UP045
    settings: Set = None,
    compile: Annotated[bool, typer.Option(
        "--compile", help="Compile the step for a TPU slice; show XLA's own figures.")] = False,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what a step will need. Bytes, operations, traffic and time, before there is a machine."""
    from rec_jax import api

    if not 1 <= items < float("inf"):
        raise InputError(f"--items is {items:g}; expected at least 1")
    lines = [*(settings or ()), *([] if dim is None else [f"table.dim={dim}"])]
    result = api.plan(config, items=items, devices=devices, overrides=lines, compiled=compile,
                      trust_code=trust_code)
    if as_json:
        print_json(result)
    else:
        _show_plan(result)


def _join(coordinator: str | None, processes: int | None, process: int | None,
          multihost: bool) -> bool:
    """Join the other processes, if there are any; whether this one writes and prints."""
    from rec_jax.mesh import is_first, start_processes
    from rec_jax.programs import keep_programs

    if multihost or coordinator is not None:
        own_stdout()
        start_processes(coordinator, processes, process)
    else:
        keep_programs()
    return is_first()


def _beside(baseline: str | None) -> bool | str:
    """What `evaluate` shows beside the model; the option alone means popularity."""
    if baseline in (None, "none", "popularity"):
        return baseline == "popularity"
    return str(baseline)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _show_sources(listed: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    print_table(["name", "what", "terms", "checked by"],
                [(name, source["about"], source["terms"], ", ".join(dict.fromkeys(
                    "no pinned hash" if pinned is None else pinned.partition(" ")[0]
                    for pinned in source["pinned"])))
                 for name, source in listed.items()])


def _show_plan(result: Mapping[str, Any]) -> None:
    data, items = result["mesh"]
    shown = console()
    shown.print(f"{result['rows']:,} rows on {result['devices']}, mesh {data} x {items}, table "
                f"{result['mode']}: {result['reason']}")
    rows = [(name, f"{size / 2**30:.3f}") for name, size in result["memory_bytes"].items()]
    rows.append(("in all", f"{result['needed_bytes'] / 2**30:.3f} of "
                           f"{result['available_bytes'] / 2**30:.1f}"))
    if "compiled" in result:
        rows.append(("XLA's own count", f"{result['compiled']['needed'] / 2**30:.3f}"))
    print_table(["a device needs", "GiB"], rows, numbers=("GiB",))
    rows = [(f"{name}, operations", f"{value:.3g}")
            for name, value in result["operations"].items()]
    rows += [(f"{name}, sent", f"{value / 2**20:.3f} MiB")
             for name, value in result["communication_bytes"].items()]
    rows += [(f"{name}, time", f"{value * 1e3:.3f} ms")
             for name, value in result["seconds"].items()]
    rows.append(("predicted", f"{result['step_seconds'] * 1e3:.3f} ms"))
    if "compiled" in result:
        largest = result["compiled"]["largest_collective"]
        rows.append(("XLA's largest collective", f"{largest / 2**20:.3f} MiB"))
    print_table(["a step", "needs"], rows, numbers=("needs",))
    if not result["fits"]:
        shown.print("It does not fit. Any one of these does:")
        for line in result["fitting_changes"] or ["nothing tried; give more devices"]:
            shown.print(f"  {line}")


def start() -> None:
    """The command in a process whose malloc keeps freed memory; `rec_jax.__main__` is quicker."""
    restart_with_kept_memory()
    main()


def main() -> None:
    """All of the command line. Exit codes: 0 done, 2 bad input or config, 75 stopped by a signal
    after saving, 130 interrupted, 141 nobody reads stdout any more, 1 anything else."""
    sys.unraisablehook = _unraisable
    open_streams()
    try:
        code = app(prog_name="rec-jax", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        _misused(error)
    except InputError as error:
        _fail(str(error), 2)
    except TrainingError as error:
        _fail(str(error), 1)
    except Preempted as error:
        _fail(str(error), 75)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except (NobodyReads, BrokenPipeError):
        drop_stdout()  # as `... | head -1` wants it, without a word
        sys.exit(141)
    except OSError as error:
        line, by_a_path = describe_os_error(error)
        _fail(line, 2 if by_a_path else 1)
    else:
        if code == 130:  # what typer makes of an interrupt
            _fail("interrupted", 130)
        sys.exit(code)


def _misused(error: Any) -> None:
    """One line for a verb or option that is not there, or lacks its value."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        say(error.format_message().rstrip())
        sys.exit(2)
    path = context.command_path if context is not None else "rec-jax"
    message = error.format_message().rstrip(".")
    _fail(f"{message[:1].lower()}{message[1:]}; see {path} --help", 2)


def _fail(message: str, code: int) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # Python would try once more at its end, and say so at length
        drop_stdout()
    line = " ".join(message.split())
    say(f"rec-jax: {line}")
    sys.exit(code)


def _unraisable(found: Any) -> None:
    # Reads that orbax left pending when another one failed raise once more, at great length.
    trace = found.exc_traceback
    if trace is None or "orbax" not in trace.tb_frame.f_code.co_filename:
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    start()
