"""Arguments and options that several verbs share, each said once."""

from __future__ import annotations

from typing import Annotated, Any

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
TextVectors = Annotated[str | None, typer.Option(
    help="Item vectors; by default the only ones that are made of text.")]
TextTable = Annotated[str | None, typer.Option(
    "--table", metavar="FILE", help="CSV, TSV or Parquet with the texts whose words count; the "
                                    "dataset's titles and text by default.")]
TextId = Annotated[str, typer.Option(
    "--id", metavar="COLUMN", help="With --table: column of item ids.")]
TextColumns = Annotated[list[str] | None, typer.Option(
    "--column", metavar="COLUMN", help="Column of text; may be repeated.")]
Lexical = Annotated[float | None, typer.Option(
    "--lexical", help="What a point of BM25 is worth in cosines; 0: the encoder alone.")]
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
Cold = Annotated[str | None, typer.Option(
    "--cold", metavar="FILL", help="Give items that the training part does not have rows from "
                                   "their content: neighbours, projection or both; or from who "
                                   "took them: edges.")]
ColdVectors = Annotated[list[str] | None, typer.Option(
    "--cold-vectors", metavar="NAME", help="Item vectors that are this content; by default the "
                                           "run's, or the dataset's only ones. May be repeated.")]
ColdBias = Annotated[float | None, typer.Option(
    "--cold-bias", metavar="BIAS", help="Added to the scores of cold items, as `rec-jax evaluate "
                                        "--cold` calibrates it; 0 by default.")]
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


def read_fill(cold: str | None, vectors: list[str] | None, bias: float | None) -> Any:
    """What the options of cold items ask for: a `ColdFill`, or None."""
    from rec_jax.inference.cold import ColdFill
    from rec_jax.inference.cold_rule import ColdRule

    if cold is None:
        if vectors or bias is not None:
            raise InputError("--cold-vectors and --cold-bias are of items that --cold fills; "
                             "expected --cold neighbours, projection or both")
        return None
    return ColdFill(ColdRule(cold), tuple(vectors or ()), bias or 0.0)  # type: ignore[arg-type]
