"""The entropy of a softmax and its gradients, from the loss's own two passes, against dense f64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from marks import slow_but

from rec_jax.kernels import Backend, softmax_entropy, softmax_item_update
from rec_jax.kernels import dispatch as dispatching

MakeCase = Callable[..., Any]

CASES: dict[str, dict[str, Any]] = {
    "capped": {"softcap": 2.0, "scale": 1.5, "bias": True, "num_items": 500},
    "with a bias": {"bias": True, "scale": 1.5, "num_items": 500},
    "plain": {},
    "sharp": {"spread": 12.0},
    "bf16": {"dtype": jnp.bfloat16, "num_items": 500},
}


def weights(count: int) -> np.ndarray:
    """Cotangents of the entropies; some are 0."""
    found = np.random.default_rng(7).normal(size=count)
    found[1:3] = 0
    return found.astype(np.float32)


def by_definition(case: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Entropies, and the gradients of sum(g loss + z lse + e H) by queries, rows and bias; f64."""
    live = len(case.items) if case.num_items is None else case.num_items
    h, w = case.queries.astype(np.float64), case.items[:live].astype(np.float64)
    s, slope = case.scale * h @ w.T, np.float64(1.0)
    if case.bias is not None:
        s = s + case.bias[:live]
    if case.softcap is not None:
        bent = np.tanh(s / case.softcap)
        s, slope = case.softcap * bent, 1 - bent**2
    logs = s - np.logaddexp.reduce(s, axis=1)[:, None]
    p, label = np.exp(logs), np.arange(live) == case.targets[:, None]
    entropies = -np.sum(p * logs, axis=1)
    g, z, e = (x[:, None].astype(np.float64) for x in (case.g, case.z, weights(len(h))))
    c = (g * (p - label) + z * p - e * p * (logs + entropies[:, None])) * slope
    grads = [case.scale * c @ w, case.scale * c.T @ h, c.sum(axis=0)]
    spare = len(case.items) - live
    grads[1:] = [np.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1))) for x in grads[1:]]
    return entropies, grads


def found_of(case: Any, backend: Backend | str) -> tuple[Any, Any]:
    rule = case.rule()
    bias = jnp.zeros(len(case.items)) if rule.pop("bias") is None else jnp.asarray(case.bias)

    @jax.jit
    def both(queries: Any, rows: Any, bias: Any) -> Any:
        def total(queries: Any, rows: Any, bias: Any) -> Any:
            loss, lse, found = softmax_entropy(queries, rows, jnp.asarray(case.targets),
                                               bias=bias, backend=backend, **rule)
            return jnp.sum(case.g * loss + case.z * lse + weights(len(loss)) * found), found

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(queries, rows, bias)

    (_, found), grads = both(case.queries, case.items, bias)
    return found, grads


@pytest.mark.parametrize("name", slow_but("capped", CASES))
def test_value_and_gradients_are_the_dense_ones(name: str, make_case: MakeCase,
                                                streaming: Backend) -> None:
    agrees(name, make_case, streaming)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["capped", "sharp"])
def test_so_are_those_of_the_oracle_and_of_whole_tiles(name: str, make_case: MakeCase,
                                                       backend: Backend) -> None:
    agrees(name, make_case, backend)


def agrees(name: str, make_case: MakeCase, backend: Backend) -> None:
    case = make_case(70, 530, 6, **CASES[name])
    wanted, right = by_definition(case)
    found, grads = found_of(case, backend)
    bf16 = CASES[name].get("dtype") is not None
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
    for one, other in zip(grads, right, strict=True):
        rough = 1e-2 if bf16 else 3e-5
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=rough,
                                   atol=rough * np.max(np.abs(other)))


