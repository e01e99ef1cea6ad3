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

from rec_jax.errors import InputError, TrainingError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train sequential recommenders with huge catalogues, exactly.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Set = Annotated[Optional[list[str]], typer.Option(  # noqa: UP045 (typer reads it at run time)
    "--set", help="One line of TOML over the file, such as train.epochs=3; may be repeated.")]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]
Step = Annotated[Optional[int], typer.Option(  # noqa: UP045
    help="Checkpoint to use; the best one by default.")]
Data = Annotated[Optional[str], typer.Option(  # noqa: UP045
    help="Dataset folder, if it moved since training.")]


@app.command()
def train(
    config: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="CONFIG", help="TOML file, see configs/.")] = None,
    settings: Set = None,
    run: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="Folder of the new run; runs/NAME-DATE by default.")] = None,
    resume: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="RUN", help="Go on with a run from its newest checkpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model; write checkpoints, metrics and a report into a run folder."""
    from rec_jax import api

    summary = api.train(config, run=run, overrides=settings or (), resume=resume,
                        progress=not as_json)
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
    what: Annotated[str, typer.Option(help="items or users.")] = "items",
    format: Annotated[str, typer.Option(help="npy, safetensors or parquet.")] = "npy",
    step: Step = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write embeddings with the ids of the source."""
    from rec_jax import api

    if what not in ("items", "users"):
        raise InputError(f"--what is {what!r}; expected items or users")
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


def _show(values: Mapping[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(values))
        return
    table = Table("", title, show_header=True)
    for name, value in values.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)


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


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input or config, 1 anything else."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except TrainingError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"rec-jax: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
