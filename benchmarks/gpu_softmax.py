"""Exact softmax loss on a Hopper GPU: is it right, how fast, and how far from the roofline.

    python benchmarks/gpu_softmax.py [--quick | --tune | --dry-run] [--dims 64,128] [--out FILE]

In one run: every backend against a float64 oracle on fresh random inputs; the ceilings of the
card (matrix product, copy, exponentials); then the median time of every backend and of what
else could be used (logits in chunks and whole in plain XLA, torch with and without compile,
cuDNN attention with keys = values = table as a bound of the forward pass). A cell that fails is
recorded with its error. --tune sweeps tile sizes instead; --dry-run does all of it at toy size
on any device. Results go to benchmarks/results/gpu_softmax.json, a table comes last.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rec_jax.bench_record import record
from rec_jax.kernels import BACKENDS, softmax_item_update, softmax_loss
from rec_jax.kernels.rounding import mix

# Special-function units of an H100 SXM or H200: 16 a clock on each of 132 processors.
EXPONENTIALS_PER_SECOND = 132 * 16 * 1.755e9


class Shape(NamedTuple):
    n: int
    v: int
    d: int

    def text(self) -> str:
        return f"N={self.n:,} V={self.v:,} d={self.d}"


class Ceilings(NamedTuple):
    flops: float  # all a second; products of bf16
    copied: float  # bytes, read plus written
    exps: float


def seconds(run: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready,
            budget: float = 0.5) -> float:
    """Median time of `run`; short runs are queued together, so that launches do not count."""
    for _ in range(3):
        began = time.perf_counter()
        wait(run())
        once = time.perf_counter() - began
    together = max(1, min(50, math.ceil(5e-3 / once)))
    times = []
    for _ in range(max(3, min(50, int(budget / (once * together))))):
        began = time.perf_counter()
        for _ in range(together):
            out = run()
        wait(out)
        times.append((time.perf_counter() - began) / together)
    return statistics.median(times)


def random(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> jax.Array:
    """bf16 uniform of standard deviation `scale`, from a hash, made where it stays."""
    @jax.jit
    def fill(seed: jax.Array) -> jax.Array:
        row, column = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
        bits = mix(row ^ mix(column + seed))
        unit = (bits >> 8).astype(jnp.float32) * 2.0**-24 - 0.5
        return (unit * (scale * math.sqrt(12.0))).astype(jnp.bfloat16)
    return fill(jnp.uint32(seed))


def measure_ceilings(toy: bool) -> Ceilings:
    side, size, chain = (256, 1 << 16, 4) if toy else (8192, 1 << 29, 64)
    a, b = random((side, side), 1), random((side, side), 2)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.bfloat16))
    copied = random((size // 128, 128), 3)
    copy = jax.jit(lambda x: -x)
    exponent = random((size // 1024, 128), 4).astype(jnp.float32)
    # Three instructions each; the special-function unit is busy for eight.
    exps = jax.jit(lambda x: functools.reduce(lambda x, _: jnp.exp2(-0.5 * x), range(chain), x))
    return Ceilings(
        2 * side**3 / seconds(lambda: product(a, b)),
        2 * copied.nbytes / seconds(lambda: copy(copied)),
        max(exponent.size * chain / seconds(lambda: exps(exponent)),
            0 if toy else EXPONENTIALS_PER_SECOND))


def floor(op: str, s: Shape, top: Ceilings) -> float:
    """Seconds that no implementation with two passes over the table can beat."""
    scores, table = s.n * s.v, 2 * s.v * s.d

    def pass_over(products: int, moved: int) -> float:
        return max(2 * products * scores * s.d / top.flops, scores / top.exps, moved / top.copied)

    if op == "loss":
        return pass_over(1, table)
    return pass_over(2, table) + pass_over(2, 2 * table + (8 * s.v if op == "step" else 0))


def adagrad(rows: Any, grads: Any, state: Any, rate: Any) -> tuple[Any, Any]:
    state = state + jnp.mean(jnp.square(grads), axis=1)
    return rows - rate * grads / (jnp.sqrt(state) + 1e-8)[:, None], state


def chunked(h: Any, w: Any, y: Any, scores: int) -> Any:
    """Loss by plain XLA, logits of some queries at a time, recomputed in the backward pass."""
    rows = max(1, min(h.shape[0], scores // w.shape[0]))
    while h.shape[0] % rows:
        rows -= 1

    @jax.checkpoint
    def part(total: Any, hy: Any) -> tuple[Any, None]:
        return total + jnp.sum(dense(hy[0], hy[1], w)), None

    blocks = h.reshape(-1, rows, h.shape[1]), y.reshape(-1, rows)
    return lax.scan(part, jnp.float32(0), blocks)[0]


def dense(h: Any, y: Any, w: Any) -> Any:
    logits = jnp.matmul(h, w.T, preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0]


def total_loss(name: str) -> Callable[[Any, Any, Any], Any]:
    if name == "chunked":
        return functools.partial(chunked, scores=1 << 28)
    if name == "dense":
        return lambda h, w, y: jnp.sum(dense(h, y, w))
    if name == "cudnn":
        return lambda h, w, y: jax.nn.dot_product_attention(
            *(x[None, :, None] for x in (h, w, w)), scale=1.0, implementation="cudnn")
    return lambda h, w, y: jnp.sum(softmax_loss(h, w, y, backend=name)[0])


def training_step(name: str) -> Callable[..., Any]:
    """Loss, gradient of the queries, and the table's optimizer step in place."""
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(w: Any, state: Any, h: Any, y: Any) -> Any:
        def objective(h: Any) -> Any:
            loss, lse = softmax_loss(h, lax.stop_gradient(w), y, backend=name)
            return jnp.mean(loss), (loss, lse)

        dh, (loss, lse) = jax.grad(objective, has_aux=True)(h)
        weight = jnp.full_like(loss, 1 / loss.size)
        new = softmax_item_update(
            w, state, h, y, loss, lse, weight, 0 * weight, update=adagrad,
            hyper=jnp.float32(0.1), seed=jnp.uint32(7), backend=name)
        return new.items, new.state, dh

    return step


