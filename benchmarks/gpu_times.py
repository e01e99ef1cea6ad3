"""How fast the softmax runs on this GPU, beside its ceilings and beside what else could be used."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rec_jax.kernels import softmax_item_update, softmax_loss
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
    """flops: all a second, products of bf16; copied: bytes, read plus written; exps: a second."""

    flops: float
    copied: float
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


def inputs(s: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
    y = (jnp.arange(s.n, dtype=jnp.uint32) * jnp.uint32(2654435761) % s.v).astype(jnp.int32)
    return random((s.n, s.d), 11), random((s.v, s.d), 12, 1 / math.sqrt(s.d)), y


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
    """The summed loss by a backend, or by `chunked` or `dense` plain XLA, or by cuDNN's attention
    with keys = values = table, which is a bound of the forward pass."""
    if name == "chunked":
        return functools.partial(chunked, scores=1 << 28)
    if name == "dense":
        return lambda h, w, y: jnp.sum(dense(h, y, w))
    if name == "cudnn":
        return lambda h, w, y: jnp.sum(jax.nn.dot_product_attention(
            *(x[None, :, None] for x in (h, w, w)), scale=1.0, implementation="cudnn"))
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


def time_torch(name: str, op: str, s: Shape) -> float:
    """torch's cross-entropy, plain or compiled, or Apple's cut cross-entropy (`cce`)."""
    import torch

    def loss(h: Any, w: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy((h @ w.T).float(), y, reduction="sum")

    run: Any = torch.compile(loss) if name == "torch compiled" else loss
    if name == "cce":
        from cut_cross_entropy import linear_cross_entropy
        run = functools.partial(linear_cross_entropy, reduction="sum")
    h, w = (torch.randn(rows, s.d, device="cuda", dtype=torch.bfloat16, requires_grad=op != "loss")
            for rows in (s.n, s.v))
    y = torch.randint(0, s.v, (s.n,), device="cuda")

    def once() -> Any:
        value = run(h, w, y)
        return value if op == "loss" else torch.autograd.grad(value, (h, w))

    return seconds(once, lambda _: torch.cuda.synchronize())


def tunings(s: Shape) -> Iterator[tuple[str, Callable[[], float]]]:
    """(what, seconds) of both Hopper kernels over tile sizes, depths of the ring, and turns."""
    from rec_jax.kernels.mosaic_gpu.backend import forward, item_grad
    from rec_jax.kernels.mosaic_gpu.tiles import choose_tiles
    from rec_jax.kernels.primitives import Scores

    def cell(kernel: str, tile: int, stages: int, turns: bool) -> float:
        h, w, y = inputs(s)
        lse = jnp.full(s.n, math.log(s.v), jnp.float32)
        rule = Scores(jnp.float32(1.0), None, s.v, 0, None)
        tiles = dataclasses.replace(
            choose_tiles(s.d), **{kernel: tile, f"{kernel}_stages": stages}, turns=turns)
        run = jax.jit({
            "forward": lambda h, w: forward(h, w, y, rule, with_expected=True, tiles=tiles),
            "grad": lambda h, w: item_grad(h, w, y, lse, lse, lse, rule, tiles=tiles)}[kernel])
        return seconds(lambda: run(h, w), budget=0.2)

    for kernel, tile, stages, turns in itertools.product(
            ("forward", "grad"), (64, 96, 128, 192), (2, 3, 5), (True, False)):
        yield (f"{kernel}, tile {tile}, {stages} stages, turns {turns}",
               functools.partial(cell, kernel, tile, stages, turns))
