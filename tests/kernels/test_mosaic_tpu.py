"""The TPU kernels, interpreted on CPU, compute what the reference computes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from marks import slow_but

from rec_jax.kernels import reference, rounding
from rec_jax.kernels.exclusion import excluded_pairs
from rec_jax.kernels.mosaic_tpu.backend import BACKEND, make_backend
from rec_jax.kernels.mosaic_tpu.gather import gather_rows
from rec_jax.kernels.mosaic_tpu.tiles import stored_features_first
from rec_jax.kernels.primitives import Backend, Excluded, Problem, Scores, SparseRows
from rec_jax.kernels.softmax import softmax_loss

Array = jax.Array

TPU = make_backend(interpret=True)
STRICT = make_backend(interpret=pltpu.InterpretParams(detect_races=True))
ORACLE = reference.BACKEND
OFFSET = 1000
SHAPES = {  # N, V, d; several tiles of queries and rows, none of them full
    "features_first": (40, 300, 16),
    "rows_first": (40, 300, 128),
    "odd": (37, 259, 13),
}
RULES = {"plain": (None, False), "capped_and_biased": (3.0, True)}
cases = pytest.mark.parametrize(
    ("shape", "rule_name", "dtype"),
    [("features_first", "capped_and_biased", jnp.bfloat16),
     ("rows_first", "capped_and_biased", jnp.float32),
     ("odd", "capped_and_biased", jnp.float32),
     pytest.param("features_first", "plain", jnp.float32, marks=pytest.mark.slow),
     pytest.param("rows_first", "plain", jnp.bfloat16, marks=pytest.mark.slow)])


class Data:
    """Inputs of every fold; some labels lie on other shards, three rows pad the table."""

    def __init__(self, shape: tuple[int, int, int], rule_name: str = "plain",
                 dtype: Any = jnp.float32) -> None:
        count, rows, dim = shape
        draw = np.random.default_rng(7)
        self.queries = jnp.asarray(draw.normal(size=(count, dim)), dtype)
        self.items = jnp.asarray(draw.normal(size=(rows, dim)) * 3 / dim**0.5, dtype)
        targets = draw.integers(OFFSET, OFFSET + rows, count)
        targets[:3] = [OFFSET - 1, OFFSET + rows, OFFSET + rows - 1][:count]
        self.targets = jnp.asarray(targets, jnp.int32)
        self.softcap, biased = RULES[rule_name]
        self.bias = jnp.asarray(draw.normal(size=rows), jnp.float32) if biased else None
        self.num_items = OFFSET + rows - 3
        self.lse = jnp.asarray(draw.uniform(4, 6, count), jnp.float32)
        self.weight, self.label_weight = jnp.asarray(draw.normal(size=(2, count)), jnp.float32)
        ids = np.sort(draw.integers(OFFSET - 5, OFFSET + rows + 5, 170))
        self.sparse = SparseRows(jnp.asarray(ids, jnp.int32),
                                 jnp.asarray(draw.normal(size=(170, dim)), jnp.float32))
        self.state = (jnp.asarray(draw.uniform(size=rows), jnp.float32),
                      jnp.asarray(draw.normal(size=(rows, dim)), jnp.float32))
        seen = jnp.asarray(draw.integers(OFFSET - 2, OFFSET + rows, (count, 6)), jnp.int32)
        self.excluded = excluded_pairs(seen, self.targets, count)

    def rule(self, bias: Array | None) -> Scores:
        return Scores(jnp.float32(0.7), bias, self.num_items, OFFSET, self.softcap)


def ask(backend: Backend, fold: str, data: Data, *arrays: Any, **static: Any) -> Any:
    """One fold of one backend, compiled as a whole."""
    @jax.jit
    def run(bias: Array | None, *arrays: Any) -> Any:
        return getattr(backend, fold)(*arrays, data.rule(bias), **static)

    return run(data.bias, *arrays)


def assert_close(ours: Any, theirs: Any, dtype: Any = jnp.float32) -> None:
    """Equal up to the rounding of the type; infinities equal exactly."""
    tolerance = 2e-2 if dtype == jnp.bfloat16 else 2e-5
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.max(np.abs(y[np.isfinite(y)]), initial=1e-30)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


def momentum_adagrad(rows: Array, grads: Array, state: Any, hyper: Array) -> tuple[Array, Any]:
    """A row optimizer with one number a row, and one a entry."""
    total, moved = state
    total = total + jnp.mean(grads * grads, axis=-1)
    moved = 0.9 * moved + grads
    return rows - hyper * moved * jax.lax.rsqrt(total + 0.1)[:, None], (total, moved)


@cases
def test_forward_gives_the_sums_of_the_reference(shape: str, rule_name: str, dtype: Any) -> None:
    data = Data(SHAPES[shape], rule_name, dtype)
    arrays = (data.queries, data.items, data.targets)
    ours = ask(TPU, "forward", data, *arrays, with_expected=True)
    theirs = ask(ORACLE, "forward", data, *arrays, with_expected=True)
    factor = jnp.exp(ours.m - theirs.m)
    assert_close((ours.l_minus * factor, ours.s_y), (theirs.l_minus, theirs.s_y))
    assert_close(ours.o_minus * factor[:, None], theirs.o_minus, dtype)
    assert np.isneginf(np.asarray(ours.s_y[:3])).all()  # labels that are no items here


def test_forward_without_the_expected_vector_gives_the_same_sums() -> None:
    data = Data(SHAPES["features_first"])
    arrays = (data.queries, data.items, data.targets)
    full = ask(TPU, "forward", data, *arrays, with_expected=True)
    short = ask(TPU, "forward", data, *arrays, with_expected=False)
    assert short.o_minus is None
    assert_close(short, full._replace(o_minus=None))


@cases
def test_item_grad_is_that_of_the_reference(shape: str, rule_name: str, dtype: Any) -> None:
    data = Data(SHAPES[shape], rule_name, dtype)
    arrays = (data.queries, data.items, data.targets, data.lse, data.weight, data.label_weight)
    ours, theirs = (ask(backend, "item_grad", data, *arrays) for backend in (TPU, ORACLE))
    assert_close(ours, theirs, dtype)
    assert not np.asarray(ours[0][-3:]).any()  # rows that pad the table


@cases
def test_item_update_is_that_of_the_reference(shape: str, rule_name: str, dtype: Any) -> None:
    data = Data(SHAPES[shape], rule_name, dtype)

    def run(backend: Backend) -> Any:
        @jax.jit
        def step(bias: Array | None, hyper: Array, seed: Array, sparse: SparseRows) -> Any:
            assert backend.item_update is not None
            return backend.item_update(
                data.queries, data.items, data.state, data.targets, data.lse, data.weight,
                data.label_weight, data.rule(bias), update=momentum_adagrad, hyper=hyper,
                sparse=sparse, seed=seed)

        return step(data.bias, jnp.float32(0.1), jnp.uint32(3), data.sparse)

    assert_close(run(TPU), run(ORACLE), dtype)


@pytest.mark.parametrize("shape", ["features_first", "rows_first"])
def test_bf16_rows_are_rounded_by_the_hash_of_their_global_ids(shape: str) -> None:
    data = Data(SHAPES[shape], dtype=jnp.bfloat16)
    nothing = jnp.zeros_like(data.lse)

    def shift(rows: Array, grads: Array, state: Any, hyper: Any) -> tuple[Array, Any]:
        return rows + 0.00123, state

    def rounded(seed: Array | None) -> Any:
        assert TPU.item_update is not None
        return TPU.item_update(
            data.queries, data.items, (), data.targets, data.lse, nothing, nothing,
            data.rule(None), update=shift, hyper=None, sparse=None, seed=seed)[0]

    ids = OFFSET + jnp.arange(data.items.shape[0])
    values = data.items.astype(jnp.float32) + 0.00123
    seed = jnp.uint32(11)
    np.testing.assert_array_equal(
        jax.jit(rounded)(seed), rounding.store_rows(values, jnp.bfloat16, ids, seed))
    np.testing.assert_array_equal(jax.jit(rounded)(None), values.astype(jnp.bfloat16))


def test_a_state_that_is_no_matrix_is_refused() -> None:
    data = Data((3, 5, 4))
    assert TPU.item_update is not None
    with pytest.raises(ValueError, match=r"state has a leaf of shape \(5, 2, 2\)"):
        TPU.item_update(
            data.queries, data.items, jnp.zeros((5, 2, 2)), data.targets, data.lse, data.weight,
            data.label_weight, data.rule(None), update=momentum_adagrad, hyper=None, sparse=None,
            seed=None)


@cases
def test_ranks_are_those_of_the_reference(shape: str, rule_name: str, dtype: Any) -> None:
    data = Data(SHAPES[shape], rule_name, dtype)
    arrays = (data.queries, data.items)
    s_y = ask(TPU, "label_scores", data, *arrays, data.targets)
    assert_close(s_y, ask(ORACLE, "label_scores", data, *arrays, data.targets))
    own = ask(TPU, "forward", data, *arrays, data.targets, with_expected=False).s_y
    np.testing.assert_allclose(s_y, own, rtol=1e-6)
    # Halfway between scores, so that no rounding decides.
    between = jnp.where(jnp.isfinite(s_y), s_y, 0.0) + 1e-4
    ours, theirs = (ask(backend, "rank_count", data, *arrays, between, data.excluded)
                    for backend in (TPU, ORACLE))
    np.testing.assert_array_equal(ours, theirs)
    assert 0 < int(ours.max()) < data.items.shape[0]


def test_a_copy_of_the_target_elsewhere_in_the_table_counts_against_it() -> None:
    data = Data(SHAPES["features_first"])
    twins = data.items.at[150:290].set(data.items[5:145])
    targets = OFFSET + jnp.arange(40, dtype=jnp.int32) * 3 + 6
    excluded = excluded_pairs(None, targets, 40)
    s_y = ask(TPU, "label_scores", data, data.queries, twins, targets)
    count = ask(TPU, "rank_count", data, data.queries, twins, s_y, excluded)
    above = ask(TPU, "rank_count", data, data.queries, twins, jnp.nextafter(s_y, jnp.inf),
                excluded)
    np.testing.assert_array_equal(count, above + 1)


def test_a_score_that_is_nan_counts_against_the_target() -> None:
    data = Data(SHAPES["features_first"])
    items = data.items.at[17].set(jnp.nan)
    best = jnp.full(40, 1e9)
    excluded = excluded_pairs(None, jnp.full(40, OFFSET, jnp.int32), 40)
    count = ask(TPU, "rank_count", data, data.queries, items, best, excluded)
    np.testing.assert_array_equal(count, np.ones(40))


@pytest.mark.parametrize("k", slow_but([130], [1, 130]))
@cases
def test_top_k_is_that_of_the_reference(shape: str, rule_name: str, dtype: Any, k: int) -> None:
    data = Data(SHAPES[shape], rule_name, dtype)
    excluded = data.excluded if k > 1 else None

    def best(backend: Backend) -> tuple[Array, Array]:
        @jax.jit
        def run(bias: Array | None) -> tuple[Array, Array]:
            assert backend.top_k is not None
            return backend.top_k(data.queries, data.items, k, excluded, data.rule(bias))

        return run(data.bias)

    (scores, ids), (their_scores, their_ids) = best(TPU), best(ORACLE)
    assert_close(scores, their_scores)
    np.testing.assert_array_equal(ids, their_ids)


def test_top_k_breaks_ties_by_the_lower_id_and_says_where_candidates_end() -> None:
    data = Data((5, 300, 16))
    items = jnp.ones_like(data.items)
    nobody = Excluded(jnp.zeros(3, jnp.int32), OFFSET + jnp.asarray([0, 2, 280], jnp.int32))
    assert TPU.top_k is not None
    scores, ids = TPU.top_k(data.queries, items, 299, nobody, data.rule(None))
    all_ids = OFFSET + np.arange(297)
    np.testing.assert_array_equal(ids[0, :294], np.delete(all_ids, [0, 2, 280]))
    np.testing.assert_array_equal(ids[1, :297], all_ids)
    assert (ids[0, 294:] == -1).all() and np.isneginf(np.asarray(scores[0, 294:])).all()


def test_a_row_that_is_no_item_may_hold_anything() -> None:
    data = Data(SHAPES["features_first"], "capped_and_biased")
    broken = data.items.at[-3:].set(jnp.nan)
    arrays = (data.queries, data.targets)
    for fold, rest in (
        ("forward", {"with_expected": True}),
        ("item_grad", {}),
    ):
        more = () if fold == "forward" else (data.lse, data.weight, data.label_weight)
        clean, dirty = (ask(TPU, fold, data, arrays[0], table, arrays[1], *more, **rest)
                        for table in (data.items, broken))
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_bf16_table_may_meet_f32_queries() -> None:
    data = Data(SHAPES["features_first"])
    data.items = data.items.astype(jnp.bfloat16)
    arrays = (data.queries, data.items, data.targets, data.lse, data.weight, data.label_weight)
    assert_close(*(ask(backend, "item_grad", data, *arrays) for backend in (TPU, ORACLE)))


def test_one_query_and_one_row() -> None:
    data = Data((1, 5, 1))
    arrays = (data.queries, data.items, data.targets)
    ours, theirs = (ask(backend, "forward", data, *arrays, with_expected=True)
                    for backend in (TPU, ORACLE))
    factor = jnp.exp(ours.m - theirs.m)
    assert_close((ours.l_minus * factor, ours.o_minus * factor[:, None], ours.s_y),
                 (theirs.l_minus, theirs.o_minus, theirs.s_y))


def test_a_shard_without_items_adds_nothing() -> None:
    data = Data((8, 64, 16))
    data.num_items = OFFSET
    parts = ask(TPU, "forward", data, data.queries, data.items, data.targets,
                with_expected=True)
    assert np.isfinite(np.asarray(parts.m)).all()
    assert not np.asarray(parts.l_minus).any() and not np.asarray(parts.o_minus).any()


def test_kernels_have_no_races_and_read_nothing_that_was_not_written() -> None:
    """The strict interpreter copies by DMA and fills fresh memory with NaN.

    It needs whole tiles of rows: of a ragged table it returns the padded copy.
    """
    data = Data((20, 256, 16), "capped_and_biased")

    def run(backend: Backend) -> Any:
        @jax.jit
        def both(bias: Array | None) -> Any:
            assert backend.forward is not None and backend.item_update is not None
            parts = backend.forward(data.queries, data.items, data.targets, data.rule(bias),
                                    with_expected=True)
            return parts, backend.item_update(
                data.queries, data.items, data.state, data.targets, data.lse, data.weight,
                data.label_weight, data.rule(bias), update=momentum_adagrad,
                hyper=jnp.float32(0.1), sparse=data.sparse, seed=None)

        return both(data.bias)

    strict, plain = run(STRICT), run(TPU)
    assert_close(strict, plain)


def test_two_runs_give_the_same_bits() -> None:
    data = Data(SHAPES["features_first"], "capped_and_biased", jnp.bfloat16)
    arrays = (data.queries, data.items, data.targets, data.lse, data.weight, data.label_weight)
    first, second = (ask(TPU, "item_grad", data, *arrays) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_give_the_loss_and_the_gradients_of_the_whole_table() -> None:
    data = Data((24, 256, 16))
    targets = data.targets % 240
    mesh = Mesh(np.array(jax.devices()[:2]), ("items",))

    def total(queries: Array, items: Array, axis: str | None) -> Array:
        loss, lse = softmax_loss(queries, items, targets, num_items=250, axis_name=axis,
                                 backend=TPU if axis else ORACLE)
        return jnp.sum(loss * data.weight + lse * data.label_weight)

    # The interpreter does not type its values for shard_map; compiled kernels are checked.
    sharded = jax.jit(jax.shard_map(
        jax.value_and_grad(functools.partial(total, axis="items"), argnums=(0, 1)), mesh=mesh,
        in_specs=(P(), P("items")), out_specs=(P(), (P(), P("items"))), check_vma=False))
    whole = jax.value_and_grad(functools.partial(total, axis=None), argnums=(0, 1))
    assert_close(sharded(data.queries, data.items), whole(data.queries, data.items))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gathered_rows_are_the_rows(dtype: Any) -> None:
    items = jnp.arange(300 * 16, dtype=jnp.float32).reshape(300, 16).astype(dtype)
    ids = jnp.asarray([0, 299, 127, 128, 5, 5, 256], jnp.int32)
    assert stored_features_first(*items.shape)
    np.testing.assert_array_equal(gather_rows(items, ids, interpret=True), items[ids])


def test_the_order_of_a_table_is_the_one_that_pads_less() -> None:
    assert stored_features_first(10**6, 64) and stored_features_first(10**6, 200)
    assert not stored_features_first(10**6, 128) and not stored_features_first(7, 64)


def test_the_backend_says_what_it_cannot_do() -> None:
    def problem(platform: str = "tpu", dim: int = 64, dtype: str = "float32") -> Problem:
        return Problem("softmax_loss", platform, 1024, 10**6, dim, dtype, dtype)

    assert BACKEND.refuses(problem()) is None
    assert BACKEND.refuses(problem(platform="cpu")) == "it runs on tpu, not on cpu"
    assert TPU.refuses(problem(platform="cpu")) is None
    assert "float16" in (BACKEND.refuses(problem(dtype="float16")) or "")
    assert "VMEM" in (BACKEND.refuses(problem(dim=20000)) or "")
