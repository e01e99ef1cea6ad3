"""Ranks and best items are those of the sorted scores; ties, exclusions and NaN included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but

from rec_jax.kernels import Backend, target_rank, top_k
from rec_jax.kernels.exclusion import UNUSED, excluded_pairs
from rec_jax.kernels.xla.backend import make_backend
from rec_jax.kernels.xla.rank import Best, take_best
from rec_jax.kernels.xla.tiles import Sizes

ranks = jax.jit(target_rank, static_argnames=("num_items", "backend"))
best = jax.jit(top_k, static_argnames=("k", "num_items", "backend"))


def whole_numbers(count: int, rows: int, dim: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Queries, items and targets whose scores are small integers: exact, with many ties."""
    draw = np.random.default_rng(seed)
    return (draw.integers(-2, 3, (count, dim)).astype(np.float32),
            draw.integers(-2, 3, (rows, dim)).astype(np.float32),
            draw.integers(0, rows, count).astype(np.int32))


def ragged(count: int, rows: int, seed: int = 0) -> tuple[Any, list[np.ndarray]]:
    """Seen items of each query, some none, some repeated, as (offsets, items) and as lists."""
    draw = np.random.default_rng(seed)
    lists = [draw.integers(0, rows, draw.integers(0, 40)) for _ in range(count)]
    lists[0] = np.zeros(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int32)
    items = np.concatenate([*lists, [3, 3]]).astype(np.int32)  # two unused entries at the end
    return (jnp.asarray(offsets), jnp.asarray(items)), lists


def padded(lists: list[np.ndarray]) -> np.ndarray:
    """The same lists as `[N, S]` with -1."""
    out = np.full((len(lists), 40), -1, np.int32)
    for row, seen in zip(out, lists, strict=True):
        row[: len(seen)] = seen
    return out


def plain_rank(scores: np.ndarray, targets: np.ndarray, lists: list[np.ndarray]) -> np.ndarray:
    """By definition: 1 + candidates other than the target that are not worse."""
    out = []
    for score, target, seen in zip(scores, targets, lists, strict=True):
        candidates = np.setdiff1d(np.arange(len(score)), np.append(seen, target))
        out.append(1 + np.sum(~(score[candidates] < score[target])))
    return np.array(out)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ranks_equal_those_of_all_scores(ranking: Backend, dtype: Any) -> None:
    queries, items, targets = whole_numbers(45, 500, 6)
    exclude, lists = ragged(45, 500)
    targets = targets % 490
    bias = np.random.default_rng(2).integers(-1, 2, 500).astype(np.float32)
    found = ranks(jnp.asarray(queries, dtype), jnp.asarray(items, dtype), targets,
                  exclude=exclude, bias=bias, num_items=490, logit_scale=2.0, backend=ranking)
    scores = (2 * queries @ items.T + bias)[:, :490]
    np.testing.assert_array_equal(found, plain_rank(scores, targets, lists))


def test_an_excluded_target_is_ranked_all_the_same(ranking: Backend) -> None:
    queries, items, targets = whole_numbers(45, 500, 6)
    np.testing.assert_array_equal(
        ranks(queries, items, targets, exclude=jnp.asarray(targets[:, None]), backend=ranking),
        ranks(queries, items, targets, backend=ranking))


def test_both_forms_of_exclusion_agree(ranking: Backend) -> None:
    queries, items, targets = whole_numbers(45, 500, 6)
    exclude, lists = ragged(45, 500)
    found = ranks(queries, items, targets, exclude=exclude, backend=ranking)
    np.testing.assert_array_equal(found, plain_rank(queries @ items.T, targets, lists))
    np.testing.assert_array_equal(
        found, ranks(queries, items, targets, exclude=jnp.asarray(padded(lists)),
                     backend=ranking))


def test_pairs_are_sorted_distinct_and_end_with_the_unused() -> None:
    offsets, items = jnp.array([0, 3, 3, 5]), jnp.array([4, 1, 4, 1, 9, 7])
    pairs = excluded_pairs((offsets, items), jnp.array([1, 2, 9]), 3)
    found = list(zip(pairs.item.tolist(), pairs.query.tolist(), strict=True))
    assert found[:5] == [(1, 0), (1, 2), (2, 1), (4, 0), (9, 2)]
    assert all(item == UNUSED for item, _ in found[5:])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(7, 1000, 64), (40, 1111, 50), (64, 130, 8)])
def test_the_target_has_the_bits_that_the_count_sees(shape: tuple[int, int, int],
                                                     ranking: Backend, dtype: Any) -> None:
    # All rows are equal, so every item ties with the target, wherever both stand in a tile.
    count, rows, dim = shape
    draw = np.random.default_rng(0)
    queries = jnp.asarray(draw.normal(size=(count, dim)), dtype)
    items = jnp.broadcast_to(jnp.asarray(draw.normal(size=dim), dtype), (rows, dim))
    targets = jnp.asarray(draw.integers(0, rows, count), jnp.int32)
    found = ranks(queries, items, targets, logit_scale=0.37, backend=ranking)
    np.testing.assert_array_equal(found, rows)


def test_tiles_do_not_change_ranks() -> None:
    draw = np.random.default_rng(0)
    queries = draw.normal(size=(32, 24)).astype(np.float32)
    items = draw.normal(size=(3000, 24)).astype(np.float32)
    items[2000:2100] = items[:100]
    targets = draw.integers(0, 100, 32).astype(np.int32)
    found = [ranks(queries, items, targets, backend=make_backend(sizes))
             for sizes in (Sizes(1 << 20, 64, 2048), Sizes(1 << 20, 64, 128),
                           Sizes(1 << 11, 32, 64))]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    exact = (queries.astype(np.float64) @ items.astype(np.float64).T)
    np.testing.assert_array_equal(
        found[0], plain_rank(exact, targets, [np.zeros(0, np.int64)] * 32))


