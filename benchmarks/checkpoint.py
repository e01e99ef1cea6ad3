"""Save and restore tables of 1, 2 and 4 GiB against raw writes and reads of the same bytes.

    python benchmarks/checkpoint.py [--gib 1 2 4] [--rounds 3] [--folder DIR]

For each size, in a process of its own with the memory settings of `rec-jax train`, in turn and
starting with another one each round, with nothing else to do: a raw write of the same bytes with
one flush at its end; a save while the training waits; a save of a frozen state, behind the
training; a save from a copy; a raw read, and a restore, both from a cold cache. Then beside a
training, of which a step runs over and over: the raw write, and the save of a frozen state. One
training touches few rows (a step reads 10,000 of them, 1 % of a table of 1 GiB, takes them forward
and back through as many products as two transformer blocks have, and adds to them), the other one
changes every row in every step.

Shares are medians over the rounds of (raw seconds / checkpoint seconds). The stall is the time
that `save` takes to return; what training lost is the seconds of a save less those that the steps
done in it take alone; both as shares of the save. Extra memory is the peak of the resident set
above what it was before, and of a frozen save the growth of the proportional set of this process
and its child together. Then a delta of 1 % of the rows of a table with row-wise Adam.

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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.checkpoint import Checkpoints, updated_rows
from rec_jax.checkpoint.layout import BLOCK_BYTES

ROOT = Path(__file__).resolve().parents[1]
DIM = 256
DELTA_ROWS, DELTA_DIM = 2_000_000, 64
TOUCHED = 10_000
"""Rows that a step of the sparse training touches."""
SAVES: dict[str, dict[str, Any]] = {
    "save_waited_for": {"copy_bytes": 0, "moving": float("inf")},
    "save_frozen": {"copy_bytes": 0, "moving": 0.0},
    "save_from_a_copy": {"copy_bytes": 2**60},
}


def timed(work: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and bytes that the resident set grew by at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = status("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - began, max(0, status("VmHWM") - before)


def proportional_set() -> int:
    """Bytes of this process and its children; what several share counts once."""
    names, total = ["self"], 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            names += (task / "children").read_text().split()
    for name in names:
        with suppress(OSError):
            lines = Path(f"/proc/{name}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


@contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Gives the peak growth of `proportional_set` so far, looked at five times a second."""
    before, peak, done = proportional_set(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, proportional_set() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        thread.join()


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


@partial(jax.jit, donate_argnums=0)
def touch_few(rows: jax.Array, number: Any) -> jax.Array:
    """A step of a sparse training: rows chosen by the step's number change."""
    ids = jax.random.randint(jax.random.key(number), (TOUCHED,), 0, len(rows))
    inner = jnp.full((DIM, 4 * DIM), 1e-3)

    def loss(found: jax.Array) -> jax.Array:
        for _ in range(3):  # 24 DIM^2 weights
            found = found + jax.nn.relu(found @ inner) @ inner.T
        return jnp.square(found).sum()

    return rows.at[ids].add(-1e-6 * jax.grad(loss)(rows[ids]))


@partial(jax.jit, donate_argnums=0)
def touch_all(rows: jax.Array, number: Any) -> jax.Array:
    """A step that changes every row."""
    return rows * (1 - 1e-6) + 1e-9 * number


class Training:
    """A step that runs over and over; the table is given to it and changed in place."""

    def __init__(self, step: Callable[[jax.Array, Any], jax.Array], rows: jax.Array) -> None:
        self.rows, self._step, self._number = rows, step, 0
        self.run(2)  # compiled, and its memory touched
        began = time.perf_counter()
        self.run(3)
        self.alone = (time.perf_counter() - began) / 3

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._number += 1
            self.rows = self._step(self.rows, np.int32(self._number)).block_until_ready()

    def beside(self, ended: Callable[[], bool]) -> int:
        """Steps that were done until it had ended."""
        before = self._number
        while not ended():
            self.run(1)
        return self._number - before


def beside_training(training: Training, folder: Path) -> dict[str, float]:
    """A raw write and a frozen save, while the training goes on."""
    table = np.array(training.rows)  # not a view, which would keep the step from its memory
    raw = folder / "raw"
    writer = threading.Thread(target=raw_write, args=(raw, table))
    began = time.perf_counter()
    writer.start()
    steps = training.beside(lambda: not writer.is_alive())
    raw_seconds = time.perf_counter() - began
    raw_lost = raw_seconds - steps * training.alone
    raw.unlink()
    table = np.array(training.rows)
    with Checkpoints(folder / "beside", **SAVES["save_frozen"]) as checkpoints, \
            watched_memory() as extra:
        began = time.perf_counter()
        checkpoints.save(1, {"model": {"rows": training.rows}}, {})
        stall = time.perf_counter() - began
        steps = training.beside(lambda: bool(checkpoints.steps()))
        checkpoints.wait()
        seconds = time.perf_counter() - began
        like = {"model": {"rows": jax.ShapeDtypeStruct(table.shape, table.dtype)}}
        peak = extra()
    with Checkpoints(folder / "beside", read_only=True) as checkpoints:
        restored = checkpoints.restore(1, like)["model"]["rows"]
        if not np.array_equal(np.asarray(restored), table):
            raise RuntimeError("what was saved is not what the table was when the save began")
    shutil.rmtree(folder / "beside")
    return {"seconds": round(seconds, 4), "raw_write_seconds": round(raw_seconds, 4),
            "stall_seconds": round(stall, 4), "extra_mib": round(peak / 2**20, 1),
            "steps": steps, "step_seconds_alone": round(training.alone, 4),
            "lost_seconds": round(seconds - steps * training.alone, 4),
            "lost_seconds_of_raw_write": round(raw_lost, 4)}


def save(rows: jax.Array, target: Path, how: dict[str, Any]) -> float:
    """Seconds that the call took to return, of a save that is complete."""
    with Checkpoints(target, **how) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(1, {"model": {"rows": rows}}, {})
        stall = time.perf_counter() - began
        checkpoints.wait()
    return stall


def measure(gib: float, rounds: int, folder: Path) -> dict[str, Any]:
    """All figures of one size, in this process."""
    count = int(gib * 2**30) // (4 * DIM)
    rows = make_rows(count, DIM)
    tries: dict[str, list[dict[str, float]]] = {}
    alone(rows, rounds, folder, tries)
    for name, step in (("beside_a_sparse_training", touch_few), ("beside_a_dense_one", touch_all)):
        training = Training(step, rows)
        for _ in range(rounds):
            tries.setdefault(name, []).append(beside_training(training, folder))
        rows = training.rows

    def share(raw_name: str, name: str) -> float:
        return middle(one["seconds"] / other["seconds"]
                      for one, other in zip(tries[raw_name], tries[name], strict=True))

    def worst(name: str) -> float:
        return max(one["extra_mib"] for one in tries[name])

    def part(name: str, key: str, of: str = "seconds") -> float:
        return middle(one[key] / one[of] for one in tries[name])

    return {
        "gib": gib,
        **{name: {"share_of_raw_write": share("raw_write", name),
                  "stall_share": part(name, "stall_seconds"),
                  "peak_extra_mib": worst(name)} for name in SAVES},
        "restore": {"share_of_raw_read": share("raw_read", "restore"),
                    "peak_extra_mib_above_table": worst("restore")},
        **{name: {"share_of_raw_write_beside_it": part(name, "raw_write_seconds"),
                  "stall_share": part(name, "stall_seconds"),
                  "lost_share": part(name, "lost_seconds"),
                  "lost_share_of_raw_write": part(name, "lost_seconds_of_raw_write",
                                                  "raw_write_seconds"),
                  "peak_extra_mib": worst(name)}
           for name in tries if name.startswith("beside")},
        "tries": tries,
    }


def middle(values: Iterator[float]) -> float:
    return round(statistics.median(values), 4)


def alone(rows: jax.Array, rounds: int, folder: Path,
          tries: dict[str, list[dict[str, float]]]) -> None:
    """Saves and a restore with nothing beside them, and what they are held against."""
    table = np.asarray(rows)  # where it lies
    like = {"model": {"rows": jax.ShapeDtypeStruct(rows.shape, rows.dtype)}}
    raw, saved = folder / "raw", folder / "save_frozen"

    def note(name: str, work: Callable[[], Any]) -> Any:
        found: list[Any] = []
        seconds, extra = timed(lambda: found.append(work()))
        tries.setdefault(name, []).append({
            "seconds": round(seconds, 4), "extra_mib": round(extra / 2**20, 1),
            "gib_per_second": round(table.nbytes / 2**30 / seconds, 4)})
        return found[0]

    def write_raw() -> None:
        note("raw_write", lambda: raw_write(raw, table))
        raw.unlink()

    def write(name: str) -> None:
        with watched_memory() as extra:
            stall = note(name, lambda: save(rows, folder / name, SAVES[name]))
        tries[name][-1]["stall_seconds"] = round(stall, 4)
        if name == "save_frozen":  # the resident set does not tell of a child
            tries[name][-1]["extra_mib"] = round(extra() / 2**20, 1)
        shutil.rmtree(folder / name)

    def read_raw() -> None:
        raw_write(raw, table)
        forget(raw)
        note("raw_read", lambda: raw_read(raw))
        raw.unlink()

    def restore() -> None:
        save(rows, saved, SAVES["save_frozen"])
        forget(saved)
        with Checkpoints(saved, read_only=True) as checkpoints:
            found = note("restore", lambda: checkpoints.restore(1, like)["model"]["rows"]
                         .block_until_ready())
        one = tries["restore"][-1]
        one["extra_mib"] = round(max(0.0, one["extra_mib"] - table.nbytes / 2**20), 1)
        if not np.array_equal(np.asarray(found[::997]), table[::997]):
            raise RuntimeError("the restored rows are not those that were saved")
        shutil.rmtree(saved)

    works = [write_raw, *(partial(write, name) for name in SAVES), read_raw, restore]
    for number in range(rounds):
        for work in works[number % len(works):] + works[:number % len(works)]:
            work()


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
            changed = jax.tree.map(lambda leaf, how=stored: updated_rows(leaf, ids, how), full)
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
    restart_with_tuned_malloc()  # as `rec-jax train` does
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
