"""The command line: its verbs and its exit codes. People read stderr, programs read stdout."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.cli import adapt as cli_adapt
from rec_jax.cli import baseline as cli_baseline
from rec_jax.cli import bench as cli_bench
from rec_jax.cli import checkpoint as cli_checkpoint
from rec_jax.cli import config as cli_config
from rec_jax.cli import data as cli_data
from rec_jax.cli import deltas as cli_deltas
from rec_jax.cli.embed import app as embed_app
from rec_jax.cli.inference import EvaluateVerb, evaluate, export, recommend
from rec_jax.cli.learn_search import app as learn_search_app
from rec_jax.cli.ope import ope
from rec_jax.cli.options import App
from rec_jax.cli.picture import draw
from rec_jax.cli.plan import plan
from rec_jax.cli.prepare import fetch, prepare, synth
from rec_jax.cli.pretrain_text import app as pretrain_app
from rec_jax.cli.search import app as search_app
from rec_jax.cli.show import NobodyReads, drop_stdout, open_streams, print_json, say
from rec_jax.cli.simulate import simulate
from rec_jax.cli.summary import doctor as show_doctor
from rec_jax.cli.train import train
from rec_jax.cli.types import Json
from rec_jax.errors import InputError, Preempted, TrainingError, describe_os_error

app = App(no_args_is_help=True, pretty_exceptions_enable=False,
          help="Train sequential recommenders with huge catalogues, exactly.")
app.add_typer(embed_app)
app.add_typer(cli_config.app, name="config")
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_adapt.app, name="adapt")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_deltas.app, name="deltas")
app.add_typer(cli_baseline.app)
app.add_typer(pretrain_app)
app.add_typer(search_app)
app.add_typer(learn_search_app)

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


app.command()(fetch)
app.command()(synth)
app.command()(prepare)
app.command()(train)
app.command(cls=EvaluateVerb)(evaluate)
app.command()(export)
app.command()(recommend)
app.command(name="map")(draw)
app.command()(ope)
app.command()(simulate)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine computes with. Devices, versions, and backends with their times."""
    from rec_jax.bench import machine

    with machine.telling(say):
        found = machine.doctor()
    if as_json:
        print_json(found)
    else:
        show_doctor(found)


app.command()(plan)


def start() -> None:
    """The command in a process whose malloc keeps freed memory; `rec_jax.__main__` is quicker."""
    restart_with_tuned_malloc()
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
