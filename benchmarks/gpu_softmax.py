"""Exact softmax loss on a Hopper GPU: is it right, how fast, and how far from the roofline.

    python benchmarks/gpu_softmax.py [--quick | --tune | --dry-run] [--dims 64,128] [--out FILE]

A slot on a GPU is short, and a kernel that hangs takes its process with it. So each stage runs in
a child process with a limit (`gpu_stage.py`), the file is written after each, and what answers
most comes first: the Hopper kernels against float64 (`gpu_checks.py`), at d = 64 before the other
widths; the same at scale; the ceilings of the card and the times of d = 64 (`gpu_times.py`); then
the other widths and sizes, the other backends, and torch last. --tune sweeps tile sizes instead;
--dry-run does all of it at toy size on any device. A table comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from gpu_stage import MARK

from rec_jax.bench.record import record

STAGE = Path(__file__).with_name("gpu_stage.py")
LEAST = 15.0
"""Seconds: no stage starts with less time left."""
GRACE = 5.0
"""Seconds that a killed process may take to end; a GPU that hangs may hold it for longer."""


class Stage(NamedTuple):
    """kind: as `gpu_stage.STAGES`; label: what the results' keys begin with."""

    kind: str
    label: str
    given: dict[str, Any]


def run(stage: Stage, limit: float) -> tuple[dict[str, Any], str | None]:
    """(findings of a stage by key, what went wrong or None), after at most `limit` seconds."""
    child = subprocess.Popen(
        [sys.executable, str(STAGE), stage.kind, json.dumps(stage.given)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None and child.stderr is not None
    found: dict[str, Any] = {}
    errors: list[str] = []

    def read_findings() -> None:
        for line in child.stdout:
            if line.startswith(MARK):
                entry = json.loads(line.removeprefix(MARK))
                found[entry["key"]] = entry["value"]

    readers = [threading.Thread(target=work, daemon=True)
               for work in (read_findings, lambda: errors.extend(child.stderr))]
    for reader in readers:
        reader.start()
    problem = None
    try:
        code = child.wait(limit)
        if code:
            last = [line.strip() for line in errors if line.strip()]
            problem = f"exit code {code}: {last[-1][:200] if last else 'no output'}"
    except subprocess.TimeoutExpired:
        problem = f"killed after {limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            problem += ", and its process did not end"
    for reader, pipe in zip(readers, (child.stdout, child.stderr), strict=True):
        reader.join(1.0)
        if not reader.is_alive():
            pipe.close()
    return dict(found), problem


def checks(dims: list[int], seed: int, toy: bool) -> list[Stage]:
    """The oracle and the comparison at scale of the kernels in question, d = 64 first."""
    names = ["xla"] if toy else ["mosaic_gpu"]
    shape = [64, 520] if toy else [1024, 200_008]
    stages = []
    for name in names:
        stages += [Stage("oracle", f"{name}|d={d}", {"name": name, "d": d, "seed": seed})
                   for d in dims]
        stages += [Stage("scale", f"{name}|d={d}", {"name": name, "shape": [*shape, d]})
                   for d in dims]
    # d = 64 whole, before the rest: its oracle, then its scale.
    return sorted(stages, key=lambda stage: stage.label != f"{names[0]}|d={dims[0]}")


def times(dims: list[int], quick: bool, toy: bool, memory: float) -> list[Stage]:
    sizes = [(64, 512)] if toy else [(8192, 1_000_000)] if quick else [
        (8192, 1_000_000), (1024, 1_000_000), (8192, 100_000), (1024, 100_000)]
    backends = ["xla"] if toy else ["mosaic_gpu", "xla"]
    stages = [Stage("ceilings", "", {"toy": toy})]
    for number, (n, v) in enumerate(sizes):
        for d in dims:
            names = [*backends, "chunked", *(["cudnn"] if number == 0 and not toy else []),
                     *(["dense"] if 16 * n * v < memory else [])]
            for name in names:
                ops = ["loss"] if name == "cudnn" else ["loss", "grad"]
                ops += ["step"] * (name in backends)
                stages.append(Stage("time", f"{name}|N={n:,} V={v:,} d={d}",
                                    {"name": name, "shape": [n, v, d], "ops": ops}))
        if number == 0 and memory > 75e9:
            stages.append(Stage("time", "mosaic_gpu|N=1,024 V=1,000,000,000 d=32", {
                "name": "mosaic_gpu", "shape": [1024, 10**9, 32], "ops": ["loss", "step"]}))
    return stages


def others(dims: list[int], seed: int) -> list[Stage]:
    """What answers least: the oracle of the other backends, and torch."""
    stages = [Stage("time", f"{name}|N=8,192 V=1,000,000 d={d}",
                    {"name": name, "shape": [8192, 1_000_000, d], "ops": ["loss", "grad"],
                     "torch": True})
              for d in dims for name in ("cce", "torch compiled", "torch")]
    return stages + [Stage("oracle", f"{name}|d={dims[0]}",
                           {"name": name, "d": dims[0], "seed": seed})
                     for name in ("xla", "reference")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/gpu_softmax.json")
    parser.add_argument("--dims", default="64,32,128,256", help="widths, with commas")
    parser.add_argument("--seconds", type=float, default=540, help="end all stages after this")
    parser.add_argument("--limit", type=float, default=60, help="seconds of a stage")
    parser.add_argument("--quick", action="store_true", help="one size for each width")
    parser.add_argument("--tune", action="store_true", help="sweep tile sizes")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, any device")
    given = parser.parse_args()
    end, toy = time.monotonic() + given.seconds, given.dry_run
    seed = int.from_bytes(os.urandom(4), "little")
    dims = [32] if toy else [int(d) for d in given.dims.split(",")]
    results: dict[str, Any] = {"dry_run": toy, "seed": seed, "stages": {}}

    def do(stages: list[Stage]) -> None:
        for stage in stages:
            name = f"{stage.kind}|{stage.label}"
            if (left := end - time.monotonic()) < LEAST:
                results["stages"][name] = "no time left"
                continue
            began = time.monotonic()
            found, problem = run(stage, min(given.limit, left))
            results.setdefault(stage.kind, {}).update(
                {"|".join(filter(None, (stage.label, key))): value
                 for key, value in found.items()})
            results["stages"][name] = problem or round(time.monotonic() - began, 1)
            print(name, found, problem or "", file=sys.stderr, flush=True)
            # What is measured stays, whatever happens later.
            record(given.out, results, machine=machine(results))

    do([Stage("device", "", {})])
    about = results["device"].get("", {})
    if not toy and about.get("platform") != "gpu":
        raise SystemExit(f"gpu_softmax needs a GPU, and found {about or 'none'}; "
                         "--dry-run works anywhere")
    if given.tune:
        do([Stage("tune", f"N=8,192 V=1,000,000 d={d}", {"shape": [8192, 1_000_000, d]})
            for d in dims])
        return
    do(checks(dims, seed, toy))
    do(times(dims, given.quick, toy, about.get("memory", 16e9)))
    if not toy:
        do(others(dims, seed))
    show(results)


def machine(results: dict[str, Any]) -> dict[str, Any]:
    about = results.get("device", {}).get("", {})
    return dict(about.get("machine", {}))


def show(results: dict[str, Any]) -> None:
    """The short table, last of all: milliseconds, and the share of the roofline if known."""
    from gpu_times import Ceilings, Shape, floor

    known = results.get("ceilings", {}).get("", {})
    top = Ceilings(**known) if "flops" in known else None
    if top:
        print(f"ceilings: {top.flops / 1e12:.0f} TFLOP/s, {top.copied / 1e12:.2f} TB/s, "
              f"{top.exps / 1e12:.2f} T exponentials/s")
    cells = {tuple(key.split("|")): value for key, value in results.get("time", {}).items()}
    columns = list(dict.fromkeys(name for name, *_ in cells))
    print("milliseconds (share of the roofline)".ljust(40) + "".join(c.rjust(16) for c in columns))
    for shape, op in dict.fromkeys((shape, op) for _, shape, op in cells):
        sides = Shape(*(int(part.split("=")[1].replace(",", "")) for part in shape.split()))
        row = f"{shape} {op}".ljust(40)
        for column in columns:
            spent = cells.get((column, shape, op))
            text = "-" if spent is None else "failed"
            if isinstance(spent, float):
                text = f"{1e3 * spent:.2f}"
                if top and not results["dry_run"]:
                    text += f" ({floor(op, sides, top) / spent:.0%})"
            row += text.rjust(16)
        print(row)


if __name__ == "__main__":
    main()