def oracle_errors(name: str, d: int, seed: int) -> dict[str, float]:
    """Norm of the error over norm of the float64 result, on inputs with every complication."""
    rng = np.random.default_rng(seed)
    n, v, items = 192, 4104, 4099
    h = jnp.asarray(rng.normal(size=(n, d)), jnp.bfloat16)
    w = jnp.asarray(rng.normal(size=(v, d)) / math.sqrt(d), jnp.bfloat16)
    b, g = rng.normal(size=v).astype(np.float32), rng.normal(size=n)
    y = rng.integers(0, items, n)
    y[:7] = items - 1
    hh, ww = np.asarray(h, np.float64), np.asarray(w, np.float64)
    scores = (1.7 * hh @ ww.T + b)[:, :items]
    top = scores.max(1)
    lse = np.log(np.exp(scores - top[:, None]).sum(1)) + top
    p = np.exp(scores - lse[:, None])
    p[np.arange(n), y] -= 1
    c = g[:, None] * p
    wanted = {"loss": lse - scores[np.arange(n), y], "lse": lse, "queries": 1.7 * c @ ww[:items],
              "items": np.pad(1.7 * c.T @ hh, ((0, v - items), (0, 0))),
              "bias": np.pad(c.sum(0), (0, v - items))}

    def run(h: Any, w: Any, b: Any) -> Any:
        loss, lse = softmax_loss(h, w, jnp.asarray(y), bias=b, logit_scale=1.7, num_items=items,
                                 backend=name)
        return jnp.sum(jnp.asarray(g, jnp.float32) * loss), (loss, lse)

    step = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))
    grads, aux = step(h, w, jnp.asarray(b))
    again = step(h, w, jnp.asarray(b))
    found = dict(zip(("queries", "items", "bias", "loss", "lse"), (*grads, *aux), strict=True))
    errors = {key: float(np.linalg.norm(np.asarray(found[key], np.float64) - want)
                         / np.linalg.norm(want)) for key, want in wanted.items()}
    errors["bits_differ_in_second_run"] = float(sum(
        int((np.asarray(a) != np.asarray(b)).sum())
        for a, b in zip(jax.tree.leaves((grads, aux)), jax.tree.leaves(again), strict=True)))
    return errors


