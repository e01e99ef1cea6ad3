"""How many parameters of a run train, and what its optimizers keep for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax

from rec_jax.model.encoder import Params
from rec_jax.model.tuning import TABLES, Tuning
from rec_jax.tables import Table
from rec_jax.train.state import TrainState


class Counts(NamedTuple):
    """Numbers in parameters that train and in frozen ones, without padding of tables; and the bytes
    of the optimizers' state, with it."""

    trained: int
    frozen: int
    optimizer_bytes: int

    def line(self) -> str:
        """In words."""
        return (f"{self.trained:,} of {self.trained + self.frozen:,} parameters train, with "
                f"{self.optimizer_bytes / 2**20:.1f} MiB of optimizer state")


def count_parameters(state: TrainState, tuning: Tuning) -> Counts:
    """What of the parameters of `state` trains."""
    sizes = {**_encoder(state.encoder), **_tables(state.tables)}
    frozen = sum(size for path, size in sizes.items() if tuning.frozen(path))
    kept = (state.optimizer, [(table.state, table.bias_state) for table in state.tables.values()])
    return Counts(sum(sizes.values()) - frozen, frozen,
                  sum(leaf.nbytes for leaf in jax.tree.leaves(kept)))


def _encoder(params: Params) -> dict[str, int]:
    return {path: math.prod(leaf.shape) for path, leaf in params.items()}


def _tables(tables: Mapping[str, Table]) -> dict[str, int]:
    return {TABLES + name: table.num_items * (
        table.rows.shape[1] - table.fixed + table.trains_bias) for name, table in tables.items()}
