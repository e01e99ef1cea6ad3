"""`rec-jax checkpoint`: list, inspect, verify, compact and prune the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import as_is, number, print_json, print_table, say
from rec_jax.cli.types import Json, RunDir
from rec_jax.errors import InputError

app = App(no_args_is_help=True, help="Look after the checkpoints of a run.")

WhichStep = Annotated[int | None, typer.Option(help="Which one; all by default.")]


@app.command("list")
def list_all(run: RunDir, as_json: Json = False) -> None:
    """Steps, sizes, metrics, what each builds on, and what else lies beside them."""
    rows, others = _describe(run)
    if as_json:
        print_json({"checkpoints": rows, "leftovers": others})
        return
    lines = []
    for row in rows:
        metric = "" if row["metric"] is None else f"{row['metric']:.5f}"
        notes = [name for name in ("best", "latest") if row[name]]
        if row["problem"]:
            notes.append(row["problem"])
        lines.append((row["step"], row["kind"], number(row["bytes"] / 2**20, 2), metric,
                      ", ".join(notes)))
    print_table(["step", "kind", "MiB", "metric", ""], lines, numbers=("step", "MiB", "metric"))
    for other in others:
        print(as_is(f"{other['name']}: {number(other['bytes'] / 2**20, 2)} MiB, "
                    f"{other['about']}"))


@app.command()
def inspect(run: RunDir, step: WhichStep = None, as_json: Json = False) -> None:
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
        print_json({"step": chosen, "metric": opened.info.metric, "base": opened.info.base,
                          "bytes": opened.size, "extra": opened.info.extra, "arrays": leaves})
        return
    print_table(["item", "array", "shape", "type"], [tuple(leaf.values()) for leaf in leaves])
    base = "" if opened.info.base is None else f", changes step {opened.info.base}"
    position = opened.info.extra.get("position") or {}
    best = "" if position.get("best") is None else (
        f", best so far {number(position['best'], 5)} after step {position['best_step']:,}")
    print(f"step {chosen:,}, {number(opened.size / 2**20, 2)} MiB{base}{best}")


@app.command()
def verify(run: RunDir, step: WhichStep = None, as_json: Json = False) -> None:
    """Read every byte and hold it against its checksum; exit code 2 if something is damaged."""
    from rec_jax.checkpoint import Missing

    found: list[dict[str, Any]] = []
    with _open(run) as checkpoints:
        for one in checkpoints.steps() if step is None else [step]:
            try:
                found.append({"step": one, "bytes": checkpoints.verify(one), "problem": None})
            except Missing:
                if step is not None:  # otherwise a training removed it meanwhile
                    raise
            except InputError as error:
                found.append({"step": one, "bytes": None, "problem": str(error)})
    if as_json:
        print_json({"checkpoints": found})
    for entry in found:
        if not as_json and entry["problem"] is None:
            say(f"step {entry['step']}: {entry['bytes'] / 2**20:.2f} MiB as they were written")
    bad = [entry for entry in found if entry["problem"]]
    if bad:
        raise InputError("; ".join(entry["problem"] for entry in bad))


@app.command()
def compact(run: RunDir, step: WhichStep = None, as_json: Json = False) -> None:
    """Make deltas full, so that they no longer need their bases; the newest one by default."""
    with _open(run, writes=True) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None:
            raise InputError(f"run {run} has no checkpoint yet")
        was = checkpoints.info(chosen).base
        checkpoints.compact(chosen)
    if as_json:
        print_json({"step": chosen, "base_before": was})
    else:
        say(f"step {chosen} " + ("was full already" if was is None else "is full now"))


@app.command()
def prune(
    run: RunDir,
    keep: Annotated[int, typer.Option(min=1, help="Latest checkpoints that stay.")] = 1,
    every: Annotated[int | None, typer.Option(
        min=1, help="Checkpoints whose step it divides stay too.")] = None,
    damaged: Annotated[bool, typer.Option(
        "--damaged", help="Remove what was set aside as damaged, too.")] = False,
    as_json: Json = False,
) -> None:
    """Remove checkpoints and what killed processes left; the best one, what a delta builds on,
    and what is read just now, always stay. A training may go on meanwhile."""
    with _open(run, writes=True) as checkpoints:
        cleared = _clear_killed(run, checkpoints)
        if damaged:
            cleared += checkpoints.clear(damaged=True)
        gone = checkpoints.prune(keep, every)
        stay = checkpoints.steps()
    if as_json:
        print_json({"removed": gone, "kept": stay, "cleared": cleared})
    else:
        say(f"removed {gone or 'nothing'}, kept {stay}")
        for name in cleared:
            say(f"removed {name}")


def _clear_killed(run: str, checkpoints: Any) -> list[str]:
    """Take away what was left, unless a training saves here, whose it may be."""
    from rec_jax import locks

    try:
        with locks.locked(run):
            found: list[str] = checkpoints.clear()
            return found
    except InputError:
        return []


def _describe(run: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One entry a checkpoint, damaged ones with the problem; and one for all else."""
    from rec_jax.checkpoint import Missing, best_step

    problems: dict[int, str] = {}
    sizes: dict[int, int] = {}
    with _open(run) as checkpoints:
        infos = checkpoints.infos()
        steps = []
        for step in sorted({*checkpoints.steps(), *infos}):
            try:
                sizes[step] = checkpoints.size(step)
            except Missing:
                continue  # removed meanwhile
            except InputError as error:
                problems[step] = str(error)
            steps.append(step)
        others = [{"name": one.path.name, "kind": one.kind, "bytes": one.size,
                   "about": _about(one.kind, run, one.path)} for one in checkpoints.leftovers()]
    best = best_step(info for step, info in infos.items() if step in steps)
    return [{
        "step": step,
        "kind": ("damaged" if step not in infos else
                 "full" if infos[step].base is None else f"delta of {infos[step].base}"),
        "bytes": sizes.get(step, 0), "metric": infos[step].metric if step in infos else None,
        "best": step == best, "latest": step == steps[-1], "problem": problems.get(step),
    } for step in steps], others


def _about(kind: str, run: str, path: Path) -> str:
    """What a folder beside the checkpoints is, and how it goes."""
    from rec_jax import locks

    if kind == "damaged":
        return "set aside as damaged; `prune --damaged` removes it"
    if (kind == "save" and locks.is_locked(run)) or (
            kind == "compaction" and locks.is_locked(path)):
        return f"a {kind} that is under way"
    what = "a removal" if kind == "removed" else f"a {kind}"
    return f"left by {what} that was killed; `prune` clears it away"


def _open(run: str, *, writes: bool = False) -> Any:
    from rec_jax.checkpoint import Checkpoints
    from rec_jax.run import Run

    folder = Run(Path(run))
    folder.check_begun()  # its config is not read: nothing here depends on it
    if not folder.checkpoints.is_dir():
        raise InputError(f"run {run} has no checkpoint yet")
    # A training may be at work in the same folder.
    return Checkpoints(folder.checkpoints, read_only=not writes, alone=False, warn=say)