def inputs(s: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
    y = (jnp.arange(s.n, dtype=jnp.uint32) * jnp.uint32(2654435761) % s.v).astype(jnp.int32)
    return random((s.n, s.d), 11), random((s.v, s.d), 12, 1 / math.sqrt(s.d)), y


def errors_at_scale(name: str, d: int, toy: bool) -> dict[str, float]:
    """The same against the `xla` backend, on the device, at a size with many blocks and splits."""
    s = Shape(64, 520, d) if toy else Shape(1024, 200_008, d)
    h, w, y = inputs(s)

    def results(name: str) -> Any:
        value, grads = jax.jit(jax.value_and_grad(total_loss(name), (0, 1)))(h, w, y)
        start = jnp.copy(w), jnp.ones(s.v, jnp.float32)
        return value, *grads, training_step(name)(*start, h, y)[0].astype(jnp.float32) - w

    def error(found: Any, want: Any) -> float:
        found, want = found.astype(jnp.float32), want.astype(jnp.float32)
        return float(jnp.linalg.norm(found - want) / jnp.linalg.norm(want))

    pairs = zip(("loss", "queries", "items", "step"), results(name), results("xla"), strict=True)
    return {key: error(*pair) for key, *pair in pairs}


def time_jax(name: str, op: str, s: Shape) -> float:
    h, w, y = inputs(s)
    if op == "step":
        step, kept = training_step(name), [w, jnp.ones(s.v, jnp.float32)]
        del w  # donated
        def once() -> Any:
            kept[0], kept[1], dh = step(kept[0], kept[1], h, y)
            return kept[0], dh

        return seconds(once)
    total = total_loss(name)
    run = jax.jit(total if op == "loss" else jax.value_and_grad(total, (0, 1)))
    return seconds(lambda: run(h, w, y))


def time_torch(compiled: bool, op: str, s: Shape) -> float:
    import torch

    torch.cuda.empty_cache()

    def loss(h: Any, w: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy((h @ w.T).float(), y, reduction="sum")

    run = torch.compile(loss) if compiled else loss
    h, w = (torch.randn(rows, s.d, device="cuda", dtype=torch.bfloat16, requires_grad=op != "loss")
            for rows in (s.n, s.v))
    y = torch.randint(0, s.v, (s.n,), device="cuda")

    def once() -> Any:
        value = run(h, w, y)
        return value if op == "loss" else torch.autograd.grad(value, (h, w))

    return seconds(once, lambda _: torch.cuda.synchronize())


def guarded(cell: Callable[[], Any]) -> Any:
    """The result, or one line that says why there is none."""
    try:
        return cell()
    except Exception as error:
        line = (str(error).strip() or "no message").splitlines()[0][:200]
        return {"error": f"{type(error).__name__}: {line}"}


def torch_cells(shapes: list[Shape]) -> dict[str, Any]:
    """Times of torch in a process of its own: the memory of two frameworks does not mix."""
    command = [sys.executable, __file__, "--torch-shapes", json.dumps(shapes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no output").splitlines()[-1])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def torch_main(shapes: list[Shape]) -> None:
    import torch

    torch.zeros(1, device="cuda")  # fails here and now without a device
    print(json.dumps({
        f"{'torch compiled' if compiled else 'torch'}|{op}|{s.text()}":
            guarded(functools.partial(time_torch, compiled, op, s))
        for s in shapes for compiled in (False, True) for op in ("loss", "grad")}))


def tune(shapes: list[Shape]) -> list[dict[str, Any]]:
    """Times of both Hopper kernels over tile sizes."""
    from rec_jax.kernels.mosaic_gpu import forward, item_grad
    from rec_jax.kernels.mosaic_gpu_tiles import choose_tiles
    from rec_jax.kernels.primitives import Scores

    def cell(s: Shape, kernel: str, tile: int, stages: int, turns: bool) -> float:
        h, w, y = inputs(s)
        lse = jnp.full(s.n, math.log(s.v), jnp.float32)
        rule = Scores(jnp.float32(1.0), None, s.v, 0, None)
        tiles = dataclasses.replace(
            choose_tiles(s.d), **{kernel: tile, f"{kernel}_stages": stages}, turns=turns)
        run = jax.jit({
            "forward": lambda h, w: forward(h, w, y, rule, with_expected=True, tiles=tiles),
            "grad": lambda h, w: item_grad(h, w, y, lse, lse, lse, rule, tiles=tiles)}[kernel])
        return 1e3 * seconds(lambda: run(h, w), budget=0.2)

    rows = []
    for s, kernel, tile, stages, turns in itertools.product(
            shapes, ("forward", "grad"), (64, 96, 128, 192), (2, 3, 5), (True, False)):
        spent = guarded(functools.partial(cell, s, kernel, tile, stages, turns))
        rows.append({"shape": s.text(), "kernel": kernel, "tile": tile, "stages": stages,
                     "turns": turns, "milliseconds": spent})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/gpu_softmax.json")
    parser.add_argument("--dims", default="32,64,128,256", help="widths, with commas")
    parser.add_argument("--seconds", type=float, default=540, help="start no cell after this")
    parser.add_argument("--quick", action="store_true", help="one size for each width")
    parser.add_argument("--tune", action="store_true", help="sweep tile sizes")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, any device")
    parser.add_argument("--torch-shapes", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.torch_shapes:
        return torch_main([Shape(*s) for s in json.loads(given.torch_shapes)])
    began, toy = time.perf_counter(), given.dry_run
    dims = [int(d) for d in given.dims.split(",")]
    sizes = [(8192, 1_000_000)] if given.quick or given.tune else [
        (8192, 1_000_000), (1024, 1_000_000), (8192, 100_000), (1024, 100_000)]
    shapes = [Shape(64, 512, 32)] if toy else [Shape(n, v, d) for n, v in sizes for d in dims]
    results: dict[str, Any] = {"dry_run": toy}
    if not (toy or given.tune):
        results["torch"] = guarded(lambda: torch_cells(shapes))
    if not toy and jax.default_backend() != "gpu":
        raise SystemExit("gpu_softmax needs a GPU; --dry-run works anywhere")
    if given.tune:
        record(given.out, {**results, "tune": tune(shapes)})
        return None

    names = ["reference", "xla"] if toy else [n for n in BACKENDS if n != "mosaic_tpu"]
    seed = results["seed"] = int.from_bytes(os.urandom(4), "little")
    results["errors"] = {f"{name}|d={d}": guarded(functools.partial(oracle_errors, name, d, seed))
                         for name in names for d in (dims[:1] if toy else dims)}
    results["errors_at_scale"] = {
        f"{name}|d={d}": guarded(functools.partial(errors_at_scale, name, d, toy))
        for name in names if toy or name == "mosaic_gpu" for d in (dims[:1] if toy else dims)}
    for key, value in [*results["errors"].items(), *results["errors_at_scale"].items()]:
        print(key, value, file=sys.stderr, flush=True)
    top = measure_ceilings(toy)
    results["ceilings"] = top._asdict()
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 16e9)
    cells: dict[str, Any] = {}
    plan = [(name, op, s) for s in shapes
            for name in [*names, "chunked", "dense", "cudnn"] for op in ("loss", "grad", "step")
            if (op != "step" or name in BACKENDS)
            and (name != "cudnn" or (op == "loss" and not toy))
            and (name not in ("dense", "reference") or 16 * s.n * s.v < memory)]
    if memory > 75e9 and not given.quick:
        plan += [("mosaic_gpu", op, Shape(1024, 10**9, 32)) for op in ("loss", "step")]
    for name, op, s in plan:
        if time.perf_counter() - began > given.seconds:
            cells[f"{name}|{op}|{s.text()}"] = {"error": "no time left"}
            continue
        spent = guarded(functools.partial(time_jax, name, op, s))
        if isinstance(spent, float):
            share = None if toy else floor(op, s, top) / spent
            spent = {"milliseconds": 1e3 * spent, "roofline_share": share}
        cells[f"{name}|{op}|{s.text()}"] = spent
        print(name, op, s.text(), spent, file=sys.stderr, flush=True)
        results["cells"] = cells
        record(given.out, results)  # what is measured stays, whatever happens later
    return show(results, top)


def show(results: dict[str, Any], top: Ceilings) -> None:
    """The short table, last of all."""
    times = dict(results["cells"])
    times |= {key: {"milliseconds": 1e3 * value} if isinstance(value, float) else {"error": value}
              for key, value in results.get("torch", {}).items()}
    print(f"ceilings: {top.flops / 1e12:.0f} TFLOP/s, {top.copied / 1e12:.2f} TB/s, "
          f"{top.exps / 1e12:.2f} T exponentials/s")
    columns = list(dict.fromkeys(key.split("|")[0] for key in times if "|" in key))
    print("milliseconds (share of the roofline)".ljust(40) + "".join(c.rjust(16) for c in columns))
    for op, shape in dict.fromkeys(tuple(k.split("|")[1:]) for k in times if "|" in k):
        row = f"{shape} {op}".ljust(40)
        for column in columns:
            cell = times.get(f"{column}|{op}|{shape}", {})
            share = cell.get("roofline_share")
            text = f"{cell['milliseconds']:.2f}" if "milliseconds" in cell else "failed"
            row += (f"{text} ({share:.0%})" if share else text if cell else "-").rjust(16)
        print(row)


if __name__ == "__main__":
    main()
