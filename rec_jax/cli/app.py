"""The command line: one thin function a verb. People read stderr, programs read stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from rec_jax.allocator import restart_with_kept_memory
from rec_jax.cli import (
    baseline as cli_baseline,
)
from rec_jax.cli import (
    bench as cli_bench,
)
from rec_jax.cli import (
    checkpoint as cli_checkpoint,
)
from rec_jax.cli import (
    config as cli_config,
)
from rec_jax.cli import (
    data as cli_data,
)
from rec_jax.cli import (
    embed as cli_embed,
)
from rec_jax.cli import (
    ope as cli_ope,
)
from rec_jax.cli import (
    plan as cli_plan,
)
from rec_jax.cli import (
    prepare as cli_prepare,
)
from rec_jax.cli import (
    summary as cli_summary,
)
from rec_jax.cli.options import App, with_optional_value
from rec_jax.cli.show import NobodyReads, drop_stdout, open_streams, own_stdout, print_json, say
from rec_jax.cli.types import (
    Coordinator,
    Data,
    Json,
    Multihost,
    OnMesh,
    Process,
    Processes,
    RunDir,
    Set,
    Split,
    Step,
    Trust,
    check_split,
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
app.add_typer(cli_embed.app)

_UsageError: Any = typer.BadParameter.__mro__[1]  # typer does not export it


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


for verb in (cli_prepare.fetch, cli_prepare.synth, cli_prepare.prepare):
    app.command()(verb)


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
    split: Split = "test",
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

    check_split(split)
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
    from rec_jax.inference import retrieve, typed
    from rec_jax.inference.served import load_served
    from rec_jax.mesh import parse_mesh
    from rec_jax.run import Run

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
    cli_summary.recommendations(found, as_json)


app.command()(cli_ope.ope)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine computes with. Devices, versions, and backends with their times."""
    from rec_jax.bench import machine

    with machine.telling(say):
        found = machine.doctor()
    if as_json:
        print_json(found)
    else:
        cli_summary.doctor(found)


app.command()(cli_plan.plan)


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
