"""What a step's task looks like, from shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.objectives.base import Keys, Search, Task
from rec_jax.run import RunConfig, tables_of
from rec_jax.tables import ITEMS, USERS


def batch_shapes(config: RunConfig) -> dict[str, Any]:
    """The arrays `[A, B, L]` of a batch that an objective may look at; of histories that share a
    row, as many as have room."""
    settings = config.train
    size = (settings.accumulate, settings.rows // settings.accumulate, config.data.length)
    batch = {name: jax.ShapeDtypeStruct(size, jnp.int32)
             for name in ("items", "targets", "segments", "positions",
                          *([USERS] if USERS in tables_of(config) else []))}
    needs = config.objective.needs
    floats = [*(["log_q"] if needs.log_q else []), *(f"values/{name}" for name in needs.values)]
    batch |= {name: jax.ShapeDtypeStruct(size, jnp.float32) for name in floats}
    if needs.walks:
        batch |= {f"walks/{name}": jax.ShapeDtypeStruct(size, jnp.int32) for name in (ITEMS, USERS)}
    if needs.histories:
        most = config.data.length if config.data.pack else 1
        batch["histories"] = jax.ShapeDtypeStruct((*size[:2], most), jnp.int32)
    return batch


def task_shapes(config: RunConfig, num_items: int) -> Task:
    """The task of a step, with shapes in the place of arrays."""
    objective, count = config.objective, config.train.accumulate

    def plan(batch: Mapping[str, Any], key: jax.Array) -> Task:
        task: Task = objective.plan(batch, Keys(jax.random.split(key, count), key),
                                    num_items).settled()
        if not objective.needs.search:
            return task

        def best(queries: jax.Array, k: int, exclude: object) -> tuple[jax.Array, jax.Array]:
            del exclude
            return jnp.zeros((len(queries), k)), jnp.zeros((len(queries), k), jnp.int32)

        queries = jnp.zeros((*task.targets.shape, config.table.dim))
        found: Task = objective.mine(task, key, Search(
            num_items, lambda: queries, best, lambda queries, ids: jnp.zeros(len(queries)),
            lambda name, queries: queries))
        return found

    shapes: Task = jax.eval_shape(plan, batch_shapes(config), jax.random.key(0))
    return shapes


def check_task(config: RunConfig, num_items: int) -> None:
    """Raises InputError where an objective does not fit so many items, as its first step would,
    when a run's folder is made already."""
    try:
        task_shapes(config, num_items)
    except InputError as error:
        raise InputError(f"objective {config.objective.kind!r}: {error}") from None
    except KeyError:  # it looks at more than all batches have
        return
