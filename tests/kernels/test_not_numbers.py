"""NaN, inf, padding and bias have one rule on every backend: that of `primitives.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rec_jax.kernels import (
    Backend,
    reference,
    softmax_item_update,
    softmax_loss,
    target_rank,
    top_k,
)
from rec_jax.kernels.mosaic_gpu import backend as mosaic_gpu
from rec_jax.kernels.mosaic_gpu.tiles import Tiles
from rec_jax.kernels.mosaic_tpu import backend as mosaic_tpu
from rec_jax.kernels.native import backend as native
from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.xla import backend as xla
from rec_jax.kernels.xla.tiles import Sizes

N, V, D, K, SEEN = 20, 152, 32, 160, 6
"""Two blocks of 16 queries and three tiles of 64 rows, neither full; more best items than items."""

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Rule:
    """What a compiled function depends on besides arrays."""

    backend: Backend
    bias: bool = True
    softcap: float | None = None
    dtype: str = "float32"


class Arrays(NamedTuple):
    """Arguments as numpy; `num_items` is traced, so that one program serves all examples."""

    queries: Any
    items: Any
    targets: Any
    g: Any
    z: Any
    bias: Any
    seen: Any
    num_items: Any


class Found(NamedTuple):
    loss: Any
    lse: Any
    d_queries: Any
    d_items: Any
    d_bias: Any
    moved: Any  # rows after a step of their gradient
    rank: Any
    scores: Any
    ids: Any


def solve(a: Arrays, rule: Rule, axis_name: str | None = None) -> Found:
    """All that the backend can compute; what it cannot is None."""
    rules: dict[str, Any] = {"softcap": rule.softcap, "num_items": a.num_items,
                             "axis_name": axis_name, "backend": rule.backend}

    def loss(queries: Any, items: Any, bias: Any) -> Any:
        loss, lse = softmax_loss(queries, items, a.targets, bias=bias, **rules)
        # Where the cotangent is 0, the product would not be: 0 * NaN.
        return (jnp.sum(jnp.where(a.g == 0, 0.0, a.g * loss))
                + jnp.sum(jnp.where(a.z == 0, 0.0, a.z * lse)), (loss, lse))

    bias = a.bias if rule.bias else None
    queries, items = (x.astype(rule.dtype) for x in (a.queries, a.items))
    over = (0, 1) if bias is None else (0, 1, 2)
    grads, (losses, lse) = jax.grad(loss, over, has_aux=True)(queries, items, bias)
    moved = softmax_item_update(
        items, None, queries, a.targets, losses, lse, a.g, a.z, bias=bias, **rules,
        update=lambda rows, grads, state, hyper: (rows - grads, state)).items
    rank = scores = ids = None
    if rule.backend.rank_count is not None:
        rank = target_rank(queries, items, a.targets, exclude=a.seen, bias=bias, **rules)
    if rule.backend.top_k is not None:
        scores, ids = top_k(queries, items, K, exclude=a.seen, bias=bias, **rules)
    return Found(losses, lse, *grads, *[None] * (3 - len(grads)), moved, rank, scores, ids)


compiled = jax.jit(solve, static_argnames=("rule", "axis_name"))


@np.errstate(invalid="ignore", divide="ignore")
def oracle(a: Arrays, rule: Rule) -> Found:
    """The same by definition, in f64."""
    queries, items = a.queries.astype(np.float64), a.items.astype(np.float64)
    bias = a.bias.astype(np.float64) if rule.bias else np.zeros(V)
    there = (np.arange(V) < a.num_items) & (bias != -np.inf)
    rows, index = np.where(there[:, None], items, 0.0), np.arange(N)
    s = queries @ rows.T + np.where(there, bias, 0.0)
    slope = np.ones_like(s)
    if rule.softcap is not None:
        bent = np.tanh(s / rule.softcap)
        s, slope = rule.softcap * bent, 1 - bent**2
    s[:, ~there] = -np.inf
    at = np.clip(a.targets, 0, V - 1)
    labelled = (a.targets == at) & there[at]
    lost = (np.isnan(s) | (s == np.inf)).any(1)
    top = np.maximum(s.max(1), -1e300)
    p = np.exp(s - top[:, None])
    total = p.sum(1)
    lse = np.where(lost, np.nan, top + np.log(total))
    label_score = np.where(labelled, s[index, at], -np.inf)
    loss = np.where(lost, np.nan, np.where(labelled, lse - label_score, np.inf))
    g, z = a.g.astype(np.float64)[:, None], a.z.astype(np.float64)[:, None]
    label = np.where(labelled[:, None], np.arange(V) == at[:, None], False)
    c = ((g + z) * p / np.where(total > 0, total, 1.0)[:, None] - g * label) * slope
    c = np.where(lost[:, None], np.nan, c)
    c[:, ~there] = 0.0
    live = ((a.g != 0) | (a.z != 0))[:, None]
    c, queries = np.where(live, c, 0.0), np.where(live, queries, 0.0)
    d_items = np.where(there[:, None], c.T @ queries, 0.0)
    open_to = np.tile(there, (N, 1))
    for i in index:
        open_to[i, a.seen[i][a.seen[i] >= 0]] = False
    rivals = open_to & (s != -np.inf)
    rivals[index, at] &= a.targets != at
    beaten = np.nan_to_num(label_score, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    rank = 1 + (rivals & ~(s < beaten[:, None])).sum(1)
    scores, ids = np.full((N, K), -np.inf), np.full((N, K), -1)
    for i in index:
        mine = np.flatnonzero(open_to[i] & (s[i] > -np.inf))
        mine = mine[np.argsort(-s[i, mine], kind="stable")]
        scores[i, : len(mine)], ids[i, : len(mine)] = s[i, mine], mine
    d_queries = np.where(live, c @ rows, 0.0)
    return Found(loss, lse, d_queries, d_items, c.sum(0), items - d_items, rank, scores, ids)


@st.composite
def examples(draw: st.DrawFn, rule: Rule) -> Arrays:
    """Small whole numbers, whose scores are exact and often tie, with a few of them spoilt."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some(of: int, most: int = 2) -> np.ndarray:
        count = draw(st.integers(0, most))
        return random.choice(of, count, replace=False) if count else np.zeros(0, np.int64)

    def bad() -> float:
        return draw(st.sampled_from([NAN, INF, -INF, 2.0**100]))

    queries, items = np.zeros((N, D), np.float32), np.zeros((V, D), np.float32)
    queries[:, :3], items[:, :3] = random.integers(-2, 3, (N, 3)), random.integers(-2, 3, (V, 3))
    items[some(V)] = items[0]
    bias = random.integers(-2, 3, V).astype(np.float32)
    num_items = draw(st.sampled_from([V, V, V - 1, 130, 128, 65, 1, 0]))
    targets = random.integers(-1, max(num_items, 1), N)
    targets[some(N)] = V - 1
    g, z = random.integers(-2, 3, N) / 2, random.integers(-2, 3, N) / 2
    g[0] = 1.0
    quiet = some(N - 1, 6) + 1
    g[quiet] = z[quiet] = 0
    bias[some(V)] = draw(st.sampled_from([100.0, 100.0, -100.0, INF, NAN]))
    items[some(V, 1), draw(st.integers(0, 3))] = NAN
    queries[some(N)] = NAN
    queries[quiet[:1]] = bad()
    out = some(V, draw(st.sampled_from([3, V])))
    bias[out] = -INF
    if rule.bias and rule.backend.name != "mosaic_gpu":
        items[out[:2]] = bad()
    items[num_items:], bias[num_items:] = bad(), bad()
    seen = random.integers(-1, V, (N, SEEN))
    return Arrays(queries, items, targets.astype(np.int32), g.astype(np.float32),
                  z.astype(np.float32), bias, seen.astype(np.int32), np.int32(num_items))


