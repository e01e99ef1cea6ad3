"""The training step over the size of a table, where its rows lie, its cache and its loss.

Every combination is set up once, with a table of its own, and all take some steps in turn, round
after round, so that what the machine does meanwhile falls on all of them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rec_jax.errors import InputError
from rec_jax.train.timed import FULL, PLACEMENTS, Cell, Shapes, TimedTable, disk_rates

log = logging.getLogger("rec_jax.bench")


def cells(items: Sequence[float], placements: Sequence[str], caches: Sequence[float],
          negatives: Sequence[int]) -> list[Cell]:
    """All combinations, each once. Raises InputError for what cannot be one."""
    for name, values in (("items", items), ("placement", placements), ("negatives", negatives)):
        if not values:
            raise InputError(f"{name} is empty; expected one or more")
    for place in placements:
        if place not in PLACEMENTS:
            raise InputError(f"placement {place!r} is unknown; expected one of "
                             f"{', '.join(PLACEMENTS)}")
    if min(items) < 2 or max(items) > 2e9:
        raise InputError(f"items are {min(items):g} to {max(items):g}; expected 2 to 2e9")
    if min(negatives) < 0 or any(not 0 < cache <= 1 for cache in caches):
        raise InputError("expected negatives from 0 (the full softmax) on, and caches above 0 and "
                         "at most 1")
    found = []
    for where, size, count in itertools.product(placements, items, negatives):
        shares: Sequence[float | None] = (
            [None] if where == "device" or count == FULL or not caches else caches)
        found += [Cell(where, int(size), count, share) for share in shares]
    return found


def run(chosen: Sequence[Cell], shapes: Shapes, *, steps: int, rounds: int,
        folder: Path) -> dict[str, Any]:
    """Measure all combinations in turn; see `Shapes`.

    Returns shapes, rates of the disk where rows lie on it, and of each combination the median step
    and those of its fastest and slowest round, with its share of the one on the device.
    """
    runners: list[TimedTable] = []
    try:
        for cell in chosen:
            runners.append(TimedTable(cell, shapes, folder))
            runners[-1].run(shapes.warm, counted=False)
            log.info("%s, %s items: ready", cell.name, f"{cell.items:,}")
        for number in range(rounds):
            for runner in runners:
                runner.run(steps)
                log.info("round %d: %s, %s items: %.1f ms", number + 1, runner.cell.name,
                         f"{runner.cell.items:,}", 1e3 * median(runner.seconds[-steps:]))
    finally:
        for runner in runners:
            runner.close()
    found = [_figures(runner, steps) for runner in runners]
    beside = {(one["loss"], one["items"]): one["median_step_seconds"] for one in found
              if one["where"] == "device"}
    for one in found:
        device = beside.get((one["loss"], one["items"]))
        one["times_the_device"] = None if device is None else one["median_step_seconds"] / device
    rates = disk_rates(folder) if any(cell.where == "disk" for cell in chosen) else None
    return {"shapes": asdict(shapes), "steps": steps, "rounds": rounds,
            "bytes_per_second": rates, "cells": found}


def _figures(runner: TimedTable, steps: int) -> dict[str, Any]:
    cell, seconds = runner.cell, runner.seconds
    by_round = [median(seconds[at:at + steps]) for at in range(0, len(seconds), steps)]
    return {"where": cell.where, "items": cell.items, "loss": cell.loss, "cache": cell.cache,
            "name": cell.name, "median_step_seconds": median(seconds),
            "fastest_round_seconds": min(by_round), "slowest_round_seconds": max(by_round)}


def markdown(result: dict[str, Any]) -> str:
    """The table of a result of `run`."""
    lines = ["| loss | rows lie on the | cache | items | ms a step | rounds | times the device |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for one in sorted(result["cells"], key=lambda one: (one["loss"], one["items"], one["where"])):
        times = one["times_the_device"]
        lines.append(
            f"| {one['loss']} | {one['where']} | "
            f"{'' if one['cache'] is None else format(one['cache'], 'g')} | {one['items']:,} | "
            f"{1e3 * one['median_step_seconds']:.1f} | "
            f"{1e3 * one['fastest_round_seconds']:.1f} to {1e3 * one['slowest_round_seconds']:.1f}"
            f" | {'' if times is None else format(times, '.2f')} |")
    shapes = result["shapes"]
    return "\n".join([*lines, "", f"{shapes['positions']:,} positions, d = {shapes['dim']}, rows "
                      f"in {shapes['dtype']}, {shapes['optimizer']}.", ""])


def plot(result: dict[str, Any], path: Path) -> Path:
    """Step time over the size of the table, a line for each loss, placement and cache."""
    from matplotlib.figure import Figure

    from rec_jax.files import atomic_writer

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(one["name"] for one in result["cells"]):
        line = sorted((one["items"], 1e3 * one["median_step_seconds"])
                      for one in result["cells"] if one["name"] == name)
        axes.loglog(*zip(*line, strict=True), marker="o", markersize=3, label=name)
    axes.set_xlabel("items")
    axes.set_ylabel("ms a step")
    axes.legend(frameon=False, fontsize="small")
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
