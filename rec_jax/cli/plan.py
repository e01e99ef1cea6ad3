"""`rec-jax plan`: what a step will need, before there is a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rec_jax.cli.show import console, print_json, print_table
from rec_jax.cli.types import Json, Set, Trust
from rec_jax.errors import InputError


def plan(
    config: Annotated[str, typer.Argument(
        metavar="CONFIG", help="TOML file, or a name of `rec-jax config list`.")],
    items: Annotated[float, typer.Option(help="Size of the catalogue, such as 1e9.")],
    devices: Annotated[str, typer.Option(help="v5p:4x4x4, h100x8, cpu, ...")] = "cpu",
    dim: Annotated[int | None, typer.Option(help="Width of a row.")] = None,
    settings: Set = None,
    compile: Annotated[bool, typer.Option(
        "--compile", help="Compile the step for a TPU slice; show XLA's own figures.")] = False,
    host_link: Annotated[float | None, typer.Option(
        help="GB a second between host and device, each way.")] = None,
    disk_read: Annotated[float | None, typer.Option(
        help="GB a second that the disk reads, for a table that lies there.")] = None,
    disk_write: Annotated[float | None, typer.Option(help="GB a second that it writes.")] = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what a step will need. Bytes, operations, traffic and time, before there is a machine."""
    from rec_jax import api

    if not 1 <= items < float("inf"):
        raise InputError(f"--items is {items:g}; expected at least 1")
    lines = [*(settings or ()), *([] if dim is None else [f"table.dim={dim}"])]
    result = api.plan(config, items=items, devices=devices, overrides=lines, compiled=compile,
                      trust_code=trust_code, ways={
                          name: value * 1e9 for name, value in (
                              ("host_link", host_link), ("disk_read", disk_read),
                              ("disk_write", disk_write)) if value is not None})
    if as_json:
        print_json(result)
    else:
        _show_plan(result)


def _show_plan(result: Mapping[str, Any]) -> None:
    data, items = result["mesh"]
    shown = console()
    shown.print(f"{result['rows']:,} rows on {result['devices']}, mesh {data} x {items}, table "
                f"{result['mode']}: {result['reason']}")
    for name, one in result["placements"].items():
        if one["where"] != "device":
            shown.print(f"rows of table {name!r}: {one['line']}")
    if result["passing"]:
        by = result["passing"]
        bound = by["positions"] >= by["bound_from"]
        shown.print(f"a step reads {by['read'] / 2**30:.3g} GiB of rows and state and writes "
                    f"{by['written'] / 2**30:.3g} GiB, which takes {by['seconds']:.3g} s; from "
                    f"{by['bound_from']:,} positions on, computing takes longer, and a step has "
                    f"{by['positions']:,}: it is bound by {'computing' if bound else 'the way'}")
    rows = [(name, f"{size / 2**30:.3f}") for name, size in result["memory_bytes"].items()]
    rows.append(("in all", f"{result['needed_bytes'] / 2**30:.3f} of "
                           f"{result['available_bytes'] / 2**30:.1f}"))
    rows += [(f"the host, at most: {name}", f"{size / 2**30:.3f}")
             for name, size in result["host_memory_bytes"].items()]
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