def check(found: Found, a: Arrays, rule: Rule, rtol: float = 1e-5) -> None:
    bf16 = {"d_queries", "d_items", "moved"} if rule.dtype == "bfloat16" else set()
    for name, value, want in zip(Found._fields, found, oracle(a, rule), strict=True):
        if value is None:
            continue
        rough = 2.0**-7 if name in bf16 else rtol
        size = np.abs(want[np.isfinite(want) & (np.abs(want) < 1e20)]).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(value, np.float64), want, rtol=rough,
                                   atol=rough * size, err_msg=name)
    there = (np.arange(V) < a.num_items) & ((a.bias != -np.inf) | (not rule.bias))
    assert np.all(np.asarray(found.d_items, np.float32)[~there] == 0)
    assert found.d_bias is None or np.all(np.asarray(found.d_bias)[~there] == 0)


def spoilt(**changes: Any) -> Arrays:
    """An example without anything odd, but for the changes."""
    random = np.random.default_rng(1)
    queries, items = np.zeros((N, D), np.float32), np.zeros((V, D), np.float32)
    queries[:, :3], items[:, :3] = random.integers(-2, 3, (N, 3)), random.integers(-2, 3, (V, 3))
    plain = Arrays(queries, items, random.integers(0, 65, N).astype(np.int32),
                   np.ones(N, np.float32), np.zeros(N, np.float32), np.zeros(V, np.float32),
                   np.full((N, SEEN), -1, np.int32), np.int32(V))
    return plain._replace(**changes)


