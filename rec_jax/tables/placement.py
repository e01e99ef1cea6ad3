"""Where the rows of a table lie: chosen from sizes, with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.tables.row_optimizers import row_optimizer
from rec_jax.tables.table import TableConfig, padded_size

Where = Literal["device", "host", "disk"]

TABLE_SHARE = 0.7
"""Share of a device's memory that tables may take; the rest is for activations and the encoder."""
CACHE_SHARE = 0.4
"""Share of a device's memory that the caches of all tables take, where nobody says otherwise."""
_PART = 10  # without a limit of memory a cache has this part of the rows
PART_BYTES = 64 * 2**20
"""Bytes of the rows of a part that passes by, where nobody says how many rows it has."""
_UNIT = 8192  # rows that it is a multiple of then


class Asked(NamedTuple):
    """What a table is asked for. size: its items, or users; reads: the most rows that a step
    names; refusal: why its rows cannot lie elsewhere than on the devices, or None; passes: a step
    reads all of its rows, which pass by in parts where they lie elsewhere."""

    size: int
    reads: int
    refusal: str | None
    passes: bool = False


class Placement(NamedTuple):
    """where; slots: rows of a shard's cache, 0 where all rows are on the devices; reason: one
    clause for the log; passes: all rows pass by in parts, and the cache is of one step."""

    where: Where
    slots: int
    reason: str
    passes: bool = False

    @property
    def line(self) -> str:
        """One clause: where, why, and what of the rows the devices have."""
        held = (f"they pass by in parts, twice a step, and {self.slots:,} of them are held that a "
                "step names" if self.passes else f"a shard's cache has {self.slots:,} of them")
        return f"on the {self.where}, {self.reason}; {held}"


def placement_lines(placements: Mapping[str, Placement]) -> list[str]:
    """Lines of the log: what does not lie where tables lie as a rule, and why."""
    return [f"rows of table {name!r}: {one.line}"
            for name, one in placements.items() if one.where != "device"]


def row_bytes(config: TableConfig) -> int:
    """Bytes of a row of a table that trains sparse, and of its optimizer's state."""
    state = jax.eval_shape(lambda: row_optimizer(config.optimizer).init((1, config.dim)))
    return config.dim * jnp.dtype(DTYPES[config.dtype]).itemsize + sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def choose_placement(config: TableConfig, asked: Asked, *, shards: int, needed: float,
                     memory: float | None) -> Placement:
    """The placement of a table.

    Args:
      shards: pieces that the mesh cuts the rows into.
      needed: bytes a device of all tables of the run, if all of their rows were there.
      memory: bytes of a device; None: it has the host's, and nothing is won by leaving it.

    Raises:
      InputError: what is asked for cannot be.
    """
    if config.placement == "device":
        return Placement("device", 0, "table.placement asks for it")
    if config.placement == "auto":
        if memory is None:
            return Placement("device", 0, "its memory is the host's")
        sizes = f"rows and their state take {needed / 2**30:.3g} GiB a device"
        if needed <= TABLE_SHARE * memory:
            return Placement("device", 0, f"{sizes}, of {memory / 2**30:.3g} GiB")
        if asked.refusal is not None:
            return Placement("device", 0, f"{sizes}, of {memory / 2**30:.3g} GiB, but "
                                          f"they must be there: {asked.refusal}")
        reason = f"{sizes}, more than {TABLE_SHARE * memory / 2**30:.3g} GiB"
        return Placement("host", _slots(config, asked, shards, needed, memory), reason,
                         asked.passes)
    if asked.refusal is not None:
        raise InputError(f"table.placement = {config.placement!r} cannot be: {asked.refusal}; "
                         "expected 'device'")
    return Placement(config.placement, _slots(config, asked, shards, needed, memory),
                     "table.placement asks for it", asked.passes)


def part_rows(dim: int, itemsize: int, total: int, asked: int | None = None) -> int:
    """Rows of a part of a table of `total` rows; asked: by a config."""
    wanted = max(1, PART_BYTES // (dim * itemsize) // _UNIT) * _UNIT if asked is None else asked
    return min(wanted, total)


def _slots(config: TableConfig, asked: Asked, shards: int, needed: float,
           memory: float | None) -> int:
    """Rows of the cache of one shard."""
    own = padded_size(asked.size) // shards
    least = min(own, asked.reads)  # all that a step names may be of one shard
    if asked.passes:
        if config.cache is not None:
            raise InputError(f"table.cache = {config.cache:g} holds rows from one step to the "
                             "next, and under the full softmax every row changes in every step; "
                             "expected none")
        return least
    if config.cache is None:
        wanted = max(4 * least, own // _PART) if memory is None else int(
            own * min(1.0, CACHE_SHARE * memory / needed))
        return max(least, min(own, wanted))
    rows = config.cache * asked.size if config.cache <= 1 else config.cache
    slots = min(own, math.ceil(rows / shards))
    if slots < least:
        raise InputError(f"table.cache = {config.cache:g} is {slots} rows a shard, and a step may "
                         f"read {least} of one shard; expected at least {least * shards}")
    return slots
