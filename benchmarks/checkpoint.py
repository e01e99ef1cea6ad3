"""Save and restore tables of 1, 2 and 4 GiB against raw writes and reads of the same bytes.

    python benchmarks/checkpoint.py [--gib 1 2 4] [--rounds 3] [--folder DIR]

For each size, in a process of its own and in turn: a raw write of the same bytes with one flush
at its end; a save in blocks, during which the training waits (`copy_bytes` = 0); a save behind
the training, from a copy of the state; a raw read, and a restore, both from a cold cache. Shares
are medians over the rounds of (raw seconds / checkpoint seconds). The stall is the time that
`save` takes to return, as a share of the whole save. Extra memory is the peak of the resident
set above what it was before. Then a delta of 1 % of the rows of a table with row-wise Adam.

Results: benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.bench_record import record
from rec_jax.checkpoint import Checkpoints, touched_rows
from rec_jax.checkpoint.layout import BLOCK_BYTES

ROOT = Path(__file__).resolve().parents[1]
DIM = 256
DELTA_ROWS, DELTA_DIM = 2_000_000, 64


def timed(work: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and bytes that the resident set grew by at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = status("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - began, max(0, status("VmHWM") - before)


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def make_rows(rows: int, dim: int) -> jax.Array:
    @jax.jit
    def make() -> jax.Array:
        ids = jax.lax.broadcasted_iota(jnp.uint32, (rows, dim), 0)
        columns = jax.lax.broadcasted_iota(jnp.uint32, (rows, dim), 1)
        mixed = (ids * jnp.uint32(2654435761) ^ columns * jnp.uint32(2246822519))
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2146121005)
        return (mixed >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)

    return make().block_until_ready()


def raw_write(path: Path, table: np.ndarray) -> None:
    step = max(1, BLOCK_BYTES // table[:1].nbytes)
    with path.open("wb", buffering=0) as file:
        for first in range(0, len(table), step):
            file.write(table[first:first + step])
        os.fsync(file.fileno())


def raw_read(path: Path) -> None:
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def forget(folder: Path) -> None:
    """Drop files from the page cache."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def measure(gib: float, rounds: int, folder: Path) -> dict[str, Any]:
    """All figures of one size, in this process."""
    count = int(gib * 2**30) // (4 * DIM)
    rows = make_rows(count, DIM)
    table = np.asarray(rows)
    like = {"model": {"rows": jax.ShapeDtypeStruct(rows.shape, rows.dtype)}}
    tries: dict[str, list[dict[str, float]]] = {}

    def note(name: str, seconds: float, extra: int, stall: float = 0.0) -> None:
        tries.setdefault(name, []).append({
            "seconds": round(seconds, 4), "gib_per_second": round(gib / seconds, 4),
            "extra_mib": round(extra / 2**20, 1), "stall_seconds": round(stall, 4)})

    raw = folder / "raw"
    for _ in range(rounds):
        seconds, extra = timed(lambda: raw_write(raw, table))
        note("raw_write", seconds, extra)
        forget(raw)
        seconds, extra = timed(lambda: raw_read(raw))
        note("raw_read", seconds, extra)
        raw.unlink()
        for name, copy_bytes in (("save_in_blocks", 0), ("save_from_a_copy", 2**60)):
            target = folder / name
            stall = 0.0

            def save(target: Path = target, copy_bytes: int = copy_bytes) -> None:
                nonlocal stall
                with Checkpoints(target, copy_bytes=copy_bytes) as checkpoints:
                    began = time.perf_counter()
                    checkpoints.save(1, {"model": {"rows": rows}}, {})
                    stall = time.perf_counter() - began
                    checkpoints.wait()

            seconds, extra = timed(save)
            note(name, seconds, extra, stall)
            if name == "save_in_blocks":
                forget(target)
                kept: list[Any] = []

                def restore(target: Path = target, kept: list[Any] = kept) -> None:
                    with Checkpoints(target, read_only=True) as checkpoints:
                        kept.append(checkpoints.restore(1, like)["model"]["rows"])
                        kept[0].block_until_ready()

                seconds, extra = timed(restore)
                note("restore", seconds, max(0, extra - table.nbytes))
                if not np.array_equal(np.asarray(kept[0][::997]), table[::997]):
                    raise RuntimeError("the restored rows are not those that were saved")
                kept.clear()
            shutil.rmtree(target)

    def share(raw_name: str, name: str) -> float:
        return round(statistics.median(
            one["seconds"] / other["seconds"]
            for one, other in zip(tries[raw_name], tries[name], strict=True)), 3)

    def worst(name: str) -> float:
        return max(one["extra_mib"] for one in tries[name])

    def stall(name: str) -> float:
        return round(statistics.median(one["stall_seconds"] / one["seconds"]
                                       for one in tries[name]), 4)

    return {
        "gib": gib,
        "save_in_blocks": {"share_of_raw_write": share("raw_write", "save_in_blocks"),
                           "stall_share": stall("save_in_blocks"),
                           "peak_extra_mib": worst("save_in_blocks")},
        "save_from_a_copy": {"share_of_raw_write": share("raw_write", "save_from_a_copy"),
                             "stall_share": stall("save_from_a_copy"),
                             "peak_extra_mib": worst("save_from_a_copy")},
        "restore": {"share_of_raw_read": share("raw_read", "restore"),
                    "peak_extra_mib_above_table": worst("restore")},
        "tries": tries,
    }


