"""Builds the library, checks and times the CPU backends on small problems: what `measured.py` runs.

Prints one JSON object a line, `{fold: {backend: seconds, or what is wrong}}`, as soon as it is
known: whatever ends this process costs only what is not printed yet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import measured
from .native import build as native_build
from .native.attention import Seen, segment_attention
from .native.feed_forward import feed_forward
from .rank import target_rank
from .softmax import softmax_loss
from .topk import top_k

_RUNS = 5
_SECONDS = 0.5
"""A fold's runs go on in turn for so long, and each is a few milliseconds: others may use the
machine at the same time, and the best run is to be one that nobody disturbed."""
_TOLERANCE = 1e-4


class Case(NamedTuple):
    """functions: by backend, each gives arrays like `expected`; exact: bit for bit."""

    functions: dict[str, Callable[..., Any]]
    arguments: Sequence[Any]
    expected: Sequence[np.ndarray]
    exact: bool = False


def softmax() -> Case:
    """Mean loss and both gradients of 1024 queries and 8192 items: enough that every core has the
    same to do, as in a step."""
    draw = np.random.default_rng(0)
    queries, items = draw.normal(size=(1024, 64)), draw.normal(size=(8192, 64)) / 8
    targets = draw.integers(0, 8192, 1024)

    def by(name: str) -> Callable[..., Any]:
        def both(queries: Any, items: Any, targets: Any) -> Any:
            loss, grads = jax.value_and_grad(
                lambda one, other: jnp.mean(softmax_loss(one, other, targets, backend=name)[0]),
                (0, 1))(queries, items)
            return loss, *grads
        return both

    scores = queries @ items.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    loss = np.log(p.sum(axis=1)) + scores.max(axis=1) - scores[np.arange(1024), targets]
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(1024), targets] -= 1
    return Case({name: by(name) for name in ("native", "xla")},
                [*_floats(queries, items), jnp.asarray(targets, jnp.int32)],
                [loss.mean(), p @ items / 1024, p.T @ queries / 1024])


def rank() -> Case:
    """Ranks and best items of small whole numbers, which have ties and no rounding."""
    draw = np.random.default_rng(1)
    queries, items = (draw.integers(-3, 4, size).astype(float) for size in ((256, 64), (8192, 64)))
    targets = draw.integers(0, 8192, 256)

    def by(name: str) -> Callable[..., Any]:
        return lambda queries, items, targets: (
            target_rank(queries, items, targets, backend=name),
            top_k(queries, items, 1, backend=name)[1])

    scores = queries @ items.T
    own = scores[np.arange(256), targets]
    return Case({name: by(name) for name in ("native", "xla")},
                [*_floats(queries, items), jnp.asarray(targets, jnp.int32)],
                [(scores >= own[:, None]).sum(axis=1), scores.argmax(axis=1)[:, None]], exact=True)


def attention() -> Case:
    """Causal attention of two heads within two histories a row, and its three gradients."""
    draw, length = np.random.default_rng(2), 128
    q, k, v, gradient = draw.normal(size=(4, 4, length, 2, 32))
    segments = np.tile(np.arange(length) // 80, (4, 1))
    seen = Seen(*(jnp.asarray(x, jnp.int32) for x in (
        segments, segments, np.tile(np.arange(length), (4, 1)))))
    mask = (segments[:, None] == segments[:, :, None]) & np.tri(length, dtype=bool)

    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / 32**0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhc->bqhc", weights, v)

    def differentiated(attend: Callable[..., Any]) -> Callable[..., Any]:
        def both(q: Any, k: Any, v: Any, gradient: Any) -> Any:
            out, back = jax.vjp(attend, q, k, v)
            return out, *back(gradient)
        return both

    scores = np.where(mask[:, None], np.einsum("bqhc,bkhc->bhqk", q, k) / 32**0.5, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    out = np.einsum("bhqk,bkhc->bqhc", p, v)
    inner = np.einsum("bqhc,bqhc->bhq", gradient, out)[..., None]
    ds = p * (np.einsum("bqhc,bkhc->bhqk", gradient, v) - inner) / 32**0.5
    expected = [out, np.einsum("bhqk,bkhc->bqhc", ds, k), np.einsum("bhqk,bqhc->bkhc", ds, q),
                np.einsum("bhqk,bqhc->bkhc", p, gradient)]
    return Case({"native": differentiated(lambda *x: segment_attention(*x, seen, True)),
                 "xla": differentiated(plain)}, _floats(q, k, v, gradient), expected)


def feed() -> Case:
    """What a feed-forward layer gives for 1024 places, and what it keeps for its gradient."""
    draw = np.random.default_rng(3)
    x, up, up_bias, down, down_bias = (draw.normal(size=size) for size in (
        (1024, 64), (64, 256), (256,), (256, 64), (64,)))

    def plain(x: Any, up: Any, up_bias: Any, down: Any, down_bias: Any) -> Any:
        before = x @ up + up_bias
        return jax.nn.gelu(before) @ down + down_bias, before

    before = x @ up + up_bias
    bent = before / 2 * (1 + np.tanh((2 / np.pi)**0.5 * (before + 0.044715 * before**3)))
    return Case({"native": lambda *x: feed_forward(*x, activation="gelu", keep=True),
                 "xla": plain}, _floats(x, up, up_bias, down, down_bias),
                [bent @ down + down_bias, before])


CASES = {"softmax": softmax, "rank": rank, "attention": attention, "feed_forward": feed}


Program = Callable[..., Any]


def checked(case: Case, name: str) -> Program | str:
    """The backend's compiled program, or why it is not to be used."""
    try:
        program = jax.jit(case.functions[name])
        return _difference(program(*case.arguments), case) or program
    except Exception as error:  # whatever it is, this backend is not for this machine
        return f"{type(error).__name__}: {error}".splitlines()[0]


