"""The fused update equals a dense optimizer step, in place, without a gradient in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rec_jax.kernels import Backend, SparseRows, softmax_item_update, softmax_loss
from rec_jax.kernels.native import backend as native
from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.xla.backend import make_backend
from rec_jax.kernels.xla.tiles import Sizes


def adagrad(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
    """Adagrad with one accumulator an entry, as optax does it."""
    total = state["sum"] + jnp.square(grads)
    scaled = jnp.where(total > 0, grads * jax.lax.rsqrt(total + 1e-7), 0.0)
    return rows - hyper["lr"] * scaled, {"sum": total}


def sgd(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
    return rows - hyper["lr"] * grads, state


HYPER = {"lr": jnp.float32(0.1)}


def objective(items: Any, case: Any, backend: Any) -> Any:
    loss, lse = softmax_loss(jnp.asarray(case.queries), items, jnp.asarray(case.targets),
                             backend=backend, **case.rule())
    return jnp.sum(case.g * loss) + jnp.sum(case.z * lse)


@partial(jax.jit, static_argnames=("update", "backend", "case_rule"))
def fused(items: Any, state: Any, case: Any, bias: Any, sparse: Any, seed: Any, *,
          update: Any, backend: Any, case_rule: Any) -> Any:
    queries, targets, g, z = case
    rule = dict(case_rule, bias=bias)
    loss, lse = softmax_loss(queries, items, targets, backend=backend, **rule)
    return softmax_item_update(items, state, queries, targets, loss, lse, g, z, update=update,
                               hyper=HYPER, sparse=sparse, seed=seed, backend=backend, **rule)


def run(case: Any, items: Any, state: Any, backend: Any, update: Any, sparse: Any = None,
        seed: Any = None) -> Any:
    rule = case.rule()
    bias = rule.pop("bias")
    return fused(items, state, (case.queries, case.targets, case.g, case.z), bias, sparse, seed,
                 update=update, backend=backend, case_rule=tuple(rule.items()))


def test_steps_equal_optax_on_the_dense_gradient(backend: Backend,
                                                 make_case: Callable[..., Any]) -> None:
    case = make_case(40, 300, 16, bias=True, softcap=4.0, num_items=290, scale=1.5)
    items = jnp.asarray(case.items)
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.1)
    dense, dense_state = items, optimizer.init(items)
    state: Any = {"sum": jnp.full(items.shape, 0.1)}
    gradient = jax.jit(jax.grad(partial(objective, case=case, backend="reference")))
    for _ in range(5):
        items, state, d_bias = run(case, items, state, backend, adagrad)
        updates, dense_state = optimizer.update(gradient(dense), dense_state)
        dense = optax.apply_updates(dense, updates)
    np.testing.assert_allclose(items, dense, rtol=1e-6, atol=1e-6)
    assert d_bias.shape == (300,)


def test_it_sees_the_gradient_of_the_loss(backend: Backend, make_case: Callable[..., Any],
                                          dense: Callable[..., Any]) -> None:
    case = make_case(40, 300, 16, bias=True, spread=2.0)
    items, _, d_bias = run(case, jnp.asarray(case.items), None, backend, sgd)
    expected = dense(case)
    atol = 1e-5 * np.abs(expected.d_items).max()
    np.testing.assert_allclose((case.items - np.asarray(items)) / 0.1, expected.d_items,
                               rtol=1e-5, atol=atol + 1e-6)
    np.testing.assert_allclose(d_bias, expected.d_bias, rtol=1e-5,
                               atol=1e-5 * np.abs(expected.d_bias).max())


def test_sparse_gradients_join_and_foreign_ids_do_not(backend: Backend,
                                                      make_case: Callable[..., Any]) -> None:
    case = make_case(40, 300, 16)
    ids = np.sort(np.concatenate([np.repeat(7, 600), [-1, 0, 0, 127, 128, 299, 300, 2**31 - 1]]))
    grads = np.random.default_rng(0).normal(size=(len(ids), 16)).astype(np.float32)
    items = jnp.asarray(case.items)
    plain = run(case, items, None, backend, sgd).items
    joined = run(case, items, None, backend, sgd,
                 SparseRows(jnp.asarray(ids, jnp.int32), jnp.asarray(grads))).items
    expected = np.zeros((300, 16), np.float64)
    valid = (ids >= 0) & (ids < 300)
    np.add.at(expected, ids[valid], grads[valid])
    np.testing.assert_allclose((plain - joined) / 0.1, expected, rtol=1e-4, atol=1e-4)


def test_every_row_is_updated_once_and_padding_rows_see_a_gradient_of_zero(
        backend: Backend, make_case: Callable[..., Any]) -> None:
    case = make_case(40, 300, 16, num_items=250)

    def count(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
        return rows, (state[0] + 1, jnp.sum(jnp.abs(grads), axis=1))

    items = jnp.asarray(case.items)
    new, (times, size), _ = run(case, items, (jnp.zeros(300, jnp.int32), jnp.ones(300)),
                                backend, count)
    np.testing.assert_array_equal(times, 1)
    np.testing.assert_array_equal(new, items)
    assert np.all(np.asarray(size[250:]) == 0) and np.all(np.asarray(size[:250]) > 0)


def test_bf16_rows_move_by_the_exact_step_on_average(backend: Backend,
                                                     make_case: Callable[..., Any]) -> None:
    case = make_case(16, 130, 8)
    items = jnp.asarray(case.items, jnp.bfloat16)
    exact_case = case.with_(items=np.asarray(items, np.float32))
    exact = np.asarray(run(exact_case, items.astype(jnp.float32), None, "reference", sgd).items)
    seeds = 256
    drawn = np.stack([np.asarray(run(case, items, None, backend, sgd, None,
                                     jnp.uint32(seed)).items, np.float32)
                      for seed in range(seeds)])
    spacing = np.abs(exact) * 2.0**-7 + 1e-30  # of bf16; a coin between neighbours: sigma <= 1/2
    error = np.abs(drawn.mean(axis=0) - exact)
    assert np.all(error <= 5 * 0.5 * spacing / np.sqrt(seeds) + 1e-6)
    assert np.mean(error <= 4 * 0.5 * spacing / np.sqrt(seeds)) > 0.999
    assert np.any(drawn[0] != drawn[1])


def test_a_seed_gives_the_same_bits_whatever_the_tiles(make_case: Callable[..., Any]) -> None:
    case = make_case(16, 300, 8)
    items = jnp.asarray(case.items, jnp.bfloat16)

    def still(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
        return rows * 1.001, state  # independent of the rounding of the gradient

    bits = [np.asarray(run(case, items, None, backend, still, None, jnp.uint32(3)).items,
                       np.float32)
            for backend in (make_backend(Sizes(1 << 10, 16, 64)), "xla", "reference")]
    np.testing.assert_array_equal(bits[0], bits[1])
    np.testing.assert_array_equal(bits[0], bits[2])


@pytest.mark.parametrize("name", ["xla", "native"])
def test_the_table_is_updated_in_place_without_a_second_one(name: str) -> None:
    count, rows, dim = 64, 20000, 16
    if name == "native" and (reason := native_build.problem()):
        pytest.skip(f"no native backend: {reason}")
    backend = (make_backend(Sizes(1 << 12, 64, 64)) if name == "xla"
               else native.make_backend(rows=64))

    def step(items: Any, state: Any, queries: Any, targets: Any, sparse: Any) -> Any:
        loss, lse = softmax_loss(queries, items, targets, backend=backend)
        ones = jnp.ones_like(loss)
        return softmax_item_update(items, state, queries, targets, loss, lse, ones, 0 * ones,
                                   update=adagrad, hyper=HYPER, sparse=sparse, backend=backend)

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    sparse = SparseRows(shape(500, dtype=jnp.int32), shape(500, dim))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(
        shape(rows, dim), {"sum": shape(rows, dim)}, shape(count, dim),
        shape(count, dtype=jnp.int32), sparse).compile()
    table = rows * dim * 4
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * table
    assert memory.temp_size_in_bytes < table / 2
    text = compiled.as_text()
    assert "input_output_alias" in text
    assert max(map(_elements, re.findall(r"\w+\[([\d,]+)\]", text))) == rows * dim
    assert not re.search(rf"\[{rows},{dim}\]\S* copy\(", text)


def _elements(shape: str) -> int:
    return int(np.prod([int(size) for size in shape.split(",")]))


def test_loss_and_gradient_of_queries_hold_no_array_of_queries_times_items() -> None:
    count, rows, dim = 256, 20000, 16
    backend = make_backend(Sizes(1 << 16, 256, 256))

    def step(queries: Any, items: Any, targets: Any) -> Any:
        return jax.value_and_grad(
            lambda queries: jnp.sum(softmax_loss(queries, items, targets, backend=backend)[0])
        )(queries)

    compiled = jax.jit(step).lower(
        jax.ShapeDtypeStruct((count, dim), jnp.float32),
        jax.ShapeDtypeStruct((rows, dim), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32)).compile()
    sizes = list(map(_elements, re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())))
    assert rows * dim in sizes  # the pattern does see the arrays
    assert max(sizes) == rows * dim
    assert compiled.memory_analysis().temp_size_in_bytes < count * rows * 4 / 10
