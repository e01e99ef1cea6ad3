"""The plan of a cache, against a simulation that does what it says, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.tier.cache_plan import NEVER, CachePlan

TOTAL = 384


def steps(seed: int, most: int, count: int = 60) -> list[np.ndarray]:
    """Rows of some steps: a few popular ones, and others by chance."""
    random = np.random.default_rng(seed)
    return [np.unique(np.concatenate([
        random.integers(0, 12, most // 2), random.integers(0, TOTAL, most // 2)]))
        for _ in range(count)]


@pytest.mark.parametrize(("slots", "shards"), [(24, 1), (40, 2), (128, 3), (30, 4), (384, 1)])
def test_every_row_of_a_step_is_in_its_slot_and_none_is_lost(slots: int, shards: int) -> None:
    plan = CachePlan(TOTAL, slots, shards)
    caches: list[dict[int, int]] = [{} for _ in range(shards)]  # slot -> row
    left: dict[int, int] = {}
    turned_out = 0
    for number, rows in enumerate(steps(slots, min(slots, 24))):
        planned = plan.plan(rows)
        assert planned.number == number
        needed = [left[row] for moves in planned.moves for row in moves.into.tolist()
                  if row in left]
        assert planned.after == max(needed, default=NEVER)
        for cache, moves in zip(caches, planned.moves, strict=True):
            for row, slot in zip(moves.out.tolist(), moves.out_slots.tolist(), strict=True):
                assert cache.pop(slot) == row and row not in rows
                left[row] = number
            for row, slot in zip(moves.into.tolist(), moves.into_slots.tolist(), strict=True):
                assert slot not in cache and row not in cache.values() and 0 <= slot < slots
                cache[slot] = row
            assert [cache[slot] for slot in moves.slots.tolist()] == moves.rows.tolist()
            turned_out += len(moves.out)
        named = [moves.rows + 0 for moves in planned.moves]
        assert np.concatenate(named).tolist() == rows.tolist()
        for shard, own in enumerate(named):
            assert all(shard == row // (TOTAL // shards) for row in own.tolist())
    assert (turned_out > 0) == (slots < TOTAL // shards)


def test_a_row_leaves_only_where_no_slot_is_free() -> None:
    plan = CachePlan(TOTAL, 10)
    assert not len(plan.plan(np.arange(7)).moves[0].out)
    assert not len(plan.plan(np.arange(5, 10)).moves[0].out)
    assert len(plan.plan(np.arange(10, 14)).moves[0].out) == 4


def test_rows_that_are_used_again_outlive_those_that_came_for_one_step() -> None:
    plan, popular = CachePlan(TOTAL, 16), np.arange(6)
    for step in range(40):
        once = 6 + (np.arange(5) + 5 * step) % (TOTAL - 6)
        planned = plan.plan(np.sort(np.concatenate([popular[step % 2::2], once])))
        if step > 4:
            assert not set(planned.moves[0].out.tolist()) & set(popular.tolist())


def test_two_plans_of_the_same_steps_are_the_same() -> None:
    one, other = CachePlan(TOTAL, 30, 2), CachePlan(TOTAL, 30, 2)
    for rows in steps(5, 24):
        for left, right in zip(one.plan(rows).moves, other.plan(rows).moves, strict=True):
            for part, same in zip(left, right, strict=True):
                assert part.tolist() == same.tolist()


def test_a_step_without_rows_moves_nothing() -> None:
    planned = CachePlan(TOTAL, 8, 2).plan(np.zeros(0, np.int64))
    assert planned.after == NEVER and all(not len(part) for part in planned.moves[0])


def test_a_step_that_needs_more_rows_than_there_are_slots_is_refused() -> None:
    with pytest.raises(InputError, match=r"9 rows of one shard, and its cache has room for 8"):
        CachePlan(TOTAL, 8, 2).plan(np.arange(9))