def timed(case: Case, programs: Mapping[str, Program | str]) -> dict[str, float | str]:
    """Seconds by backend, the best of runs in turn; what is no program stays as it is."""
    found: dict[str, float | str] = {
        name: program for name, program in programs.items() if isinstance(program, str)}
    running = {name: program for name, program in programs.items() if not isinstance(program, str)}
    times: dict[str, list[float]] = {name: [] for name in running}
    begun, runs = time.perf_counter(), 0
    while runs < _RUNS or time.perf_counter() < begun + _SECONDS:
        runs += 1
        for name, program in running.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*case.arguments))
            times[name].append(time.perf_counter() - start)
    return found | {name: min(seconds) for name, seconds in times.items()}


def tried(case: Case) -> dict[str, float | str]:
    """Seconds by backend, or why one is not to be used."""
    return timed(case, {name: checked(case, name) for name in case.functions})


def _difference(results: Any, case: Case) -> str | None:
    for result, right in zip(results, case.expected, strict=True):
        error = float(np.max(np.abs(np.asarray(result, np.float64) - right)))
        if not error <= (0 if case.exact else _TOLERANCE * np.max(np.abs(right))):
            return f"wrong here: off by {error:.1e}"
    return None


def _floats(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def main() -> None:
    """Print what is found about every fold; XLA's programs are made while the library is built."""
    with ThreadPoolExecutor(1) as pool:
        library = pool.submit(native_build.build)
        cases = {fold: make() for fold, make in CASES.items()}
        plain = {fold: checked(case, "xla") for fold, case in cases.items()}
        try:
            library.result()
            native_build.library()
        except OSError as error:
            print(json.dumps({measured.LIBRARY: str(error)}), flush=True)
            return
    for fold, case in cases.items():
        programs = {"native": checked(case, "native"), "xla": plain[fold]}
        print(json.dumps({fold: timed(case, programs)}), flush=True)


if __name__ == "__main__":
    main()