def test_a_policy_that_has_settled_keeps_its_small_entropy(streaming: Backend) -> None:
    """H is 1e-8 there, and - sum p log p of rounded p would be 0 or noise."""
    items = jnp.asarray([[25.0], [0.0], [1.0], [jnp.nan]] + [[0.5]] * 60)
    queries, bias = jnp.ones((2, 1)), jnp.zeros(64).at[3].set(-jnp.inf).at[4:].set(-jnp.inf)

    @jax.jit
    def both(queries: Any, targets: Any) -> Any:
        found, back = jax.vjp(lambda x: softmax_entropy(
            x, items, targets, bias=bias, backend=streaming)[2], queries)
        return found, back(jnp.ones(2))[0]

    found, grad = both(queries, jnp.asarray([0, -1]))  # the label, and none
    logs = np.asarray([25.0, 0.0, 1.0]) - np.logaddexp.reduce([25.0, 0.0, 1.0])
    wanted = -np.sum(np.exp(logs) * logs)
    slope = -np.sum(np.exp(logs) * (logs + wanted) * np.asarray([25.0, 0.0, 1.0]))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4)
    np.testing.assert_allclose(grad[0, 0], slope, rtol=1e-4)
    # Without a label log p of the best item is a difference of f32.
    np.testing.assert_allclose([found[1], grad[1, 0]], [wanted, slope], rtol=0.1)


def test_shards_add_up_and_an_update_takes_its_gradient(make_case: MakeCase) -> None:
    """Rows over four devices, one of which has padding alone, against one device in dense f64."""
    case = make_case(16, 64, 5, num_items=40, bias=True, scale=2.0)
    wanted, right = by_definition(case)
    mesh = Mesh(np.array(jax.devices()[:4]), ("items",))
    bias, e = jnp.asarray(case.bias), jnp.asarray(weights(16))

    def sgd(rows: Any, grads: Any, state: Any, rate: Any) -> Any:
        return rows - rate * grads, state

    def body(queries: Any, rows: Any, bias: Any) -> Any:
        rule = {"logit_scale": 2.0, "num_items": 40, "axis_name": "items", "backend": "xla"}
        targets = jnp.asarray(case.targets)

        def total(queries: Any) -> Any:
            loss, lse, found = softmax_entropy(queries, rows, targets, bias=bias, **rule)
            return jnp.sum(case.g * loss + case.z * lse + e * found), (loss, lse, found)

        grad, (loss, lse, found) = jax.grad(total, has_aux=True)(queries)
        moved = softmax_item_update(
            rows, (), queries, targets, loss, lse, jnp.asarray(case.g), jnp.asarray(case.z),
            update=sgd, of_entropy=(found, e), hyper=jnp.float32(1.0), bias=bias, **rule)
        return found, grad, moved.items, moved.d_bias

    found, d_queries, items, d_bias = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=(P(), P("items"), P("items")),
        out_specs=(P(), P(), P("items"), P("items"))))(case.queries, case.items, bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for one, other in zip((d_queries, case.items - items, d_bias), right, strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-5, atol=3e-5)


def test_a_query_without_items_has_no_entropy(tiny_tiles: Backend) -> None:
    found = jax.jit(lambda queries, items: softmax_entropy(
        queries, items, jnp.zeros(1, jnp.int32), num_items=0, backend=tiny_tiles)[2])(
        jnp.ones((1, 2)), jnp.ones((64, 2)))
    assert found[0] == 0


def test_a_backend_that_lacks_it_says_so_and_xla_is_taken() -> None:
    problem = dispatching.describe("softmax_entropy", jnp.zeros((8, 64)), jnp.zeros((64, 64)),
                                   bias=None, softcap=None, platform="tpu")
    name, refused = dispatching.explain(problem)
    assert name == "xla"
    assert refused == ["mosaic_tpu: it has no entropy_forward and no entropy_grad"]


def test_an_entropy_of_wrong_shapes_says_what_it_expected() -> None:
    with pytest.raises(ValueError, match=r"softmax_entropy: .* expected one width"):
        softmax_entropy(jnp.zeros((2, 3)), jnp.zeros((4, 5)), jnp.zeros(2, jnp.int32))
