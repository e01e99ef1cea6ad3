"""The smallest encoder, a step and the states it starts from, by what a test says of its tables."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.rows import RowSource
from rec_jax.tables import INPUTS, ITEMS, RowMap, Table, TableConfig, init_table, row_optimizer
from rec_jax.train.state import TrainState, init_state
from rec_jax.train.step import Step, make_train_step


class MeanSoFar:
    """The smallest encoder: histories' running means, times a matrix `kernel`."""

    features, source = (), RowSource(0)

    def __call__(self, params: Any, vectors: jax.Array, *_: Any) -> jax.Array:
        count = jnp.arange(1.0, vectors.shape[1] + 1)[:, None]
        return jnp.cumsum(vectors, axis=1) / count @ params["kernel"]


def tables_of(table: TableConfig) -> dict[str, TableConfig]:
    """The settings of the items' table, and of a second one of inputs where it is untied."""
    return dict.fromkeys((ITEMS,) if table.tied else (ITEMS, INPUTS), table)


def modes_of(table: TableConfig, mode: str) -> dict[str, Any]:
    """How those tables train: inputs are read by their ids, and never scored."""
    return {name: mode if name == ITEMS or mode == "dense" else "sparse"
            for name in tables_of(table)}


def make_step(encoder: Encoder, objective: Any, optimizer: optax.GradientTransformation,
              table: TableConfig, mode: str = "dense", **settings: Any) -> Step:
    """A compiled step; settings: those of `make_train_step`."""
    return make_train_step(encoder, objective, optimizer, tables=tables_of(table),
                           modes=modes_of(table, mode), **settings)


def new_tables(table: TableConfig, mode: str, num_items: int, mesh: Mesh | None = None, *,
               seed: int = 0, row_map: RowMap | None = None) -> dict[str, Table]:
    """The tables before the first step, with the state of a row optimizer unless dense."""
    own = None if mode == "dense" else row_optimizer(table.optimizer)
    return {name: init_table(config, num_items, seed, mesh, optimizer=own, name=name,
                             row_map=row_map) for name, config in tables_of(table).items()}


def new_state(params: Params, optimizer: optax.GradientTransformation, table: TableConfig,
              mode: str, num_items: int, mesh: Mesh | None = None, *, seed: int = 0,
              run_seed: int | None = None, average: bool = False,
              row_map: RowMap | None = None) -> TrainState:
    """The state before the first step, of its own copy of `params`; run_seed: of the run's keys,
    where it is not that of the tables."""
    return init_state(
        jax.tree.map(jnp.copy, params),
        new_tables(table, mode, num_items, mesh, seed=seed, row_map=row_map), optimizer,
        seed=seed if run_seed is None else run_seed, modes=modes_of(table, mode), average=average,
        mesh=mesh)


def compiled_sizes(step: Step, state: TrainState, batch: Any) -> list[int]:
    """Elements of every array that the compiled step makes: no array of positions x items is in a
    program whose largest array is smaller than that."""
    text = step.lower(state, batch).compile().as_text()  # type: ignore[attr-defined]
    return [int(np.prod([int(n) for n in shape.split(",")]))
            for shape in re.findall(r"(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)]
