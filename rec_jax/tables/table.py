"""A table: rows of item vectors, their optimizer state, and how both come to be.

Rows are sharded by contiguous ranges over the mesh axis `items`, or over both axes. Which row an
item has says `row_map`; its first value is a hash of (seed, table, id), so that any shard makes its
own rows, on any device count and in any order the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.kernels.rounding import mix, random_bits
from rec_jax.mesh import BOTH, Axes, row_sharding
from rec_jax.mesh import ITEMS as ITEMS_AXIS
from rec_jax.ranges import above, at_least, check
from rec_jax.tables.places import Places
from rec_jax.tables.row_map import RowMap
from rec_jax.tables.row_optimizers import RowOptimizer, RowOptimizerConfig

Array = jax.Array

SMALL_MULTIPLE = 768  # 3 * 2^8: divisible by 2^k and by 3 * 2^k devices up to 256
LARGE_MULTIPLE = 128 * SMALL_MULTIPLE  # and every shard a whole number of 128-row tiles
ITEMS, INPUTS, USERS = "items", "inputs", "users"
"""Names of tables: what a loss scores; what feeds an encoder in its place; those who ask."""
_STREAMS = {INPUTS: 0x2545F491}
MAX_ITEMS = 2**31 - 2**27  # int32 ids, with room behind the last for indices of nothing


@dataclass(frozen=True)
class TableConfig:
    """Settings of a table.

    dim: width d of a row.
    tied: one table is the encoder's input and the softmax's weights; false: a second one of the
      same shape and settings is the input, which doubles rows and their state.
    init_scale: standard deviation of the first values.
    dtype: storage of the rows, f32 or bf16 (written with stochastic rounding; sums and
      optimizer state stay f32). On a CPU, JAX before 0.12 widens a whole bf16 table to write
      into it: correct, but neither fast nor small.
    update: dense: the gradient exists, and the dense optimizer takes it; sparse: only the rows
      that a step touches; streamed: tile by tile inside the kernel's second pass. auto chooses
      by size and objective, and says why.
    optimizer: of the rows, where `update` is sparse or streamed.
    gather_slack: room in a device's message to one owner of rows, as a multiple of an even
      share; None: as much as ids that are spread evenly need (`gather.message_capacity`). Where a
      step's ids do not fit, they travel in more rounds: it changes speed only.
    placement: where rows and their state lie: device; host: in the host's memory; disk: in files
      of the run's folder. auto: on the devices, or where they do not fit there on the host. It
      changes speed only, and no bit.
    cache: rows that the devices hold of a table that lies elsewhere, up to 1 as a share of all;
      none: as many as leave room, or without a limit of memory a tenth. It changes speed only.
    part: rows of a streamed table that are on a device at once, where the table lies elsewhere;
      none: 64 MiB of them. The loss is summed part by part, so that it decides the last digits;
      on one device, a table that lies there is folded in the same parts where it is given.
    """

    dim: int = 64
    tied: bool = True
    init_scale: float = 0.02
    dtype: Literal["f32", "bf16"] = "f32"
    update: Literal["auto", "dense", "sparse", "streamed"] = "auto"
    optimizer: RowOptimizerConfig = field(default_factory=RowOptimizerConfig)
    gather_slack: float | None = None
    placement: Literal["auto", "device", "host", "disk"] = "auto"
    cache: float | None = None
    part: int | None = None

    def __post_init__(self) -> None:
        check(self, "table.", dim=at_least(1, 2**20), init_scale=at_least(0, 1e6),
              gather_slack=above(0, 1e6), cache=above(0, MAX_ITEMS),
              part=at_least(1, MAX_ITEMS))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table:
    """One table; a pytree.

    rows: `[V_padded, d]`, f32 or bf16; rows from `num_items` on are padding and stay 0.
    state: the row optimizer's arrays `[V_padded, ...]`, or () where there is none.
    num_items: V, static; over: mesh axes that cut the rows, static; row_map: which row an id has,
      static.
    fixed: how many of the last columns never change, static; the optimizer has no state for them.
    bias: f32 `[V_padded]`, added to scores by a loss, or None; bias_state: of its row optimizer;
      trains_bias: static. See `rec_jax.tables.bias`.
    places: where the rows of this step are, if `rows` and `state` are a cache of some rows and not
      the whole table (`rec_jax.tier`); their number is then that of its slots. Outside of a step
      None.
    passing: what the step of a table whose rows pass by it is given of them, and what it leaves
      for their update (`rec_jax.train.passing`). Outside of a step None.
    """

    rows: Array
    state: Any
    num_items: int = field(metadata={"static": True})
    over: Axes = field(default=(ITEMS_AXIS,), metadata={"static": True})
    row_map: RowMap = field(default=RowMap(), metadata={"static": True})
    fixed: int = field(default=0, metadata={"static": True})
    bias: Array | None = None
    bias_state: Any = ()
    trains_bias: bool = field(default=False, metadata={"static": True})
    places: Places | None = None
    passing: Any = None

    @property
    def total(self) -> int:
        """V_padded: rows of the whole table, wherever they are."""
        return self.rows.shape[0] if self.places is None else padded_size(self.num_items)

    @property
    def parameters(self) -> Any:
        """What an optimizer of dense parameters trains, f32: rows, and the bias if it trains."""
        rows = self.trained.astype(jnp.float32)
        return {"rows": rows, "bias": self.bias} if self.trains_bias else rows

    @property
    def trained(self) -> Array:
        """The columns that train, `[V_padded, d - fixed]`."""
        return self.rows[:, :self.rows.shape[1] - self.fixed] if self.fixed else self.rows

    def replace(self, **changes: Any) -> Table:
        """This table with other parts."""
        return dataclasses.replace(self, **changes)


def rows_over(mode: str) -> Axes:
    """The mesh axes that cut the rows of a table that trains in `mode`: both where it is streamed,
    so that every device passes over its own rows alone, and no two over the same."""
    return BOTH if mode == "streamed" else (ITEMS_AXIS,)


def padded_size(num_items: int) -> int:
    """Rows allocated for `num_items`: it depends on nothing else, so a checkpoint fits anywhere.

    The next multiple of 768 * 2^k, k from 0 to 7, with the largest k that wastes less than a
    sixteenth: every device count 2^a or 3 * 2^a up to 256 cuts it evenly.

    Raises:
      InputError: no item, or more than an int32 id can name.
    """
    if not 1 <= num_items <= MAX_ITEMS:
        raise InputError(f"a table of {num_items} rows; expected 1 to {MAX_ITEMS}")
    multiple = SMALL_MULTIPLE
    while multiple < LARGE_MULTIPLE and 32 * multiple <= num_items:
        multiple *= 2
    return -(-num_items // multiple) * multiple


def table_stream(seed: Array, name: str) -> Array:
    """The seed of table `name`, uint32 `[]`, where `seed` is that of the items: neither its first
    values nor its stochastic rounding share bits with another's."""
    return seed if name == ITEMS else mix(seed ^ jnp.uint32(_STREAMS.get(name, _number(name))))


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def first_rows(seed: Array, ids: Array, *, dim: int, scale: float, num_items: int) -> Array:
    """The first value of rows `ids` int32 `[T]`: f32 `[T, dim]`, normal; 0 from `num_items` on.

    seed: uint32 `[]`.
    """
    # mix: a table with seed s must not share bits with stochastic rounding at step s.
    bits = random_bits(mix(seed ^ jnp.uint32(0x5BD1E995)), ids, dim)
    # 2^23 midpoints of (-1, 1): symmetric, and never the ends, where erf_inv is infinite.
    uniform = (bits >> 9).astype(jnp.float32) * jnp.float32(2.0**-22) + jnp.float32(2.0**-23 - 1)
    normal = jnp.float32(2.0**0.5 * scale) * jax.lax.erf_inv(uniform)
    return jnp.where((ids < num_items)[:, None], normal, 0.0)


