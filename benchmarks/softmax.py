"""Record how fast the streamed softmax is against materialised scores, on this machine.

    python benchmarks/softmax.py                          # the shapes that the README quotes
    python benchmarks/softmax.py --grid --torch-python PATH

`--torch-python` is an interpreter that has torch (this one, if it has). Cells whose dense
scores do not fit in memory are timed without the dense contenders, and say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys

from rich.console import Console

from rec_jax.bench import record as bench_record
from rec_jax.bench import softmax as bench_softmax

GRID = {"queries": (512, 2048, 8192), "items": (10_000, 100_000, 1_000_000),
        "dims": (32, 64, 128)}


def main() -> None:
    """Parse, time, show, record."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="store_true", help="all 27 sizes (an hour on 2 cores)")
    parser.add_argument("--most-scores", type=float, default=float("inf"),
                        help="leave out cells with more scores than this")
    parser.add_argument("--no-rank", action="store_true", help="leave the ranks out")
    parser.add_argument("--sort", action="store_true", help="also rank by sorting (slow)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", help="interpreter with torch")
    parser.add_argument("--out", default="benchmarks/results/softmax.json")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch_python = given.torch_python
    if torch_python is None and importlib.util.find_spec("torch") is not None:
        torch_python = sys.executable
    result = bench_softmax.run(
        **(GRID if given.grid else {}), **({"rank": ()} if given.no_rank else {}),
        rounds=given.rounds, sort=given.sort, torch_python=torch_python,
        most_scores=given.most_scores)
    for table in bench_softmax.tables(result):
        Console(stderr=True).print(table)
    Console(stderr=True).print(f"written to {bench_record.record(given.out, result)}")


if __name__ == "__main__":
    main()
