"""The streamed softmax loss and its gradients equal the dense ones in f64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import Backend, softmax_loss
from rec_jax.kernels.xla.backend import make_backend
from rec_jax.kernels.xla.tiles import Sizes

NAMES = ("loss", "lse", "d_queries", "d_items", "d_bias", "d_scale")


@functools.partial(jax.jit, static_argnames=("softcap", "num_items", "backend"))
def run(queries: Any, items: Any, bias: Any, scale: Any, targets: Any, g: Any, z: Any, *,
        softcap: float | None, num_items: int | None, backend: Any) -> Any:
    """Gradients of sum(g loss + z lse), and (loss, lse)."""

    def objective(queries: Any, items: Any, scale: Any, bias: Any) -> Any:
        loss, lse = softmax_loss(queries, items, targets, bias=bias, logit_scale=scale,
                                 softcap=softcap, num_items=num_items, backend=backend)
        return jnp.sum(g * loss) + jnp.sum(z * lse), (loss, lse)

    return jax.grad(objective, (0, 1, 2) if bias is None else (0, 1, 2, 3), has_aux=True)(
        queries, items, scale, bias)


def solve(case: Any, backend: Any, dtype: Any = None) -> dict[str, np.ndarray]:
    """Results of the kernel under the names of the oracle."""
    bias = None if case.bias is None else jnp.asarray(case.bias)
    grads, values = run(
        jnp.asarray(case.queries, dtype), jnp.asarray(case.items, dtype), bias,
        jnp.float32(case.scale), case.targets, case.g, case.z, softcap=case.softcap,
        num_items=case.num_items, backend=backend)
    names = ("loss", "lse", "d_queries", "d_items", "d_scale", "d_bias")
    return {name: np.array(value, np.float64)
            for name, value in zip(names, (*values, *grads), strict=False)}


def assert_close(found: dict[str, np.ndarray], expected: Any, rtol: float = 1e-5) -> None:
    for name, value in found.items():
        want = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(value, want, rtol=rtol, atol=rtol * np.abs(want).max(),
                                   err_msg=name)


def test_products_of_bf16_stay_bf16_where_that_is_fast(tiny_tiles: Backend) -> None:
    def gradient(queries: Any, items: Any) -> Any:
        return jax.grad(lambda q, w: jnp.sum(softmax_loss(
            q, w, jnp.zeros(32, jnp.int32), backend=tiny_tiles)[0]), (0, 1))(queries, items)

    shapes = [jax.ShapeDtypeStruct((n, 16), jnp.bfloat16) for n in (32, 512)]
    products = {platform: [line.split(":")[-1] for line in jax.jit(gradient).trace(
        *shapes).lower(lowering_platforms=(platform,)).as_text().splitlines()
        if "dot_general" in line] for platform in ("cpu", "cuda")}
    assert all("bf16>" in line for line in products["cuda"])
    assert any("bf16>" not in line for line in products["cpu"])


SHAPES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "plain": ((33, 301, 64), {}),
    "one query, one item, one column": ((1, 1, 1), {}),
    "few rows, narrow": ((7, 127, 8), {"spread": 3.0}),
    "one row past a tile, softcap": ((5, 129, 32), {"softcap": 3.0, "spread": 4.0}),
    "bias and scale": ((64, 1003, 100), {"bias": True, "scale": 0.3, "spread": 5.0}),
    "bias, softcap, padded table": (
        (40, 300, 16), {"bias": True, "softcap": 2.0, "scale": 1.7, "num_items": 259}),
    "wide": ((3, 257, 256), {"num_items": 200}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_results_and_gradients_equal_the_dense_ones(
        name: str, backend: Backend, make_case: Callable[..., Any],
        dense: Callable[..., Any]) -> None:
    shape, options = SHAPES[name]
    case = make_case(*shape, **options)
    assert_close(solve(case, backend), dense(case))


def test_many_rows_and_queries_equal_the_dense_ones(make_case: Callable[..., Any],
                                                    dense: Callable[..., Any]) -> None:
    case = make_case(64, 10007, 24, spread=2.0)
    assert_close(solve(case, make_backend(Sizes(1 << 14, 48, 256))), dense(case))
    assert_close(solve(case, "xla"), dense(case))


@pytest.mark.parametrize("spread", [0.5, 30.0])
def test_bf16_is_as_exact_as_dense_products_of_bf16(
        spread: float, backend: Backend, make_case: Callable[..., Any],
        dense: Callable[..., Any]) -> None:
    case = make_case(33, 301, 64, spread=spread, dtype=jnp.bfloat16, num_items=300)
    expected = dense(case)
    case = case.with_(queries=np.asarray(case.queries, np.float32),
                      items=np.asarray(case.items, np.float32))
    simple = solve(case, "reference")
    found = solve(case, backend, jnp.bfloat16)
    for name, value in found.items():
        want = np.asarray(getattr(expected, name))
        rounding = 2.0**-8 if name in ("d_queries", "d_items") else 0.0
        allowed = 2 * (np.abs(simple[name] - want).max() + rounding * np.abs(want).max()
                       ) + 1e-5 * np.abs(want).max()
        assert np.abs(value - want).max() <= allowed, name


@pytest.mark.parametrize("miss", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_a_nearly_certain_label_keeps_exact_gradients(
        miss: float, streaming: Backend, make_case: Callable[..., Any],
        dense: Callable[..., Any]) -> None:
    case = make_case(8, 300, 32, spread=1.0)
    bias = np.zeros(300, np.float32)
    label = int(case.targets[0])
    rest = dense(case.with_(targets=np.full(8, label, np.int32)))
    bias[label] = float(np.mean(rest.loss)) - np.log(miss)  # p_y is about 1 - miss
    case = case.with_(targets=np.full(8, label, np.int32), bias=bias, z=np.zeros(8, np.float32),
                      g=np.ones(8, np.float32))
    expected = dense(case)
    assert miss / 30 < np.median(-np.expm1(-expected.loss)) < miss * 30
    found = solve(case, streaming)
    for name in ("loss", "d_queries"):
        want = getattr(expected, name)
        error = np.linalg.norm(found[name] - want) / np.linalg.norm(want)
        assert error < 1e-4, name
    error = np.linalg.norm(found["d_items"][label] - expected.d_items[label])
    assert error < 1e-4 * np.linalg.norm(expected.d_items[label])


@pytest.mark.parametrize("size", [5.0, 160.0, 640.0])
def test_large_scores_keep_a_distribution(size: float, backend: Backend,
                                          make_case: Callable[..., Any],
                                          dense: Callable[..., Any]) -> None:
    case = make_case(16, 301, 16, dtype=jnp.bfloat16)
    largest = np.abs(dense(case).scores).max()
    case = case.with_(scale=float(size / largest), g=np.zeros(16, np.float32),
                      z=np.ones(16, np.float32), bias=np.zeros(301, np.float32),
                      queries=np.asarray(case.queries, np.float32),
                      items=np.asarray(case.items, np.float32))
    # With g = 0 and z = 1 the gradient of the bias is the sum of the probabilities.
    found, expected = solve(case, backend, jnp.bfloat16), dense(case)
    tolerance = 1e-5 + size * 2.0**-22
    np.testing.assert_allclose(found["d_bias"].sum(), 16, rtol=tolerance)
    np.testing.assert_allclose(found["d_bias"], expected.d_bias, atol=3 * tolerance)
    np.testing.assert_allclose(found["lse"], expected.lse, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_bias_add_up_to_the_cotangents_of_lse(
        streaming: Backend, make_case: Callable[..., Any]) -> None:
    case = make_case(33, 301, 16, bias=True)
    found = solve(case, streaming)
    np.testing.assert_allclose(found["d_bias"].sum(), case.z.sum(dtype=np.float64), atol=2e-5)


def test_equal_scores_give_the_logarithm_of_the_number_of_items(backend: Backend) -> None:
    loss, lse = softmax_loss(jnp.zeros((3, 8)), jnp.ones((300, 8)), jnp.array([0, 7, 199]),
                             num_items=200, backend=backend)
    np.testing.assert_allclose(loss, np.log(200), rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(200), rtol=1e-6)


def test_a_bias_of_minus_infinity_takes_an_item_out(backend: Backend,
                                                    make_case: Callable[..., Any],
                                                    dense: Callable[..., Any]) -> None:
    case = make_case(9, 260, 8, bias=True)
    out = np.setdiff1d(np.arange(0, 260, 3), case.targets)
    case.bias[out] = -np.inf
    kept = np.setdiff1d(np.arange(260), out)
    less = case.with_(items=case.items[kept], bias=case.bias[kept],
                      targets=np.searchsorted(kept, case.targets))
    found, expected = solve(case, backend), dense(less)
    assert np.all(found["d_items"][out] == 0) and np.all(found["d_bias"][out] == 0)
    found["d_items"], found["d_bias"] = found["d_items"][kept], found["d_bias"][kept]
    assert_close(found, expected)


def test_garbage_in_padding_rows_changes_nothing(streaming: Backend,
                                                 make_case: Callable[..., Any]) -> None:
    case = make_case(9, 300, 8, num_items=200)
    clean = solve(case, streaming)
    items = case.items.copy()
    items[200:] = 1e6
    assert_close(solve(case.with_(items=items), streaming), type("Expected", (), clean), rtol=0)


def test_a_lonely_item_has_no_loss(backend: Backend) -> None:
    def total(queries: Any) -> Any:
        return jnp.sum(softmax_loss(queries, jnp.ones((70, 4)), jnp.array([0, 0]), num_items=1,
                                    backend=backend)[0])

    value, gradient = jax.value_and_grad(total)(jnp.ones((2, 4)))
    assert value == 0 and np.all(np.asarray(gradient) == 0)


def test_a_target_that_is_no_item_has_an_infinite_loss_and_a_finite_lse(
        backend: Backend) -> None:
    loss, lse = softmax_loss(jnp.zeros((3, 4)), jnp.ones((70, 4)), jnp.array([-1, 60, 500]),
                             num_items=50, backend=backend)
    assert np.all(np.isinf(loss))
    np.testing.assert_allclose(lse, np.log(50), rtol=1e-6)


def test_tiles_do_not_change_results(make_case: Callable[..., Any]) -> None:
    case = make_case(50, 1500, 16, bias=True, spread=3.0)
    one = solve(case, make_backend(Sizes(1 << 20, 64, 2048)))
    for sizes in (Sizes(1 << 12, 16, 64), Sizes(1 << 14, 48, 448)):
        other = solve(case, make_backend(sizes))
        for name in NAMES:
            scale = np.abs(one[name]).max()
            np.testing.assert_allclose(other[name], one[name], rtol=1e-6, atol=2e-6 * scale,
                                       err_msg=name)


def test_a_second_run_gives_the_same_bits(streaming: Backend,
                                          make_case: Callable[..., Any]) -> None:
    case = make_case(50, 700, 16, bias=True)
    first, second = solve(case, streaming), solve(case, streaming)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name])


def test_numpy_arrays_and_batches_of_batches_are_taken(make_case: Callable[..., Any]) -> None:
    case = make_case(4, 70, 8)
    loss, _ = softmax_loss(case.queries, case.items, case.targets.astype(np.int64))
    both = jax.vmap(lambda queries, targets: softmax_loss(queries, case.items, targets)[0])(
        np.stack([case.queries] * 2), np.stack([case.targets] * 2))
    np.testing.assert_allclose(both, np.stack([loss] * 2), rtol=1e-6)


def test_num_items_may_be_traced(streaming: Backend, make_case: Callable[..., Any]) -> None:
    case = make_case(9, 300, 8, num_items=200)

    def gradient(num_items: Any) -> Any:
        return jax.value_and_grad(lambda queries: jnp.sum(softmax_loss(
            queries, jnp.asarray(case.items), jnp.asarray(case.targets), num_items=num_items,
            backend=streaming)[0]))(jnp.asarray(case.queries))

    traced = jax.jit(gradient)(jnp.int32(200))
    fixed = jax.jit(lambda: gradient(200))()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), traced,
                 fixed)


def test_sampled_rows_with_a_uniform_correction_are_the_full_softmax(
        make_case: Callable[..., Any]) -> None:
    case = make_case(9, 300, 8)
    chosen = np.random.default_rng(1).permutation(300)
    where = np.argsort(chosen)[case.targets]
    # All 300 rows drawn with q = 1 / 300 each: the correction -log(k q) is 0 for all.
    sampled = softmax_loss(jnp.asarray(case.queries), jnp.asarray(case.items[chosen]),
                           jnp.asarray(where), bias=jnp.full(300, -np.log(300 / 300)))
    full = softmax_loss(jnp.asarray(case.queries), jnp.asarray(case.items),
                        jnp.asarray(case.targets))
    np.testing.assert_allclose(sampled[0], full[0], rtol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"queries": jnp.ones((3, 5))}, "one width"),
    ({"queries": jnp.ones((3, 4), jnp.int32)}, "expected float32 or bfloat16"),
    ({"targets": jnp.zeros(4, jnp.int32)}, r"expected \(3,\)"),
    ({"targets": jnp.zeros(3)}, "expected integers"),
    ({"bias": jnp.zeros(3)}, r"expected \(6,\)"),
    ({"softcap": 0.0}, "positive"),
    ({"items": jnp.ones((0, 4))}, "no axis of size 0"),
    ({"backend": "fast"}, "expected auto or one of"),
])
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": jnp.ones((3, 4)), "items": jnp.ones((6, 4)),
                                 "targets": jnp.zeros(3, jnp.int32)} | change
    with pytest.raises(ValueError, match=message):
        softmax_loss(**arguments)