def test_a_model_that_scores_all_alike_ranks_last_and_so_does_nan(ranking: Backend) -> None:
    targets = jnp.array([0, 150, 299])
    same = ranks(jnp.zeros((3, 4)), jnp.ones((300, 4)), targets, backend=ranking)
    np.testing.assert_array_equal(same, 300)
    lost = ranks(jnp.full((3, 4), jnp.nan), jnp.ones((300, 4)), targets, backend=ranking)
    np.testing.assert_array_equal(lost, 300)
    items = np.zeros((300, 4), np.float32)
    items[[5, 200]] = np.nan  # two diverged rows are ahead of everything
    items[targets] = 1.0
    found = ranks(jnp.ones((3, 4)), jnp.asarray(items), targets, backend=ranking)
    np.testing.assert_array_equal(found, 3 + 2)


def test_a_target_that_is_no_item_ranks_behind_all_candidates(ranking: Backend) -> None:
    found = ranks(jnp.ones((3, 4)), -jnp.ones((300, 4)), jnp.array([-1, 250, 999]),
                  exclude=jnp.full((3, 1), 7), num_items=200, backend=ranking)
    np.testing.assert_array_equal(found, 200)


@pytest.mark.parametrize("k", slow_but([5, 400], [1, 5, 400]))
def test_best_items_are_those_of_a_stable_sort(k: int, choosing: Backend) -> None:
    queries, items, _ = whole_numbers(45, 300, 6)
    exclude, lists = ragged(45, 300)
    scores, ids = best(queries, items, k=k, exclude=exclude, num_items=290, backend=choosing)
    assert scores.shape == ids.shape == (45, k)
    for row, seen, got_scores, got_ids in zip(queries @ items.T, lists, scores, ids,
                                              strict=True):
        candidates = np.setdiff1d(np.arange(290), seen)
        order = candidates[np.argsort(-row[candidates], kind="stable")][:k]
        np.testing.assert_array_equal(got_ids[: len(order)], order)
        np.testing.assert_array_equal(got_scores[: len(order)], row[order])
        np.testing.assert_array_equal(got_ids[len(order):], -1)
        np.testing.assert_array_equal(got_scores[len(order):], -np.inf)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_tiles_join_the_best_as_a_stable_sort_would(k: int) -> None:
    draw = np.random.default_rng(k)
    join = jax.jit(take_best)
    for s in (draw.integers(0, 4, (9, 1024)), draw.normal(size=(9, 1024)),
              np.where(draw.random((9, 1024)) < 0.99, -np.inf, 1.0)):
        scores = jnp.asarray(s, jnp.float32)
        best = Best(jnp.full((9, k), -jnp.inf), jnp.full((9, k), -1, jnp.int32))
        for begin in (0, 512):
            ids = jnp.arange(begin, begin + 512, dtype=jnp.int32)
            best = join(best, scores[:, begin:begin + 512], ids)
        expected, where = jax.lax.top_k(scores, k)
        np.testing.assert_array_equal(best.scores, expected)
        np.testing.assert_array_equal(best.ids, jnp.where(expected == -jnp.inf, -1, where))


def test_ranks_hold_no_array_of_queries_times_items() -> None:
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
        ((256, 16), jnp.float32), ((20000, 16), jnp.float32), ((256,), jnp.int32))]
    backend = make_backend(Sizes(1 << 16, 256, 256))
    compiled = jax.jit(partial(target_rank, backend=backend)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 20000 * 4 / 10


@pytest.mark.parametrize("exclude", [
    jnp.zeros((4, 2), jnp.int32), (jnp.zeros(3, jnp.int32), jnp.zeros(9, jnp.int32))])
def test_exclusions_of_another_batch_are_refused(exclude: Any) -> None:
    with pytest.raises(ValueError, match="exclude has"):
        target_rank(jnp.ones((3, 4)), jnp.ones((9, 4)), jnp.zeros(3, jnp.int32), exclude=exclude)


def test_numpy_arrays_are_taken() -> None:
    queries, items, targets = whole_numbers(3, 70, 6)
    exclude, lists = ragged(3, 70)
    found = target_rank(queries, items, targets.astype(np.int64),
                        exclude=(np.asarray(exclude[0]), np.asarray(exclude[1])))
    np.testing.assert_array_equal(found, plain_rank(queries @ items.T, targets, lists))
    _, ids = top_k(queries, items, 3, exclude=padded(lists))
    assert ids.shape == (3, 3)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        top_k(jnp.ones((3, 4)), jnp.ones((9, 4)), 0)


def test_a_product_of_a_tile_does_not_depend_on_where_a_row_stands(
        make_case: Callable[..., Any]) -> None:
    # What `label_scores` of the XLA backend rests on.
    for count, dim, dtype in ((100, 50, jnp.float32), (64, 64, jnp.bfloat16)):
        case = make_case(count, 512, dim, dtype=dtype)
        order = np.random.default_rng(0).permutation(512)

        @jax.jit
        def product(queries: Any, items: Any) -> Any:
            return jax.lax.dot_general(queries, items, (((1,), (1,)), ((), ())),
                                       preferred_element_type=jnp.float32)

        straight = np.asarray(product(case.queries, case.items))
        mixed = np.asarray(product(case.queries, case.items[order]))
        np.testing.assert_array_equal(straight[:, order], mixed)
