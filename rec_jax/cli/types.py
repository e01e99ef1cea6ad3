"""Arguments and options that several verbs share, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

from rec_jax.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Set = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Set a key of the config, such as seed=1 (a line of TOML); "
                                       "`rec-jax config keys` lists them. May be repeated.")]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]
DatasetDir = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")]
Step = Annotated[int | None, typer.Option(
    help="Checkpoint to use; the best one by default.")]
SplitName = Annotated[str, typer.Option(help="valid or test.")]
Trust = Annotated[bool, typer.Option(
    "--trust-code", help="Load modules of third parties that the config names; their code runs.")]
Data = Annotated[str | None, typer.Option(
    help="Dataset folder, if it moved since training.")]
OnMesh = Annotated[str | None, typer.Option(
    "--mesh", metavar="DATAxITEMS", help="Devices that hold the model, such as 1x8: groups of "
                                         "users times shards of the table; the run's by default.")]
Popularity = Annotated[float | None, typer.Option(
    "--popularity-bias", metavar="STRENGTH",
    help="Add STRENGTH times the log of an item's share of the training labels to its score; below "
         "0 rare items come earlier.")]
Coordinator = Annotated[str | None, typer.Option(
    metavar="HOST:PORT", envvar="JAX_COORDINATOR_ADDRESS",
    help="Address of process 0 of a multi-host run.")]
Processes = Annotated[int | None, typer.Option(
    envvar="JAX_NUM_PROCESSES", help="Processes of the run.")]
Process = Annotated[int | None, typer.Option(
    envvar="JAX_PROCESS_ID", help="Which of them this one is, from 0.")]
Multihost = Annotated[bool, typer.Option(
    "--multihost", help="Join the processes that SLURM, a TPU pod or MPI started.")]


def check_split(split: str) -> None:
    """Raises InputError for a split that nobody can be evaluated on."""
    if split not in ("valid", "test"):
        raise InputError(f"--split is {split!r}; expected valid or test")
