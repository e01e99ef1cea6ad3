"""Ids that come and go for some days: all are told apart, rows are bounded, look-ups are fast.

    python benchmarks/dynamic_ids.py --out benchmarks/results/dynamic_ids.json
    python benchmarks/dynamic_ids.py --ids 1e8 --days 30 --out benchmarks/results/dynamic_ids.json

Every day all ids that are alive are seen once, in an order of that day; a share of them is new, and
as many of the oldest never come again. At the day's end those that were not seen today lose their
rows. Then each id that should have a row is asked for: no other id may have it, and the row must
say whose it is; those that went must have none.

The days run twice from the start, and a third time from what the first run saved at the end of a
day. A digest of all rows, ids, counts and times must be the same. In the first run, at the end of
each day, look-ups of ids that are there, in random order, take turns with reads of random 64 bytes
of the same table: both are native, on one core, with the next ones fetched ahead, and are timed by
what the thread took of the processor. A table that fits the caches says little of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from rec_jax.bench.record import json_path, record
from rec_jax.kernels.native import id_map
from rec_jax.tier.dynamic_ids import DynamicIds, DynamicIdsConfig
from rec_jax.tier.id_map import NativeMap

PART = 2**20
"""Ids of a batch."""
_U = np.uint64


def id_of(numbers: np.ndarray, seed: int) -> np.ndarray:
    """int64 `[n]`: the n-th id there ever is, by a bijection of 64 bits."""
    x = numbers.astype(_U) + _U(seed)
    x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
    return (x ^ (x >> _U(31))).view(np.int64)


class Days:
    """alive: ids a day; new: how many of these are new on every day but the first."""

    def __init__(self, total: float, days: int, share: float, seed: int) -> None:
        self.alive = int(total / (1 + (days - 1) * share))
        self.new, self.days, self.seed = int(self.alive * share), days, seed

    def first(self, day: int) -> int:
        """The number of the oldest id that is alive on `day`; the others follow it."""
        return day * self.new

    def parts(self, day: int, shuffled: bool = True) -> Any:
        """The ids of a day in batches, each id once."""
        size = -(-self.alive // PART)
        random = np.random.default_rng((self.seed, day))
        for part in random.permutation(size) if shuffled else range(size):
            numbers = np.arange(part, self.alive, size)  # every size-th: old and new in a batch
            if shuffled:
                random.shuffle(numbers)
            yield id_of(self.first(day) + numbers, self.seed)


def run(days: Days, ids: DynamicIds, first: int, *, measure: bool = False,
        save: tuple[int, Path] | None = None, rounds: int = 0) -> tuple[str, list[dict[str, Any]]]:
    """The digest after the last day, and what was found on each day from `first` on."""
    found = []
    for day in range(first, days.days):
        began = time.perf_counter()
        for batch in days.parts(day):
            ids.observe(batch, np.full(len(batch), 2 * day))
        observed = time.perf_counter()
        gone = len(ids.barrier().ids)
        ended = time.perf_counter()
        line: dict[str, Any] = {
            "day": day, "live": len(ids.live), "gone": gone,
            "seconds_observe": observed - began, "seconds_barrier": ended - observed}
        if measure:
            line |= checked(days, ids, day) | look_ups(ids, rounds, day)
            line["map_bytes_per_id"] = ids.live.map.nbytes / len(ids.live)
            line["all_bytes_per_id"] = ids.nbytes / len(ids.live)
        found.append(line)
        if save is not None and day == save[0]:
            ids.save(save[1])
    return digest(ids), found


def digest(ids: DynamicIds) -> str:
    found = hashlib.sha256(str(ids.now).encode())
    for name, array in ids.live.arrays().items():
        found.update(name.encode() + array.data)
    found.update(ids.tombstones().data)
    return found.hexdigest()


def checked(days: Days, ids: DynamicIds, day: int) -> dict[str, int]:
    """Collisions: ids without a row of their own; and ids that went and have a row."""
    taken = np.zeros(ids.live.end, bool)
    wrong = 0
    for batch in days.parts(day, shuffled=False):
        rows = ids.find(batch)
        wrong += int((rows == 0).sum() + (ids.live.ids[rows] != batch).sum() + taken[rows].sum())
        taken[rows] = True
    went = id_of(np.arange(days.first(day)), days.seed)
    return {"collisions": wrong + int(len(ids.live) - taken.sum()),
            "gone_and_found": int((ids.find(went) > 0).sum())}


def look_ups(ids: DynamicIds, rounds: int, day: int) -> dict[str, float]:
    """Nanoseconds a look-up and a read, medians of rounds that take turns; and their quotient in
    the median round."""
    table = ids.live.map
    if not rounds or not isinstance(table, NativeMap):
        return {}
    random = np.random.default_rng(day)
    live, finds, reads = ids.live.live(), [], []
    for _ in range(rounds):
        asked = ids.live.ids[random.choice(live, PART)]
        places = random.integers(0, len(table.table), PART)
        for times, call, argument in ((finds, id_map.find, asked),
                                      (reads, id_map.read_lines, places)):
            began = time.thread_time()
            call(table.table, argument)
            times.append((time.thread_time() - began) / PART * 1e9)
    return {"ns_look_up": float(np.median(finds)), "ns_read_64": float(np.median(reads)),
            "look_up_per_read": float(np.median(np.array(finds) / np.array(reads)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--ids", type=float, default=1e6, help="in all days together")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.03, help="new, and gone, a day")
    parser.add_argument("--resume", type=int, help="day after which a run goes on; half by default")
    parser.add_argument("--rounds", type=int, default=9, help="of a measurement; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = json_path(options.out) if options.out else None
    days = Days(options.ids, options.days, options.share, options.seed)
    half = options.days // 2 if options.resume is None else options.resume
    config = DynamicIdsConfig(capacity=days.alive + days.new, keep=1.0, age=1)
    # A day is two units of time, so an age of one is less: who was not seen today goes. Until the
    # day's end new ids stand beside those that go.
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "ids"
        first, lines = run(days, DynamicIds(config), 0, measure=True, save=(half, saved),
                           rounds=options.rounds)
        size = saved.stat().st_size
        resumed, _ = run(days, DynamicIds.load(saved, config), half + 1)
    again, _ = run(days, DynamicIds(config), 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    grid = Grid("day", "live", "gone", "collisions", "look-up ns", "read ns", "ratio", "B/id")
    for line in lines:
        grid.add_row(*(f"{line.get(name, 0):,.4g}" if isinstance(line.get(name), float) else
                       f"{line.get(name, '')}" for name in (
                           "day", "live", "gone", "collisions", "ns_look_up", "ns_read_64",
                           "look_up_per_read", "map_bytes_per_id")))
    Console().print(grid)
    total = days.alive + (days.days - 1) * days.new
    summary = {
        "ids_in_all": total, "days": days.days, "alive_a_day": days.alive, "new_a_day": days.new,
        "capacity": config.capacity, "most_live": max(line["live"] for line in lines),
        "collisions": sum(line["collisions"] for line in lines),
        "gone_and_found": sum(line["gone_and_found"] for line in lines),
        "digest": first, "digest_of_rerun": again, "digest_of_resume": resumed,
        "resumed_after_day": half, "same_bits": first == again == resumed,
        "file_bytes": size, "peak_bytes": peak}
    Console().print(summary)
    if out:
        record(out, {**summary, "seed": options.seed, "share": options.share,
                     "rounds": options.rounds, "lines": lines})


if __name__ == "__main__":
    main()