def measure_delta(folder: Path) -> dict[str, Any]:
    """Bytes and seconds of a delta of 1 % of the rows, and the error of quantised ones."""
    rows = make_rows(DELTA_ROWS, DELTA_DIM) - 0.5
    state = {"steps": jnp.ones(DELTA_ROWS, jnp.int32), "mu": rows * 0.1,
             "nu": jnp.abs(rows[:, 0])}
    ids = np.sort(np.random.default_rng(0).choice(
        DELTA_ROWS, DELTA_ROWS // 100, replace=False)).astype(np.int64)
    full = {"model": {"rows": rows}, "training": {"rows": state}}
    found: dict[str, Any] = {"rows": DELTA_ROWS, "dim": DELTA_DIM, "touched": len(ids)}
    with Checkpoints(folder / "delta", keep=9) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(1, full, {})
        checkpoints.wait()
        found["full"] = {"bytes": checkpoints.size(1),
                         "seconds": round(time.perf_counter() - began, 3)}
        for step, stored in enumerate(("exact", "bfloat16", "int8"), start=2):
            began = time.perf_counter()
            changed = jax.tree.map(lambda leaf, how=stored: touched_rows(leaf, ids, how), full)
            checkpoints.save(step, changed, {}, base=1)
            checkpoints.wait()
            seconds = time.perf_counter() - began
            source = checkpoints.open(step).items["model"]["['rows']"]
            error = np.abs(source.read(0, DELTA_ROWS)[ids] - np.asarray(rows)[ids])
            size = np.abs(np.asarray(rows)[ids])
            found[stored] = {
                "bytes": checkpoints.size(step), "seconds": round(seconds, 3),
                "share_of_full": round(checkpoints.size(step) / found["full"]["bytes"], 5),
                "largest_error": float(error.max()),
                "root_mean_square_error_over_that_of_values": float(
                    np.sqrt(np.mean(error**2) / np.mean(size**2)))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write; the system's temporary folder")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/checkpoint.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a size, or "delta", in this process
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.one:
            result = (measure_delta(folder) if options.one == "delta"
                      else measure(float(options.one), options.rounds, folder))
            print(json.dumps(result))
            return
        results = []
        for one in [*map(str, options.gib), "delta"]:
            print(f"measuring {one}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, __file__, "--one", one, "--rounds", str(options.rounds),
                 *(["--folder", options.folder] if options.folder else [])],
                capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            results.append(json.loads(done.stdout))
            print(json.dumps({key: value for key, value in results[-1].items()
                              if key != "tries"}), file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    record(options.out, {"sizes": results[:-1], "delta": results[-1], "rounds": options.rounds,
                         "block_bytes": BLOCK_BYTES, "load_average_at_the_end": round(load, 2),
                         "peak_resident_kib_of_children": resource.getrusage(
                             resource.RUSAGE_CHILDREN).ru_maxrss})


if __name__ == "__main__":
    main()
