"""The Hopper kernels without a GPU: interpreted against dense float64, and lowered for CUDA."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels.mosaic_gpu.backend import BACKEND, refuses
from rec_jax.kernels.mosaic_gpu.forward import choose_splits, forward
from rec_jax.kernels.mosaic_gpu.grad import item_grad
from rec_jax.kernels.mosaic_gpu.tiles import Tiles, choose_tiles, label_hits, out_columns
from rec_jax.kernels.mosaic_gpu.update import item_update, rows_of_a_step
from rec_jax.kernels.primitives import Problem, Scores, SparseRows
from rec_jax.kernels.softmax import softmax_loss
from rec_jax.kernels.update import softmax_item_update

SMALL = Tiles(forward=64, forward_stages=2, grad=64, grad_stages=2, processors=2)
interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the interpreter of older JAX cannot run these kernels")


class Case(NamedTuple):
    """Arrays of a problem in float64 and as the kernels take them."""

    queries: jax.Array
    items: jax.Array
    targets: jax.Array
    scores: Scores
    dense: np.ndarray  # [N, V], -inf where there is no item
    slope: np.ndarray  # [N, V]
    here: np.ndarray  # bool [N]: the label is an item of this shard
    local: np.ndarray  # [N]


def make(dim: int = 32, queries: int = 70, rows: int = 136, *, bias: bool = False,
         softcap: float | None = None, scale: float = 1.3, pads: int = 0, offset: int = 0,
         seed: int = 0) -> Case:
    """Random case; some labels lie outside the shard, and several share a row."""
    rng = np.random.default_rng(seed)
    h = jnp.asarray(rng.normal(size=(queries, dim)), jnp.bfloat16)
    w = jnp.asarray(rng.normal(size=(rows, dim)) / np.sqrt(dim), jnp.bfloat16)
    b = rng.normal(size=rows).astype(np.float32) if bias else None
    local = rng.integers(-9, rows + 9, queries)
    local[3:8] = 7
    valid = rows - pads
    raw = scale * np.asarray(h, np.float64) @ np.asarray(w, np.float64).T
    raw += 0.0 if b is None else b
    dense = raw if softcap is None else softcap * np.tanh(raw / softcap)
    slope = np.ones_like(dense) if softcap is None else 1 - (dense / softcap) ** 2
    dense[:, valid:] = -np.inf
    scores = Scores(jnp.float32(scale), None if b is None else jnp.asarray(b), valid + offset,
                    offset, softcap)
    return Case(h, w, jnp.asarray(local + offset, jnp.int32), scores, dense, slope,
                (local >= 0) & (local < valid), local)


def without_labels(case: Case) -> np.ndarray:
    rest = case.dense.copy()
    rest[np.flatnonzero(case.here), case.local[case.here]] = -np.inf
    return rest


def interpret(fold: Callable[..., Any], case: Case, *arrays: Any, tiles: Tiles = SMALL,
              **keywords: Any) -> Any:
    rule = case.scores

    def run(h: Any, w: Any, y: Any, scale: Any, bias: Any, *rest: Any) -> Any:
        return fold(h, w, y, *rest, dataclasses.replace(rule, scale=scale, bias=bias),
                    tiles=tiles, interpret=plgpu.InterpretGPUParams(), **keywords)

    arrays = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    out = jax.jit(run)(case.queries, case.items, case.targets, rule.scale, rule.bias, *arrays)
    return jax.tree.map(np.asarray, out)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


CASES = {
    "plain, negative scale": {"scale": -0.7, "dim": 64},
    "bias, padding rows, later shard": {"bias": True, "pads": 9, "offset": 1000},
    "bias and softcap": {"bias": True, "softcap": 3.0, "pads": 70, "queries": 130, "rows": 136},
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_forward_sums_match_dense_float64(name: str) -> None:
    case = make(**CASES[name])
    got = interpret(forward, case, with_expected=True)
    rest = without_labels(case)
    terms = np.exp(rest - got.m[:, None].astype(np.float64))
    assert np.all(got.m >= rest.max(1) - 1e-5)
    np.testing.assert_allclose(got.l_minus, terms.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(np.isneginf(got.s_y), ~case.here)
    index = np.flatnonzero(case.here)
    np.testing.assert_allclose(got.s_y[index], case.dense[index, case.local[index]], atol=2e-5)
    expected = (terms * case.slope) @ np.asarray(case.items, np.float64)
    assert relative(got.o_minus, expected) < 3e-3  # coefficients are rounded to bf16


@interpreted
def test_forward_without_expected_vector_gives_the_same_sums() -> None:
    case = make(bias=True)
    short, full = (interpret(forward, case, with_expected=e) for e in (False, True))
    assert short.o_minus is None
    for a, b in zip(short[:2], full[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@interpreted
def test_forward_does_not_depend_on_tiles_and_splits() -> None:
    case = make(queries=40, rows=264)
    one = interpret(forward, case, with_expected=True)
    wide = Tiles(forward=128, forward_stages=3, grad=64, grad_stages=2, turns=False, processors=1)
    two = interpret(forward, case, with_expected=True, tiles=wide)
    scale = np.exp(two.m - one.m)
    np.testing.assert_allclose(one.l_minus, two.l_minus * scale, rtol=1e-5)
    assert relative(one.o_minus, two.o_minus * scale[:, None]) < 3e-3
    np.testing.assert_allclose(one.s_y, two.s_y, rtol=1e-6)


@interpreted
def test_a_confident_label_does_not_drown_the_rest() -> None:
    case = make(scale=4.0)
    index = np.flatnonzero(case.here)
    rows = np.asarray(case.items, np.float32)[case.local[index]]
    h = np.asarray(case.queries, np.float32)
    h[index] = rows * 6 / np.linalg.norm(rows, axis=1, keepdims=True) ** 2
    case = case._replace(queries=jnp.asarray(h, jnp.bfloat16))
    dense = 4.0 * np.asarray(case.queries, np.float64) @ np.asarray(case.items, np.float64).T
    rest = without_labels(case._replace(dense=dense))
    share = 1 - 1 / (1 + np.exp(rest[index] - dense[index, case.local[index]][:, None]).sum(1))
    assert np.median(share) < 1e-4  # the labels do have nearly all of the probability
    got = interpret(forward, case, with_expected=True)
    terms = np.exp(rest - got.m[:, None].astype(np.float64))
    expected = terms @ np.asarray(case.items, np.float64)
    np.testing.assert_allclose(got.l_minus, terms.sum(1), rtol=2e-5)
    error = np.abs(got.o_minus - expected).max(1) / np.abs(expected).max(1)
    assert error[index].max() < 6e-3


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_item_gradient_matches_dense_float64(name: str) -> None:
    case = make(**CASES[name])
    count = len(case.local)
    rng = np.random.default_rng(1)
    weight, at_label = rng.normal(size=(2, count))  # of both signs
    weight[::5] = 0
    lse = np.log(np.exp(case.dense).sum(1))
    d_items, d_bias = interpret(item_grad, case, lse, weight, at_label)
    c = weight[:, None] * np.exp(case.dense - lse[:, None]) * case.slope
    index = np.flatnonzero(case.here)
    c[index, case.local[index]] = at_label[index]
    expected = float(case.scores.scale) * c.T @ np.asarray(case.queries, np.float64)
    assert relative(d_items, expected) < 5e-3
    if case.scores.bias is None:
        assert d_bias is None
    else:
        np.testing.assert_allclose(d_bias, c.sum(0), atol=2e-5)
    pads = np.isneginf(case.dense[0])
    assert not d_items[pads].any()


@interpreted
def test_loss_and_its_gradients_through_the_public_function() -> None:
    case = make(queries=33, bias=True)
    targets = jnp.clip(case.targets, 0, 135)
    params = plgpu.InterpretGPUParams()
    backend = dataclasses.replace(
        BACKEND, refuses=lambda problem: None,
        forward=functools.partial(forward, tiles=SMALL, interpret=params),
        item_grad=functools.partial(item_grad, tiles=SMALL, interpret=params))
    weights = jnp.linspace(-1.0, 2.0, 33)

    def streamed(h: Any, w: Any, b: Any) -> Any:
        loss, lse = softmax_loss(h, w, targets, bias=b, backend=backend)
        return jnp.sum(weights * loss) + 1e-2 * jnp.sum(lse ** 2)

    def dense(h: Any, w: Any, b: Any) -> Any:
        logits = h @ w.T + b
        lse = jax.nn.logsumexp(logits, axis=1)
        loss = lse - logits[jnp.arange(33), targets]
        return jnp.sum(weights * loss) + 1e-2 * jnp.sum(lse ** 2)

    arguments = (case.queries, case.items, case.scores.bias)
    value, grads = jax.jit(jax.value_and_grad(streamed, (0, 1, 2)))(*arguments)
    exact = jax.value_and_grad(dense, (0, 1, 2))(*(a.astype(jnp.float32) for a in arguments))
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    for got, want in zip(grads, exact[1], strict=True):
        assert relative(np.asarray(got, np.float64), np.asarray(want)) < 1e-2


def sgd(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
    return rows - hyper * grads, state + jnp.sum(grads, axis=1)


@interpreted
def test_update_is_the_optimizer_step_on_the_whole_gradient() -> None:
    case = make(rows=328, offset=100, queries=40)
    rng = np.random.default_rng(2)
    lse = np.log(np.exp(case.dense).sum(1))
    weight, at_label = rng.normal(size=(2, 40))
    ids = np.array([3, 100, 101, 101, 101, 300, 427, 427, 2**31 - 1], np.int32)
    extra = rng.normal(size=(ids.size, 32)).astype(np.float32)
    sparse = SparseRows(jnp.asarray(ids), jnp.asarray(extra))

    def step(rows_at_a_time: int, seed: int | None) -> Any:
        def fold(h: Any, w: Any, y: Any, *rest: Any, **keywords: Any) -> Any:
            return item_update(
                h, w, jnp.ones(len(w)), y, *rest, update=sgd, hyper=jnp.float32(0.5),
                sparse=sparse, seed=None if seed is None else jnp.uint32(seed),
                rows_at_a_time=rows_at_a_time, **keywords)

        return interpret(fold, case, lse, weight, at_label)

    items, state, d_bias = step(128, None)
    grads = interpret(item_grad, case, lse, weight, at_label)[0].copy()
    for row, grad in zip(ids - 100, extra, strict=True):
        if 0 <= row < 328:
            grads[row] += grad
    want = np.asarray(case.items, np.float32) - 0.5 * grads
    assert d_bias is None
    np.testing.assert_allclose(items.astype(np.float32), want, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(state, 1 + grads.sum(1), atol=1e-5)

    rounded, other = step(128, 5), step(256, 5)
    np.testing.assert_array_equal(rounded[0], other[0])  # bits do not depend on the blocks
    assert (rounded[0] != items).any()
    np.testing.assert_allclose(rounded[0].astype(np.float32), want, rtol=2**-7, atol=1e-6)


S = jax.ShapeDtypeStruct
N, V = 200, 1000


def lowered(fold: Callable[..., Any], dim: int, vectors: int, *, bias: bool = False,
            softcap: float | None = None, **keywords: Any) -> str:
    """StableHLO for CUDA of one fold."""
    def run(h: Any, w: Any, y: Any, scale: Any, b: Any, *rest: Any) -> Any:
        return fold(h, w, y, *rest, Scores(scale, b if bias else None, V - 3, 0, softcap),
                    **keywords)

    shapes = [S((N, dim), jnp.bfloat16), S((V, dim), jnp.bfloat16), S((N,), jnp.int32),
              S((), jnp.float32), S((V,), jnp.float32), *[S((N,), jnp.float32)] * vectors]
    return jax.jit(run).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def check(text: str) -> None:
    assert "@mosaic_gpu" in text
    assert f"tensor<{N}x{V}x" not in text and f"tensor<{V}x{N}x" not in text
    assert not re.search(rf"<{V + 24}x\d+xbf16>", text)  # the table is not padded


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_every_variant_lowers_for_cuda(dim: int) -> None:
    check(lowered(forward, dim, 0, with_expected=True))
    check(lowered(forward, dim, 0, with_expected=False, bias=True, softcap=9.0))
    check(lowered(item_grad, dim, 3))
    check(lowered(item_grad, dim, 3, bias=True, softcap=9.0))


@pytest.mark.parametrize("dim", [96, 224])
def test_odd_widths_lower_for_cuda(dim: int) -> None:
    check(lowered(forward, dim, 0, with_expected=True, bias=True, softcap=9.0))
    check(lowered(item_grad, dim, 3, bias=True))


def test_update_lowers_with_one_gradient_block_and_no_second_table() -> None:
    def fold(h: Any, w: Any, y: Any, lse: Any, weight: Any, at: Any, rule: Any) -> Any:
        return item_update(h, w, jnp.zeros(V), y, lse, weight, at, rule, update=sgd,
                           hyper=jnp.float32(0.1), sparse=None, seed=jnp.uint32(1),
                           rows_at_a_time=256)

    text = lowered(fold, 64, 3)
    check(text)
    assert "tensor<256x64xf32>" in text
    assert f"tensor<{V}x64xf32>" not in text


def test_loss_and_gradient_lower_inside_shard_map() -> None:
    backend = dataclasses.replace(BACKEND, refuses=lambda problem: None)
    mesh = jax.make_mesh((2,), ("items",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def loss(h: Any, w: Any, y: Any, b: Any) -> Any:
        def local(h: Any, w: Any, y: Any, b: Any) -> Any:
            return softmax_loss(h, w, y, bias=b, axis_name="items", backend=backend)[0].sum()
        specs = (P(), P("items"), P(), P("items"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(h, w, y, b)

    shapes = (S((N, 64), jnp.bfloat16), S((V + 24, 64), jnp.bfloat16), S((N,), jnp.int32),
              S((V + 24,), jnp.float32))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1, 3)))
        text = step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") >= 2


def test_update_lowers_inside_shard_map() -> None:
    mesh = jax.make_mesh((2,), ("items",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def local(h: Any, w: Any, y: Any, loss: Any, seed: Any) -> Any:
        sparse = SparseRows(jnp.arange(N, dtype=jnp.int32), h)
        return softmax_item_update(
            w, jnp.zeros_like(w[:, 0], jnp.float32), h, y, loss, loss, loss, loss, update=sgd,
            hyper=jnp.float32(0.1), sparse=sparse, seed=seed, axis_name="items",
            backend=dataclasses.replace(
                BACKEND, refuses=lambda problem: None,
                item_update=functools.partial(item_update, rows_at_a_time=256)))[:2]

    step = jax.jit(jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("items"), P(), P(), P()),
        out_specs=(P("items"), P("items"))))
    shapes = (S((N, 64), jnp.bfloat16), S((2 * V, 64), jnp.bfloat16), S((N,), jnp.int32),
              S((N,), jnp.float32), S((), jnp.uint32))
    check(step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text())


FITS = Problem("softmax_loss", "gpu", 1024, 8000, 64, "bfloat16", "bfloat16")


@pytest.mark.parametrize(("change", "reason"), [
    ({"platform": "cpu"}, "Hopper"),
    ({"op": "top_k"}, "top_k"),
    ({"item_dtype": "float32"}, "float32"),
    ({"item_dtype": "float16"}, "float16"),
    ({"query_dtype": "float32"}, "cast the queries"),
    ({"dim": 48}, "48"),
    ({"dim": 512}, "512"),
    ({"num_rows": 8001}, "8001"),
    ({"num_rows": 64}, "64"),
])
def test_refuses_what_it_cannot_do_and_says_why(change: dict[str, Any], reason: str) -> None:
    assert reason in str(refuses(dataclasses.replace(FITS, **change)))


def test_takes_bias_and_softcap() -> None:
    assert refuses(dataclasses.replace(FITS, has_bias=True, has_softcap=True)) is None


def test_label_lists_name_each_tile_with_a_label_once() -> None:
    rng = np.random.default_rng(0)
    group, tile = rng.integers(0, 6, 50), rng.integers(0, 4, 50)
    hits = label_hits(jnp.asarray(group, jnp.int32), jnp.asarray(tile, jnp.int32), 5)
    for g in range(5):
        mine = np.asarray(hits.tiles)[int(hits.starts[g]):int(hits.starts[g + 1])]
        np.testing.assert_array_equal(mine, np.unique(tile[group == g]))
    assert hits.tiles.shape == (51,)


@pytest.mark.parametrize("dim", range(32, 257, 32))
def test_buffers_fit_into_shared_memory(dim: int) -> None:
    tiles = choose_tiles(dim)
    limit = 227 * 1024 - 1024  # of one block on Hopper, less barriers and alignment
    kept, staged = 128 * dim * 2, 128 * out_columns(dim) * 4
    forward_ring = tiles.forward_stages * tiles.forward * (2 * dim + 4)
    grad_ring = tiles.grad_stages * tiles.grad * (2 * dim + 8)
    assert kept + staged + forward_ring + 128 * 4 * 4 < limit
    assert kept + staged + grad_ring + 128 * 4 < limit
    assert min(tiles.forward_stages, tiles.grad_stages) >= 2


@pytest.mark.parametrize(("blocks", "tiles"), [(64, 7813), (8, 782), (1, 3), (1, 1), (300, 40)])
def test_splits_fill_the_processors(blocks: int, tiles: int) -> None:
    splits = choose_splits(blocks, tiles, 132)
    assert 1 <= splits <= tiles
    waves = -(-blocks * splits // 132)
    assert waves * -(-tiles // splits) <= 1.35 * max(blocks * tiles / 132, 1)


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_the_gradient_of_an_update_s_step_stays_in_the_cache_of_the_gpu(dim: int) -> None:
    rows = rows_of_a_step(dim, processors=132)
    assert rows % (132 * 128) == 0  # whole waves
    assert 8 * 2**20 <= 4 * dim * rows <= 17 * 2**20
