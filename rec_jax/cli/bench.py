"""`rec-jax bench`: how fast the kernels, a config, and other programs are on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import console, print_json, say
from rec_jax.cli.types import DatasetDir, Json, Set, Trust
from rec_jax.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

app = App(no_args_is_help=True, help="Measure speed on this machine.")

Out = Annotated[str | None, typer.Option(help="JSON file to write.")]


@app.command()
def softmax(
    queries: Annotated[int, typer.Option(help="Positions, N.")] = 2048,
    items: Annotated[int, typer.Option(help="Catalogue, V.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Width, d.")] = 64,
    rounds: Annotated[int, typer.Option(help="Runs of each contender.")] = 5,
    torch_python: Annotated[str | None, typer.Option(
        help="Interpreter that has torch, to run it as well.")] = None,
    out: Annotated[str, typer.Option(help="JSON file to write.")] = "softmax.json",
    as_json: Json = False,
) -> None:
    """Loss, gradients and ranks against materialised scores, in turn."""
    from rec_jax.bench import softmax as bench_softmax

    for name, value in (("queries", queries), ("items", items), ("dim", dim),
                        ("rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    result = bench_softmax.run(
        queries=(queries,), items=(items,), dims=(dim,), rounds=rounds,
        rank=(bench_softmax.Cell(min(queries, 512), items, dim),), torch_python=torch_python)
    _finish(result, bench_softmax.tables(result), out, as_json)


@app.command()
def train(
    config: Annotated[str, typer.Argument(
        metavar="CONFIG", help="TOML file, or a name of `rec-jax config list`.")],
    settings: Set = None,
    vary: Annotated[list[str] | None, typer.Option(
        help="key=value,value,...: measure each; may be repeated, for all combinations.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of a variant in a round.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds over all variants.")] = 5,
    out: Out = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Positions, targets and users a second of a config, and its share of the machine's peak."""
    from rec_jax.bench import train as bench_train

    result = bench_train.run(config, overrides=settings or (), variations=vary or (),
                             steps=steps, rounds=rounds, trust_code=trust_code)
    _finish(result, [bench_train.table(result)], out, as_json)


@app.command()
def peers(
    dataset: DatasetDir,
    peers: Annotated[str | None, typer.Option(
        help="Names separated by commas; all that are set up by default.")] = None,
    threads: Annotated[int, typer.Option(help="Cores of each program.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds over all programs.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of a program in a round.")] = 10,
    quality: Annotated[float | None, typer.Option(
        metavar="SECONDS", help="Also train each for so long, and rank along the way.")] = None,
    goal: Annotated[float | None, typer.Option(
        metavar="NDCG", help="With --quality: only until NDCG@10 is that high.")] = None,
    ours: Annotated[str | None, typer.Option(
        help="Some of this program's own variants, separated by commas.")] = None,
    settings: Set = None,
    folder: Annotated[str, typer.Option(
        help="Runners and environments, see its setup.py.")] = "benchmarks/peers",
    out: Annotated[str, typer.Option(
        help="JSON file to write; a table (.md) and a plot (.png) go beside it.")] = "peers.json",
    as_json: Json = False,
) -> None:
    """Other programs beside this one: same data, shapes, loss and threads, in turn."""
    import logging

    from rec_jax import config
    from rec_jax.bench import (
        peers as bench_peers,
    )
    from rec_jax.bench import (
        peers_report as bench_peers_report,
    )
    from rec_jax.bench import (
        record as bench_record,
    )

    if not as_json:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bench_record.json_path(out)
    shapes = config.build(bench_peers.Shapes,
                          config.override({"threads": threads}, settings or ()))
    result = bench_peers.run(
        dataset, folder=folder, peers=_names(peers), ours=_names(ours) or tuple(bench_peers.OURS),
        shapes=shapes, steps=steps, rounds=rounds, quality=quality, goal=goal)
    _keep(out, result, bench_peers_report, as_json)


@app.command()
def table(
    items: Annotated[list[float] | None, typer.Option(help="Sizes of the table.")] = None,
    placement: Annotated[list[str] | None, typer.Option(
        help="device, host or disk; may be repeated.")] = None,
    cache: Annotated[list[float] | None, typer.Option(
        help="Shares of the rows that the device holds.")] = None,
    negatives: Annotated[list[int] | None, typer.Option(
        help="Negatives of a step; 0: the full softmax.")] = None,
    settings: Set = None,
    steps: Annotated[int, typer.Option(help="Steps of a combination in a round.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds over all combinations.")] = 5,
    folder: Annotated[str, typer.Option(help="For rows on a disk.")] = ".",
    out: Annotated[str, typer.Option(
        help="JSON file to write; a table (.md) and a plot (.png) go beside it.")] = "table.json",
    as_json: Json = False,
) -> None:
    """The step over a table's size, placement, cache and negatives, in turn."""
    import logging
    from pathlib import Path

    from rec_jax import config
    from rec_jax.bench import record as bench_record
    from rec_jax.bench import table as bench_table

    for name, value in (("steps", steps), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if not as_json:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bench_record.json_path(out)
    shapes = config.build(bench_table.Shapes, config.override({}, settings or ()))
    cells = bench_table.cells(items or [1e5, 1e6], placement or bench_table.PLACEMENTS,
                              cache or [0.1], negatives or [0, 1024])
    result = bench_table.run(cells, shapes, steps=steps, rounds=rounds, folder=Path(folder))
    _keep(out, result, bench_table, as_json)


def _keep(out: str, result: dict[str, Any], report: Any, as_json: bool) -> None:
    """The record, and beside it the table and the plot that the module `report` makes of it."""
    from rec_jax.bench import record as bench_record
    from rec_jax.files import write_atomic

    path = bench_record.record(out, result)
    text = report.markdown(result)
    write_atomic(path.with_suffix(".md"), text)
    report.plot(result, path.with_suffix(".png"))
    if as_json:
        print_json({"out": str(path), **result})
    else:
        print(text)


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",")]


def _finish(result: dict[str, Any], tables: list[Table], out: str | None, as_json: bool) -> None:
    from rec_jax.bench import record as bench_record

    written = {} if out is None else {"out": str(bench_record.record(out, result))}
    if as_json:
        print_json({**written, **result})
        return
    for table in tables:
        console(stderr=True).print(table)
    if written:
        say(f"written to {written['out']}")
