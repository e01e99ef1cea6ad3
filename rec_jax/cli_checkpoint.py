"""`rec-jax checkpoint`: list, inspect, verify, compact and prune the checkpoints of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from rec_jax.errors import InputError
from rec_jax.jsons import dumps

app = typer.Typer(no_args_is_help=True, help="Look after the checkpoints of a run.")

RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]
Step = Annotated[Optional[int], typer.Option(help="Which one; all by default.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command("list")
def list_all(run: RunDir, as_json: Json = False) -> None:
    """Steps, sizes, metrics, and what each builds on."""
    rows = _describe(run)
    if as_json:
        print(dumps({"checkpoints": rows}))
        return
    table = Table("step", "kind", "MiB", "metric", "")
    for row in rows:
        metric = "" if row["metric"] is None else f"{row['metric']:.5f}"
        notes = [name for name in ("best", "latest") if row[name]]
        if row["problem"]:
            notes.append(row["problem"])
        table.add_row(str(row["step"]), row["kind"], f"{row['bytes'] / 2**20:.2f}", metric,
                      ", ".join(notes))
    Console().print(table)


@app.command()
def inspect(run: RunDir, step: Step = None, as_json: Json = False) -> None:
    """What is in a checkpoint: arrays with shapes and types, and the run's position."""
    with _open(run) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None:
            raise InputError(f"run {run} has no checkpoint yet")
        opened = checkpoints.open(chosen)
    leaves = [{"item": name, "path": path, "shape": list(source.shape),
               "dtype": source.dtype.name}
              for name, sources in opened.items.items() for path, source in sources.items()]
    if as_json:
        print(dumps({"step": chosen, "metric": opened.info.metric, "base": opened.info.base,
                          "bytes": opened.size, "extra": opened.info.extra, "arrays": leaves}))
        return
    table = Table("item", "array", "shape", "type")
    for leaf in leaves:
        table.add_row(leaf["item"], leaf["path"], str(leaf["shape"]), leaf["dtype"])
    console = Console()
    console.print(table)
    base = "" if opened.info.base is None else f", changes step {opened.info.base}"
    console.print(f"step {chosen}, {opened.size / 2**20:.2f} MiB{base}, "
                  f"position {opened.info.extra.get('position')}", highlight=False)


@app.command()
def verify(run: RunDir, step: Step = None, as_json: Json = False) -> None:
    """Read every byte and hold it against its checksum; exit code 2 if something is damaged."""
    found: list[dict[str, Any]] = []
    with _open(run) as checkpoints:
        for one in checkpoints.steps() if step is None else [step]:
            try:
                found.append({"step": one, "bytes": checkpoints.verify(one), "problem": None})
            except InputError as error:
                found.append({"step": one, "bytes": None, "problem": str(error)})
    if as_json:
        print(dumps({"checkpoints": found}))
    for entry in found:
        if not as_json and entry["problem"] is None:
            _say(f"step {entry['step']}: {entry['bytes'] / 2**20:.2f} MiB as they were written")
    bad = [entry for entry in found if entry["problem"]]
    if bad:
        raise InputError("; ".join(entry["problem"] for entry in bad))


@app.command()
def compact(run: RunDir, step: Step = None, as_json: Json = False) -> None:
    """Make deltas full, so that they no longer need their bases; the newest one by default."""
    with _open(run, read_only=False) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None:
            raise InputError(f"run {run} has no checkpoint yet")
        was = checkpoints.info(chosen).base
        checkpoints.compact(chosen)
    if as_json:
        print(dumps({"step": chosen, "base_before": was}))
    else:
        _say(f"step {chosen} " + ("was full already" if was is None else "is full now"))


@app.command()
def prune(
    run: RunDir,
    keep: Annotated[int, typer.Option(min=1, help="Latest checkpoints that stay.")] = 1,
    every: Annotated[Optional[int], typer.Option(  # noqa: UP045
        min=1, help="Checkpoints whose step it divides stay too.")] = None,
    as_json: Json = False,
) -> None:
    """Remove checkpoints; the best one, and what a delta builds on, always stay."""
    with _open(run, read_only=False) as checkpoints:
        gone = checkpoints.prune(keep, every)
        stay = checkpoints.steps()
    if as_json:
        print(dumps({"removed": gone, "kept": stay}))
    else:
        _say(f"removed {gone or 'nothing'}, kept {stay}")


def _describe(run: str) -> list[dict[str, Any]]:
    """One entry a checkpoint, damaged ones with the problem."""
    problems: dict[int, str] = {}
    sizes: dict[int, int] = {}
    with _open(run) as checkpoints:
        infos = checkpoints.infos()
        best, latest, steps = checkpoints.best(), checkpoints.latest(), checkpoints.steps()
        for step in steps:
            try:
                sizes[step] = checkpoints.size(step)
            except InputError as error:
                problems[step] = str(error)
    return [{
        "step": step,
        "kind": ("damaged" if step not in infos else
                 "full" if infos[step].base is None else f"delta of {infos[step].base}"),
        "bytes": sizes.get(step, 0), "metric": infos[step].metric if step in infos else None,
        "best": step == best, "latest": step == latest, "problem": problems.get(step),
    } for step in steps]


def _open(run: str, *, read_only: bool = True) -> Any:
    from rec_jax.checkpoint import Checkpoints
    from rec_jax.run import Run

    folder = Run(Path(run))
    folder.config()  # refuses a folder that is no run
    if not folder.checkpoints.is_dir():
        raise InputError(f"run {run} has no checkpoint yet")
    return Checkpoints(folder.checkpoints, read_only=read_only, warn=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
