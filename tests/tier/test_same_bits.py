"""A table whose rows lie in host memory trains to the bits of one that lies on the devices."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import make_step, modes_of, new_state, tables_of

from rec_jax.data.batches import prefetch
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import bce, gbce, in_batch, sampled_softmax
from rec_jax.tables import ITEMS, RowOptimizerConfig, TableConfig
from rec_jax.tables.row_map import spread
from rec_jax.train.mode import Setting
from rec_jax.train.state import TrainState, to_items
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
    encoder, params = build_encoder(
        transformer.Config(layers=1, heads=1, hidden=2, dropout=0.1), dim=DIM, length=LENGTH,
        causal=True, precision="f32", seed=0)
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
            slots=slots)
    state, tiers = state._replace(tables=tables), Tiers(tiered, setting, COUNT)
    feed = prefetch(tiers.feed(batches(), state.key, 0), case.lookahead)
    losses = []
    try:
        for batch, _, loaded in feed:
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


CASES = [Case("adagrad", "f32", "uniform", 0.05, 0), Case("sgd", "bf16", "log_uniform", 0.2, 8),
         Case("row_adam", "bf16", "uniform", 0.05, 2), Case("adam", "f32", "log_uniform", 1.0, 2),
         Case("adam", "bf16", "bce", 0.05, 8, 2, 2), Case("row_adam", "f32", "gbce", 0.2, 2, 1, 4, False)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_rows_state_and_encoder_have_the_same_bits(case: Case) -> None:
    expected, expected_losses = on_devices(case._replace(share=1.0, lookahead=0))
    found, losses = elsewhere(case)
    assert losses == expected_losses
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == value, path