def with_(array: np.ndarray, at: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


PLAIN = spoilt()
EXAMPLES = {
    "a bias that the queries of padding would meet as exp(100)":
        spoilt(bias=with_(PLAIN.bias, 5, 100.0)),
    "NaN behind num_items":
        spoilt(items=with_(PLAIN.items, slice(70, None), NAN),
               bias=with_(PLAIN.bias, slice(70, None), NAN), num_items=np.int32(70)),
    "a bias takes all items out but ten":
        spoilt(bias=with_(PLAIN.bias, slice(10, None), -INF)),
    "a query of NaN spoils no other query":
        spoilt(queries=with_(PLAIN.queries, 3, NAN)),
    "a bias takes all items out":
        spoilt(bias=np.full(V, -INF, np.float32)),
    "a row of NaN hides no other":
        spoilt(items=with_(PLAIN.items, 64, NAN)),
    "an infinite bias": spoilt(bias=with_(PLAIN.bias, 9, INF)),
    "an infinite bias of every label":
        spoilt(bias=with_(PLAIN.bias, 9, INF), targets=np.full(N, 9, np.int32)),
    "a query of NaN without a weight spoils nothing":
        spoilt(queries=with_(PLAIN.queries, 3, NAN), g=with_(PLAIN.g, 3, 0.0)),
    "labels behind num_items, where there is NaN":
        spoilt(items=with_(PLAIN.items, slice(70, None), NAN), num_items=np.int32(70),
               targets=np.full(N, 71, np.int32)),
}

TINY = xla.make_backend(Sizes(scores=1 << 11, queries=16, rows=64))
TPU = mosaic_tpu.make_backend(interpret=True)
INTERPRETED = jax.__version_info__ >= (0, 12)  # the interpreter of older JAX cannot run them
HOPPER = {"tiles": Tiles(forward=64, forward_stages=2, grad=64, grad_stages=2, processors=2),
          "interpret": plgpu.InterpretGPUParams() if INTERPRETED else None}
GPU = Backend("mosaic_gpu", lambda problem: None,
              *(functools.partial(getattr(mosaic_gpu, fold), **HOPPER)
                for fold in ("forward", "item_grad", "item_update")))
BACKENDS = {"reference": reference.BACKEND, "xla": TINY, "native": native.make_backend(),
            "native-vector": native.make_backend(amx=False, rows=128), "mosaic_tpu": TPU,
            "mosaic_gpu": GPU}
RULES = {"plain": {"bias": False}, "bias": {}, "bias and softcap": {"softcap": 20.0},
         "bf16": {"softcap": 20.0, "dtype": "bfloat16"},
         "bf16, plain": {"bias": False, "dtype": "bfloat16"}}
RUNS = {"reference": ("plain", "bias", "bias and softcap"),
        "xla": ("plain", "bias", "bias and softcap", "bf16"),
        "native": ("bias", "bf16"),
        "native-vector": ("plain", "bias", "bias and softcap", "bf16"),
        "mosaic_tpu": ("bias and softcap", "bf16, plain"),
        "mosaic_gpu": ("bf16", "bf16, plain")}


def rule_of(backend: str, kind: str) -> Rule:
    if backend.startswith("native") and (reason := native_build.problem()):
        pytest.skip(f"no native backend: {reason}")
    if backend == "mosaic_gpu" and not INTERPRETED:
        pytest.skip("the interpreter of older JAX cannot run these kernels")
    return Rule(BACKENDS[backend], **RULES[kind])


every = pytest.mark.parametrize(
    ("backend", "kind"), [pytest.param(
        backend, kind, marks=pytest.mark.slow if kind in ("plain", "bias") else ())
        for backend, kinds in RUNS.items() for kind in kinds])


COUNTS = {"mosaic_tpu": 10, "mosaic_gpu": 2}
"""Examples for the interpreted backends, where each takes seconds; 30 for the others."""


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@every
def test_the_rule_holds_for_known_troubles(backend: str, kind: str) -> None:
    rule = rule_of(backend, kind)
    first = list(EXAMPLES.items())[: 4 if backend == "mosaic_gpu" else None]
    for name, arrays in first:
        try:
            check(compiled(arrays, rule), arrays, rule)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# The interpreter of Hopper kernels multiplies with NumPy, which warns of what is asked for here.
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@every
def test_the_rule_holds_for_any_numbers(backend: str, kind: str) -> None:
    rule = rule_of(backend, kind)
    for_any(rule, COUNTS.get(backend, 30), functools.partial(compiled, rule=rule))


def for_any(rule: Rule, count: int, run: Callable[[Arrays], Found]) -> None:
    """`run` gives what the oracle gives, for `count` examples."""

    @settings(max_examples=count, deadline=None, derandomize=True, database=None,
              suppress_health_check=[HealthCheck.too_slow])
    @given(arrays=examples(rule))
    def holds(arrays: Arrays) -> None:
        check(run(arrays), arrays, rule)

    holds()


@functools.cache
def on_eight_devices(rule: Rule) -> Any:
    mesh = Mesh(np.array(jax.devices()[:8]), ("items",))
    table, same = P("items"), P()
    specs = Arrays(same, table, same, same, same, table, same, same)
    run = functools.partial(solve, rule=rule, axis_name="items")
    sketch = jax.eval_shape(functools.partial(solve, rule=rule), PLAIN)
    specs_out = (same, same, same, table, table, table, same, same, same)
    out = Found(*(None if value is None else spec
                  for value, spec in zip(sketch, specs_out, strict=True)))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=out))


@pytest.mark.parametrize(("backend", "kind"), [
    ("xla", "bias and softcap"), ("native-vector", "bias"), ("reference", "bias")])
def test_the_rule_holds_on_shards(backend: str, kind: str) -> None:
    rule = rule_of(backend, kind)
    for arrays in EXAMPLES.values():
        check(on_eight_devices(rule)(arrays), arrays, rule)
    for_any(rule, 15, on_eight_devices(rule))
