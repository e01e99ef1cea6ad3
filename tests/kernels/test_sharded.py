"""Rows on 1, 2, 4 or 8 devices give the results of one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from marks import slow_but

from rec_jax.kernels import (
    Backend,
    SparseRows,
    softmax_item_update,
    softmax_loss,
    target_rank,
    top_k,
)

MESHES = [(1, 1), (1, 2), (2, 4), (1, 8)]


def mesh_of(data: int, items: int) -> Mesh:
    devices = np.array(jax.devices()[: data * items]).reshape(data, items)
    return Mesh(devices, ("data", "items"))


def on_mesh(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


@pytest.fixture(scope="module")
def case(make_case: Callable[..., Any]) -> Any:
    return make_case(16, 320, 8, bias=True, softcap=4.0, scale=1.3, num_items=301, spread=2.0)


@pytest.mark.parametrize("shape", slow_but(MESHES[-2:], MESHES))
def test_loss_and_all_gradients(shape: tuple[int, int], streaming: Backend, case: Any,
                                dense: Callable[..., Any]) -> None:
    def local(queries: Any, items: Any, bias: Any, scale: Any, targets: Any) -> Any:
        return softmax_loss(queries, items, targets, bias=bias, logit_scale=scale, softcap=4.0,
                            num_items=301, axis_name="items", backend=streaming)

    whole = on_mesh(local, mesh_of(*shape),
                    (P("data"), P("items"), P("items"), P(), P("data")), P("data"))

    def objective(*arguments: Any) -> Any:
        loss, lse = whole(*arguments, jnp.asarray(case.targets))
        return jnp.sum(case.g * loss) + jnp.sum(case.z * lse), (loss, lse)

    arguments = (case.queries, case.items, case.bias, np.float32(case.scale))
    grads, (loss, lse) = jax.grad(objective, (0, 1, 2, 3), has_aux=True)(
        *map(jnp.asarray, arguments))
    expected = dense(case)
    for found, name in zip((loss, lse, *grads),
                           ("loss", "lse", "d_queries", "d_items", "d_bias", "d_scale"),
                           strict=True):
        want = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(found, want, rtol=2e-6, atol=3e-6 * np.abs(want).max(),
                                   err_msg=name)


@pytest.mark.parametrize("shape", [(1, 2), (1, 8)])
def test_gradients_inside_an_unchecked_shard_map(shape: tuple[int, int], streaming: Backend,
                                                 case: Any, dense: Callable[..., Any]) -> None:
    def local(queries: Any, items: Any, bias: Any) -> Any:
        def objective(queries: Any, items: Any, bias: Any) -> Any:
            loss, lse = softmax_loss(
                queries, items, jnp.asarray(case.targets), bias=bias, logit_scale=case.scale,
                softcap=4.0, num_items=301, axis_name="items", backend=streaming)
            return jnp.sum(case.g * loss) + jnp.sum(case.z * lse)

        return jax.grad(objective, (0, 1, 2))(queries, items, bias)

    found = jax.jit(jax.shard_map(
        local, mesh=mesh_of(*shape), in_specs=(P(), P("items"), P("items")),
        out_specs=(P(), P("items"), P("items")), check_vma=False))(
            case.queries, case.items, case.bias)
    expected = dense(case)
    for value, want in zip(found, (expected.d_queries, expected.d_items, expected.d_bias),
                           strict=True):
        np.testing.assert_allclose(value, want, rtol=2e-6, atol=3e-6 * np.abs(want).max())


def sgd(rows: Any, grads: Any, state: Any, hyper: Any) -> Any:
    return rows - grads, state + 1


@pytest.mark.parametrize("items", slow_but([8], [1, 4, 8]))
def test_the_update_of_shards_is_the_update_of_the_table(items: int, streaming: Backend,
                                                         case: Any) -> None:
    sparse = SparseRows(jnp.array([0, 39, 40, 40, 319], jnp.int32), jnp.ones((5, 8)))

    def local(rows: Any, state: Any, axis_name: str | None) -> Any:
        rule: dict[str, Any] = {"logit_scale": 1.3, "num_items": 301, "axis_name": axis_name,
                                "backend": streaming}
        queries, targets = jnp.asarray(case.queries), jnp.asarray(case.targets)
        loss, lse = softmax_loss(queries, rows, targets, **rule)
        return softmax_item_update(rows, state, queries, targets, loss, lse,
                                   jnp.asarray(case.g), jnp.asarray(case.z), update=sgd,
                                   sparse=sparse, **rule)[:2]

    state = jnp.zeros(320, jnp.int32)
    expected = jax.jit(lambda rows, state: local(rows, state, None))(case.items, state)
    found = on_mesh(lambda rows, state: local(rows, state, "items"), mesh_of(1, items),
                    (P("items"), P("items")), (P("items"), P("items")))(case.items, state)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(found[1], 1)


@pytest.mark.parametrize("shape", slow_but([(2, 4)], [(1, 1), (2, 4), (1, 8)]))
def test_ranks_and_best_items(shape: tuple[int, int], tiny_tiles: Backend,
                              ranking: Backend) -> None:
    draw = np.random.default_rng(0)
    queries = draw.integers(-2, 3, (16, 6)).astype(np.float32)
    items = draw.integers(-2, 3, (320, 6)).astype(np.float32)
    targets = draw.integers(0, 301, 16).astype(np.int32)
    seen = draw.integers(-1, 301, (16, 9)).astype(np.int32)

    def both(axis_name: str | None, backend: Any, best: Any) -> Callable[..., Any]:
        def run(queries: Any, items: Any, targets: Any, seen: Any) -> Any:
            rule: dict[str, Any] = {"exclude": seen, "num_items": 301, "axis_name": axis_name}
            return (target_rank(queries, items, targets, **rule, backend=backend),
                    *top_k(queries, items, 50, **rule, backend=best))
        return run

    expected = jax.jit(both(None, "reference", "reference"))(queries, items, targets, seen)
    data = P("data")
    found = on_mesh(both("items", ranking, tiny_tiles), mesh_of(*shape),
                    (data, P("items"), data, data), data)(queries, items, targets, seen)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_no_collective_grows_with_the_table(tiny_tiles: Backend) -> None:
    rows, dim, count = 8 * 1024, 8, 16

    def local(queries: Any, items: Any, targets: Any) -> Any:
        def objective(queries: Any, items: Any) -> Any:
            return jnp.sum(softmax_loss(queries, items, targets, axis_name="items",
                                        backend=tiny_tiles)[0])
        return (*jax.grad(objective, (0, 1))(queries, items),
                target_rank(queries, items, targets, axis_name="items", backend=tiny_tiles))

    run = on_mesh(local, mesh_of(1, 8), (P(), P("items"), P()), (P(), P("items"), P()))
    text = run.lower(jax.ShapeDtypeStruct((count, dim), jnp.float32),
                     jax.ShapeDtypeStruct((rows, dim), jnp.float32),
                     jax.ShapeDtypeStruct((count,), jnp.int32)).compile().as_text()
    collectives = [line.split("metadata")[0] for line in text.splitlines()
                   if re.search(r"= .*(all-reduce|all-gather|all-to-all|collective)\S*\(", line)]
    assert collectives
    for line in collectives:
        for shape in re.findall(r"\w\d+\[([\d,]*)\]", line):
            sizes = [int(size) for size in shape.split(",") if size]
            assert np.prod(sizes, dtype=int) <= count * dim, line
