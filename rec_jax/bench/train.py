"""How fast a config trains on this machine, and variants of it in turn.

Each variant is the real thing: its batches come from the dataset, its step is the compiled one.
After a warm-up, every variant takes some steps in turn, round after round, so that whatever else
the machine does hits all alike; a matrix product is timed in every round too and gives the peak
that operations are held against. All variants are in memory at once.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from rich.table import Table

from rec_jax import config as configs
from rec_jax import shipped
from rec_jax.bench.rate import Product, useful_operations
from rec_jax.data.batches import prefetch
from rec_jax.devices import Devices, this_machine
from rec_jax.errors import InputError, TrainingError
from rec_jax.plan.estimate import make_plan
from rec_jax.run import RunConfig
from rec_jax.train.build import Built, build
from rec_jax.train.feed import whole_batches
from rec_jax.train.mode import Batch
from rec_jax.train.state import TrainState
from rec_jax.train.step import place_batch

_WARM_UP = 2  # steps: the first of a program is slower, and so is the first from a cold file


@dataclass(frozen=True)
class Round:
    """What one variant did in one round. seconds: of all its steps; targets: positions that
    have one; sequences: histories or pieces of them; useful: operations, see `bench_rate`."""

    seconds: float
    targets: int
    sequences: int
    useful: float


@dataclass
class _Runner:
    """One variant: compiled, with its state between rounds."""

    name: str
    config: RunConfig
    built: Built
    step: Any
    state: TrainState
    compile_seconds: float
    program_bytes: int | None
    done: int = 0
    rounds: list[Round] = field(default_factory=list)

    def run(self, steps: int) -> Round:
        """Take `steps` steps, batches made ahead in the background as in training."""
        self.built.stream.seek(self.done * self.config.train.accumulate)
        batches = prefetch(_batches(self.built, self.config))
        metrics, segments, sequences = [], [], 0
        start = time.perf_counter()
        try:
            for batch, count in itertools.islice(batches, steps):
                self.state, measured = self.step(self.state, place_batch(batch, self.built.mesh))
                metrics.append(measured)
                segments.append(batch["segments"])
                sequences += count
            jax.block_until_ready(self.state)
            seconds = time.perf_counter() - start
        finally:
            batches.close()
        self.done += steps
        host = jax.device_get(metrics)
        if not all(np.isfinite(one.loss) for one in host):
            raise TrainingError(f"the loss of {self.name} is not finite; its speed means nothing")
        useful = sum(useful_operations(
            self.config, self.state.encoder, of_step, int(one.positions),
            self.built.dataset.num_items) for of_step, one in zip(segments, host, strict=True))
        return Round(seconds, int(sum(one.positions for one in host)), sequences, useful)


def vary(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of settings: `["a=1,2", "b=x,y"]` -> `[("a=1", "b=x"), ("a=1", "b=y"),
    ...]`, the last line varying fastest; one empty combination without lines.

    Raises:
      InputError: a line is not `key=value,value,...`.
    """
    choices = []
    for line in lines:
        key, separator, values = line.partition("=")
        parts = [value.strip() for value in values.split(",")]
        if not separator or not key.strip() or not all(parts):
            raise InputError(f"--vary {line!r} is not understood; expected key=value,value,... "
                             "such as train.precision=f32,bf16")
        choices.append([f"{key.strip()}={value}" for value in parts])
    return list(itertools.product(*choices))


def run(config: Path | str, *, overrides: Sequence[str] = (), variations: Sequence[str] = (),
        steps: int = 20, rounds: int = 5, trust_code: bool = False) -> dict[str, Any]:
    """Time `rounds` rounds of `steps` steps of a config and of each of its variations.

    variations: lines for `vary`. trust_code: the config may name modules of third parties.

    Returns:
      what `bench_record.record` writes: `peak_operations_per_second` by precision (a matrix
      product on one device, the best of its runs), `process_peak_bytes`, and `variants`, see
      `_describe`.

    Raises:
      InputError: config, data or variations are not as they should be.
      TrainingError: a loss is not finite.
    """
    if steps < 1 or rounds < 1:
        raise InputError(f"steps = {steps}, rounds = {rounds}; expected at least 1")
    runners = [_prepare(config, (*overrides, *lines), " ".join(lines) or "as given", trust_code)
               for lines in vary(variations)]
    products = {name: Product(name) for name in
                dict.fromkeys(one.config.train.precision for one in runners)}
    for runner in runners:
        runner.run(_WARM_UP)
    for _ in range(rounds):
        for product in products.values():
            product.run()
        for runner in runners:
            runner.rounds.append(runner.run(steps))
    return {
        "steps_a_round": steps, "devices": runners[0].built.mesh.size,
        "compilation_cache": bool(getattr(jax.config, "jax_compilation_cache_dir", None)),
        "peak_operations_per_second": {name: one.best for name, one in products.items()},
        "usual_operations_per_second": {name: one.usual for name, one in products.items()},
        "process_peak_bytes": _peak_bytes(),
        "variants": [_describe(one, steps, products[one.config.train.precision])
                     for one in runners],
    }


