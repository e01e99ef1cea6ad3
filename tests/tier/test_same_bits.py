"""A table whose rows lie elsewhere trains to the bits of one that lies on the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import MeanSoFar, make_step, modes_of, new_state, tables_of

from rec_jax.data.batches import prefetch
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import Encoder
from rec_jax.objectives import bce, gbce, in_batch, sampled_softmax
from rec_jax.tables import RowOptimizerConfig, TableConfig
from rec_jax.tables.places import Places
from rec_jax.tables.row_map import spread
from rec_jax.tables.table import padded_size
from rec_jax.tables.unique import NO_ID
from rec_jax.tier.cache_plan import CachePlan
from rec_jax.train.mode import Setting
from rec_jax.train.state import to_items
from rec_jax.train.step import place_batch
from rec_jax.train.tiers import Tiers, tiered_table

COUNT, DIM, LENGTH, ROWS, STEPS = 1500, 8, 5, 8, 12
READS = 2 * ROWS * LENGTH + 20
OBJECTIVES: dict[str, Any] = {
    "uniform": sampled_softmax.Config(count=20, backend="xla"),
    "log_uniform": sampled_softmax.Config(count=20, negatives="log_uniform", backend="xla"),
    "in_batch": in_batch.Config(backend="xla"),
    "bce": bce.Config(count=20, shared=True),
    "gbce": gbce.Config(count=2),
}


class Case(NamedTuple):
    """share: of the cache."""

    optimizer: str
    dtype: str
    objective: str
    share: float
    lookahead: int
    data: int = 1
    items: int = 1
    tied: bool = True
    where: str = "host"


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        items = np.minimum(random.zipf(1.2, (1, ROWS, LENGTH + 1)) - 1, COUNT - 1).astype(np.int32)
        there = np.broadcast_to(np.arange(LENGTH) < LENGTH - 1, (1, ROWS, LENGTH))
        yield {"items": np.where(there, items[..., :-1], 0),
               "targets": np.where(there, items[..., 1:], -1), "segments": there.astype(np.int32),
               "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), there.shape),
               "log_q": np.where(there, -np.log1p(items[..., 1:]), 0).astype(np.float32)}, ROWS


def made(case: Case):
    config = TableConfig(dim=DIM, dtype=case.dtype, tied=case.tied,
                         optimizer=RowOptimizerConfig(kind=case.optimizer))
    mesh = make_mesh(MeshConfig(case.data, case.items))
    encoder, params = cast(Encoder, MeanSoFar()), {"kernel": jnp.eye(DIM)}
    optimizer = optax.adam(1e-2)
    step = make_step(encoder, OBJECTIVES[case.objective], optimizer, config, "sparse", mesh=mesh,
                     rate=optax.constant_schedule(3e-2))
    setting = Setting(encoder, OBJECTIVES[case.objective], tables_of(config),
                      modes_of(config, "sparse"), mesh, jnp.float32)
    state = new_state(params, optimizer, config, "sparse", COUNT, mesh, row_map=spread(COUNT))
    return config, mesh, step, setting, state


def leaves(items: dict[str, Any]) -> dict[str, bytes]:
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
            for path, leaf in jax.tree.leaves_with_path(items)}


@functools.cache
def on_devices(case: Case) -> tuple[dict[str, bytes], list[float]]:
    _, mesh, step, _, state = made(case)
    losses = []
    for batch, _ in batches():
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics.loss))
    return leaves(to_items(state)), losses


def elsewhere(case: Case) -> tuple[dict[str, bytes], list[float]]:
    config, mesh, step, setting, state = made(case)
    slots = max(min(COUNT // case.items, READS), int(COUNT * case.share) // case.items)
    tables, tiered = dict(state.tables), {}
    for name in tables:
        tables[name], tiered[name] = tiered_table(
            config, COUNT, 0, mesh, name=name, over=state.items.over, row_map=spread(COUNT),
            slots=slots, where=case.where)
    state, tiers = state._replace(tables=tables), Tiers(tiered, setting, COUNT)

    def check(loaded: Any) -> None:
        assert all(len(each.planned.moves) == case.items for each in loaded.values())

    return trained_elsewhere(step, state, tiers, batches(), mesh, case.lookahead, check)


def trained_elsewhere(step: Any, state: Any, tiers: Tiers, batches: Any, mesh: Any, lookahead: int,
                      check: Callable[[Any], None] = lambda loaded: None,
                      ) -> tuple[dict[str, bytes], list[float]]:
    """What is stored after all batches, and their losses; check: of what each step loads."""
    feed, losses = prefetch(tiers.feed(batches, state.key, 0), lookahead), []
    try:
        for batch, _, loaded in feed:
            check(loaded)
            state, places = tiers.enter(state, loaded)
            state, metrics = step(state, place_batch(batch, mesh), places)
            losses.append(float(metrics.loss))
        tiers.flush(state)
        items = jax.tree.map(lambda leaf: leaf.read(0, leaf.shape[0]) if hasattr(leaf, "read")
                             else leaf, tiers.items(to_items(state)))
        return leaves(items), losses
    finally:
        tiers.close()
        feed.close()


def case_of(text: str) -> Case:
    """`row_adam bf16 uniform 5% 2`, and a mesh such as `2x2`, `untied`, `disk` behind it."""
    optimizer, dtype, objective, share, lookahead, *rest = text.split()
    data, items = map(int, next((word for word in rest if "x" in word), "1x1").split("x"))
    return Case(optimizer, dtype, objective, int(share[:-1]) / 100, int(lookahead), data, items,
                "untied" not in rest, "disk" if "disk" in rest else "host")


FAST = ["adagrad bf16 log_uniform 20% 2 disk", "row_adam bf16 uniform 5% 8",
        "sgd f32 log_uniform 20% 0 untied"]
PAIRWISE = [  # with those, every two of optimizer, dtype, negatives, cache, lookahead and placement
    "adam bf16 log_uniform 5% 8 2x2 disk", "adagrad f32 uniform 5% 0", "adam f32 uniform 100% 2",
    "adagrad f32 uniform 5% 0 1x2", "adagrad bf16 log_uniform 100% 8",
    "row_adam bf16 uniform 5% 2", "row_adam f32 log_uniform 20% 8 1x4 untied",
    "row_adam bf16 uniform 100% 0 disk", "adam f32 uniform 20% 0",
    "sgd f32 log_uniform 5% 0 disk", "sgd bf16 uniform 20% 8", "sgd bf16 uniform 100% 2",
]


@pytest.mark.parametrize("text", [
    *FAST, *(pytest.param(text, marks=pytest.mark.slow) for text in PAIRWISE)])
def test_rows_state_and_encoder_have_the_same_bits(text: str) -> None:
    check(case_of(text))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_drawn_cases_have_the_same_bits(seed: int) -> None:
    draw = np.random.default_rng(seed)

    def one(*values: Any) -> Any:
        return values[draw.integers(len(values))]

    data, items = one((1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1), (1, 8))
    check(Case(one("sgd", "adagrad", "row_adam", "adam"), one("f32", "bf16"),
               one(*OBJECTIVES), one(0.05, 0.2, 1.0), one(0, 1, 2, 8), data, items,
               one(True, False), one("host", "disk")))


def check(case: Case) -> None:
    expected, expected_losses = on_devices(case._replace(share=1.0, lookahead=0, where="host"))
    found, losses = elsewhere(case)
    assert losses == expected_losses and len(losses) == STEPS
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == value, path


def test_rows_leave_the_cache_of_these_cases_and_come_back() -> None:
    """What the cases above show is something only where this holds; negatives add to it."""
    plan = CachePlan(padded_size(COUNT), READS)
    moves = [plan.plan(np.unique(np.concatenate([
        spread(COUNT).rows(part[part >= 0]) for part in (batch["items"], batch["targets"])])))
        for batch, _ in batches()]
    assert sum(len(each.moves[0].out) for each in moves) > 30
    assert any(each.after >= 0 for each in moves)


def test_a_row_that_is_not_where_the_plan_says_gives_no_number() -> None:
    case = case_of("sgd f32 uniform 100% 0")
    _, mesh, step, _, state = made(case)
    none = jnp.full(64, NO_ID, jnp.int32)
    batch, _ = next(iter(batches()))
    _, metrics = step(state, place_batch(batch, mesh), {"items": Places(none, none)})
    assert np.isnan(float(metrics.loss))
