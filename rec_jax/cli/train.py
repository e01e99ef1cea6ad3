"""`rec-jax train`."""

from __future__ import annotations

from typing import Annotated

import typer

from rec_jax.cli.join import join_processes
from rec_jax.cli.show import print_json
from rec_jax.cli.stream import learnt as show_stream
from rec_jax.cli.summary import training as show_training
from rec_jax.cli.types import Coordinator, Json, Multihost, Process, Processes, Set, Trust


def train(
    config: Annotated[str | None, typer.Argument(
        metavar="CONFIG", help="TOML file, or a name of `rec-jax config list`.")] = None,
    settings: Set = None,
    run: Annotated[str | None, typer.Option(
        help="Folder of the new run; runs/NAME-DATE by default.")] = None,
    resume: Annotated[str | None, typer.Option(
        metavar="RUN|auto", help="Go on with a run from its newest checkpoint; auto: the run of "
                                 "this config, or a new one.")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Resume although config or dataset changed; says what differs.")] = False,
    start_from: Annotated[str | None, typer.Option(
        metavar="RUN", help="Start a new run with the rows and encoder of another; items are "
                            "matched by id.")] = None,
    keep_state: Annotated[bool, typer.Option(
        "--keep-state", help="With --start-from: take the optimizer state too.")] = False,
    continue_from: Annotated[str | None, typer.Option(
        "--continue", metavar="RUN", help="Go on from a run with its config when its dataset has "
                                          "grown: test on what is new in --data, then train on "
                                          "it, in a new run.")] = None,
    data: Annotated[str | None, typer.Option(
        metavar="DATASET", help="Without CONFIG: train with what `rec-jax config suggest` "
                                "says of it; with --continue: made by `rec-jax prepare "
                                "--append`.")] = None,
    stream: Annotated[list[str] | None, typer.Option(
        "--stream", metavar="PATH", help="With a config or run of a stream: a file of "
                                         "interactions, a folder of files or a glob; each file is "
                                         "a period, tested on and then learnt. May be "
                                         "repeated.")] = None,
    encoder_only: Annotated[bool, typer.Option(
        "--encoder-only", help="With --start-from: take no rows, for another catalogue, whose ids "
                                "mean other items.")] = False,
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

    join_processes(coordinator, processes, process, multihost)
    summary = api.train(config, run=run, overrides=settings or (), resume=resume, force=force,
                        start_from=start_from, keep_state=keep_state, encoder_only=encoder_only,
                        continue_from=continue_from, data=data, stream=stream or (),
                        trust_code=trust_code, progress=not as_json and not process,
                        since=process_began())
    if as_json:
        print_json(summary)
    elif "periods" in summary:
        show_stream(summary)
    else:
        show_training(summary)