def _prepare(path: Path | str, lines: Sequence[str], name: str, trust_code: bool) -> _Runner:
    config = configs.load(RunConfig, shipped.locate(path), lines, trust_code=trust_code)
    built = build(config)
    built.tiers.check_alone("a benchmark that goes round its variants")
    batch, _ = next(_batches(built, config))
    start = time.perf_counter()
    compiled = built.step.lower(built.state, place_batch(batch, built.mesh)).compile()  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    needed = None if memory is None else (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
    return _Runner(name, config, built, compiled, built.state, seconds, needed)


def _batches(built: Built, config: RunConfig) -> Iterator[tuple[Batch, int]]:
    return whole_batches(built.stream, config.train.accumulate, built.log_share)


def _describe(runner: _Runner, steps: int, product: Product) -> dict[str, Any]:
    """One variant's figures.

    positions: B x L a step, empty ones too; targets: those with a target; rates are medians over
    rounds, `spread` the slowest and the fastest round's share of the median step time.
    operations_per_step: of one device by `rec_jax.plan`, empty positions included, so
    `share_of_peak` is how busy the device is and `useful_share` how much of that serves a target.
    useful_operations_per_step: see `bench_rate.useful_operations`, the mean over steps;
    `useful_share_of_peak` and `useful_share_of_usual` hold it against the best and the median
    matrix product of the same rounds, on all devices of the mesh.
    """
    train, length = runner.config.train, runner.config.data.length
    seconds = [one.seconds / steps for one in runner.rounds]
    step_seconds = median(seconds)
    positions = train.rows * length
    plan = make_plan(runner.config, runner.built.dataset.num_items,
                     Devices(this_machine(), runner.built.mesh.size))
    operations = float(sum(plan.operations.values()))
    useful = sum(one.useful for one in runner.rounds) / (steps * len(runner.rounds))
    return {
        "name": runner.name, "table_update": runner.built.choice.mode,
        "rows": train.rows, "length": length, "items": runner.built.dataset.num_items,
        "step_seconds": step_seconds,
        "spread": [max(seconds) / step_seconds, min(seconds) / step_seconds],
        "positions_per_second": median(positions / one for one in seconds),
        "targets_per_second": median(one.targets / one.seconds for one in runner.rounds),
        "sequences_per_second": median(one.sequences / one.seconds for one in runner.rounds),
        "useful_share": sum(one.targets for one in runner.rounds)
        / (positions * steps * len(runner.rounds)),
        "operations_per_step": operations,
        "share_of_peak": operations / step_seconds / product.best,
        "useful_operations_per_step": useful,
        "useful_share_of_peak": useful / step_seconds / (product.best * runner.built.mesh.size),
        "useful_share_of_usual": useful / step_seconds / (product.usual * runner.built.mesh.size),
        "compile_seconds": runner.compile_seconds, "program_bytes": runner.program_bytes,
        "rounds": [vars(one) for one in runner.rounds],
    }


def _peak_bytes() -> int:
    """Peak of the first device where it counts, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def table(result: dict[str, Any]) -> Table:
    """The result for people; rates are medians, the step's spread beside it."""
    peaks = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in
                      result["peak_operations_per_second"].items())
    shown = Table(title=f"{result['steps_a_round']} steps a round",
                  caption=f"matrix product: {peaks} Gop/s a device; peak memory "
                          f"{result['process_peak_bytes'] / 2**20:,.0f} MiB, all variants together")
    for name in ("variant", "table", "ms a step", "positions/s", "targets/s", "sequences/s",
                 "share of peak", "useful", "program MiB", "compile s"):
        shown.add_column(name, justify="left" if name in ("variant", "table") else "right")
    for one in result["variants"]:
        slow, fast = one["spread"]
        memory = one["program_bytes"]
        shown.add_row(
            one["name"], one["table_update"],
            f"{one['step_seconds'] * 1e3:.1f} (-{1 - fast:.0%} +{slow - 1:.0%})",
            f"{one['positions_per_second']:,.0f}", f"{one['targets_per_second']:,.0f}",
            f"{one['sequences_per_second']:,.0f}", f"{one['share_of_peak']:.0%}",
            f"{one['useful_share_of_peak']:.0%}",
            "" if memory is None else f"{memory / 2**20:,.1f}", f"{one['compile_seconds']:.1f}")
    return shown
