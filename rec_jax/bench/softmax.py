"""Time the streamed softmax and ranks against what one would write without them.

Every contender of a cell (N queries, V items, width d) is compiled first, and then all of them
are run in turn, round after round, so that whatever else the machine does hits them alike.
Memory is what XLA's compiled program needs beyond arguments and results, and what the native
backend's folds hold; for torch, the growth of the process's peak.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from rec_jax.bench.rate import Product
from rec_jax.devices import cores_allowed, free_host_memory
from rec_jax.kernels import describe, explain, softmax_loss, target_rank
from rec_jax.kernels.native import build as native_build

log = logging.getLogger("rec_jax.bench")

_SCORES = 2e9  # a contender scores about this many pairs in a cell, but runs at least once
_DENSE_COPIES = 3  # arrays of N x V f32 that a dense gradient holds at once


@dataclass(frozen=True)
class Cell:
    """One problem size: N queries against V items of width d, f32."""

    n: int
    v: int
    d: int


class Timed:
    """A function that runs once a call, and the seconds of its runs."""

    def __init__(self, name: str, call: Callable[[], float], memory: int | None) -> None:
        self.name, self.call, self.memory = name, call, memory
        self.seconds: list[float] = []

    def row(self) -> dict[str, Any]:
        """What the JSON says of this contender."""
        return {"name": self.name, "seconds": median(self.seconds), "best": min(self.seconds),
                "runs": self.seconds, "extra_bytes": self.memory}


def _compiled(name: str, function: Callable[..., Any], *arguments: Any) -> Timed:
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return time.perf_counter() - start

    extra = None if memory is None else memory.temp_size_in_bytes
    if extra is not None and name == "native":
        native_build.peak_scratch()
        call()
        extra += native_build.peak_scratch()
    return Timed(name, call, extra)


def _inputs(cell: Cell) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(0)
    queries = draw.standard_normal((cell.n, cell.d), np.float32)
    items = draw.standard_normal((cell.v, cell.d), np.float32) / np.float32(cell.d**0.5)
    return (jnp.asarray(queries), jnp.asarray(items),
            jnp.asarray(draw.integers(0, cell.v, cell.n), jnp.int32))


def dense_loss(queries: Any, items: Any, targets: Any) -> Any:
    """Mean cross-entropy from materialised scores, in the faster of the usual two ways."""
    scores = queries @ items.T
    label = jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - label)


def _fits(cell: Cell, copies: int) -> bool:
    free = free_host_memory()
    return free is None or copies * 4.0 * cell.n * cell.v < 0.6 * free


class _Torch:
    """Torch in a process (and perhaps an environment) of its own; one cell at a time."""

    def __init__(self, python: str, threads: int) -> None:
        worker = Path(__file__).with_name("softmax_torch.py")
        self.process = subprocess.Popen([python, str(worker), str(threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.version = str(self._read()["torch"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the torch process ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(message), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _race(contenders: Sequence[Timed], rounds: int, product: Product) -> None:
    for _ in range(rounds):
        product.run()
        for contender in contenders:
            contender.seconds.append(contender.call())


def _held(contenders: Sequence[Timed], operations: float, product: Product) -> dict[str, Any]:
    """All contenders, their operations a second held against the machine's own product."""
    return {"product_operations_per_second": product.usual,
            "contenders": [{**one.row(), "share_of_product":
                            operations / median(one.seconds) / product.usual}
                           for one in contenders]}


def _rounds(cell: Cell, most: int) -> int:
    return max(1, min(most, int(_SCORES / (cell.n * cell.v))))


def _loss_cell(cell: Cell, backends: Sequence[str], rounds: int,
               torch: _Torch | None) -> dict[str, Any]:
    """Forward and both gradients of the mean loss."""
    arguments = _inputs(cell)

    def streamed(backend: str) -> Callable[..., Any]:
        return lambda queries, items, targets: jnp.mean(
            softmax_loss(queries, items, targets, backend=backend)[0])

    skipped = {}
    contenders = [_compiled(name, jax.value_and_grad(streamed(name), (0, 1)), *arguments)
                  for name in backends]
    if _fits(cell, _DENSE_COPIES):
        contenders.append(_compiled("dense", jax.value_and_grad(dense_loss, (0, 1)), *arguments))
        if torch is not None:
            torch.ask(op="prepare", **asdict(cell))
            contenders.append(Timed(
                "torch", lambda: float(torch.ask(op="run")["seconds"]), None))
    else:
        skipped = {"dense and torch": "N x V scores would not fit in memory"}
    counted, product = _rounds(cell, rounds), Product("f32")
    _race(contenders, counted + (counted > 1), product)
    for contender in contenders:
        contender.seconds = contender.seconds[-counted:]  # the first round warms up
        if contender.name == "torch" and torch is not None:
            contender.memory = int(torch.ask(op="memory")["bytes"])
    return {**asdict(cell), "logits_bytes": 4 * cell.n * cell.v, "skipped": skipped,
            **_held(contenders, 8.0 * cell.n * cell.v * cell.d, product)}