def init_table(config: TableConfig, num_items: int, seed: int, mesh: Mesh | None = None, *,
               optimizer: RowOptimizer | None = None, name: str = ITEMS,
               over: Axes = (ITEMS_AXIS,), row_map: RowMap | None = None) -> Table:
    """A new table; each device makes its rows alone, and nothing else of size V x d exists.

    optimizer: gives the state; none for a table that is trained densely.
    name: of the table in its run.
    over: mesh axes that cut the rows, see `rows_over`.
    row_map: which row an id has; by default its own.

    Raises:
      InputError: `num_items` is out of range, or the device count does not divide the rows.
    """
    total = padded_size(num_items)
    order = RowMap(num_items) if row_map is None else row_map
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in over)
    if total % shards:
        names = " times ".join(f"mesh.{axis}" for axis in over)
        raise InputError(f"{names} = {shards} does not divide the {total} allocated "
                         f"rows; expected 2^a or 3 * 2^a, at most 256")

    sharding = None if mesh is None else row_sharding(mesh, over)
    make = _maker(config.dim, config.init_scale, config.dtype, num_items, optimizer, name, order,
                  sharding)
    rows, state = make(jnp.uint32(seed % 2**32))
    return Table(rows, state, num_items, over, order)


@functools.lru_cache(32)
def _maker(dim: int, scale: float, dtype: str, num_items: int, optimizer: RowOptimizer | None,
           name: str, order: RowMap, sharding: NamedSharding | None
           ) -> Callable[[Array], tuple[Array, Any]]:
    """What makes rows and state of a seed, compiled once for all tables of the same settings."""
    total = padded_size(num_items)

    def make(seed: Array) -> tuple[Array, Any]:
        ids = order.ids(jax.lax.iota(jnp.int32, total))
        rows = first_rows(table_stream(seed, name), ids, dim=dim, scale=scale,
                          num_items=num_items).astype(DTYPES[dtype])
        return rows, () if optimizer is None else optimizer.init((total, dim))

    return jax.jit(make, out_shardings=sharding)