def _rank_cell(cell: Cell, backends: Sequence[str], rounds: int, sort: bool) -> dict[str, Any]:
    """Ranks of the targets, and the usual ways from materialised scores."""
    arguments = _inputs(cell)

    def by_top_k(queries: Any, items: Any, targets: Any) -> Any:
        _, ids = jax.lax.top_k(queries @ items.T, 100)
        hit = ids == targets[:, None]
        return jnp.where(jnp.any(hit, axis=1), jnp.argmax(hit, axis=1) + 1, 101)

    def by_sort(queries: Any, items: Any, targets: Any) -> Any:
        order = jnp.argsort(-(queries @ items.T), axis=1)
        return jnp.argmax(order == targets[:, None], axis=1) + 1

    def by_count(queries: Any, items: Any, targets: Any) -> Any:
        scores = queries @ items.T
        label = jnp.take_along_axis(scores, targets[:, None], axis=1)
        return jnp.sum(~(scores < label), axis=1)

    contenders = [
        _compiled(name, lambda *x, name=name: target_rank(*x, backend=name), *arguments)
        for name in backends]
    dense = {"matmul + top-100": by_top_k, "matmul + compare": by_count}
    if sort:
        dense["matmul + argsort"] = by_sort
    skipped = {} if _fits(cell, 2) else {
        "dense": "N x V scores would not fit in memory"}
    if not skipped:
        contenders += [_compiled(name, f, *arguments) for name, f in dense.items()]
    product = Product("f32")
    _race(contenders, rounds, product)
    return {**asdict(cell), "skipped": skipped,
            **_held(contenders, 2.0 * cell.n * cell.v * cell.d, product)}


def _fastest(op: str) -> str:
    """What "auto" takes here."""
    queries, items, _ = _inputs(Cell(8, 8, 8))
    return explain(describe(op, queries, items, bias=None, softcap=None))[0]


def run(*, queries: Sequence[int] = (2048,), items: Sequence[int] = (100_000,),
        dims: Sequence[int] = (64,), rank: Sequence[Cell] = (Cell(512, 1_000_000, 64),),
        backends: Sequence[str] | None = None, rounds: int = 5, sort: bool = False,
        torch_python: str | None = None, most_scores: float = float("inf")
        ) -> dict[str, Any]:
    """Time loss + gradients over the grid, and ranks over `rank`.

    Args:
      queries, items, dims: the grid: N, V and d.
      rank: sizes of the rank benchmark.
      backends: kernels to time; by default the one that "auto" takes and, for the loss, `xla`.
      rounds: runs of each contender, fewer for cells of more than 10^9 scores.
      sort: also rank by sorting all scores (slow).
      most_scores: cells with more scores are left out.
      torch_python: an interpreter that has torch; without one, torch is left out.

    Returns:
      what `bench_record.record` writes: `loss` and `rank`, lists of cells with the seconds
      (median, best, all runs) and the extra memory in bytes of every contender, and what share
      of the rate of a plain f32 product, timed in every round too, its 8 N V d operations (the
      loss) or 2 N V d (the rank) come to.
    """
    cells = [Cell(n, v, d) for n in queries for v in items for d in dims
             if n * v <= most_scores]
    for_loss, for_rank = (backends or tuple(dict.fromkeys((_fastest(op), "xla")))
                          for op in ("softmax_loss", "target_rank"))
    torch = None if torch_python is None else _Torch(torch_python, cores_allowed())
    losses, ranks = [], []
    try:
        for cell in cells:
            log.info("loss: %s", cell)
            losses.append(_loss_cell(cell, for_loss, rounds, torch))
        for cell in rank:
            log.info("rank: %s", cell)
            ranks.append(_rank_cell(cell, for_rank, min(rounds, 3), sort))
    finally:
        if torch is not None:
            torch.close()
    return {"threads": cores_allowed(), "torch": torch and torch.version, "loss": losses,
            "rank": ranks}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for people: seconds, speed against the first contender, extra memory."""
    out = []
    for what, title in (("loss", "Loss and both gradients"), ("rank", "Rank of the targets")):
        table = Table(title=title)
        for name in ("queries", "items", "d", "contender", "seconds", "times the first",
                     "of product", "extra MiB"):
            table.add_column(name, justify="left" if name == "contender" else "right")
        for cell in result[what]:
            first = cell["contenders"][0]["seconds"]
            for index, row in enumerate(cell["contenders"]):
                size = [str(cell[key]) for key in "nvd"] if index == 0 else ["", "", ""]
                memory = row["extra_bytes"]
                table.add_row(*size, row["name"], f"{row['seconds']:.3g}",
                              f"{row['seconds'] / first:.2f}", f"{row['share_of_product']:.0%}",
                              "" if memory is None else f"{memory / 2**20:.1f}",
                              end_section=row is cell["contenders"][-1])
            for name, reason in cell["skipped"].items():
                table.add_row("", "", "", name, "-", "", "", reason)
        out.append(table)
    return out
