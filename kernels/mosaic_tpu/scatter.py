"""Rows written into a table on TPU where it lies, without a copy of it.

XLA's scatter takes rows as they are in `[V, d]`, and copies a table that is stored with the
features first (see `mosaic_tpu_gather`). This kernel takes the ids in order, so that the ids of
one tile of 128 rows stand together: each tile is fetched once, its new rows are put in, and it
goes back. Some tiles are on their way while one is worked on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..primitives import Array
from .tiles import LANES, round_up, stream

SLOTS = 8
"""Tiles of the table in VMEM."""
AHEAD = 4
"""Tiles that are fetched before their turn; the other slots are on their way back."""
MOST_IDS = 2048
"""Ids of one grid step."""
ENTRIES = 2**18
"""Entries of the new rows of one grid step; 1 MiB of f32, twice."""


class _Refs(NamedTuple):
    """Blocks in VMEM and SMEM, and the table in HBM.

    ids: int32 `[1, 1, S]`, local rows, ascending; starts: int32 `[1, 1, S + 128]`, place in `ids`
    where each tile begins, S behind the last, and at the end how many tiles there are.
    """

    ids: Any
    starts: Any
    values: Any  # [d, S]
    table: Any  # [d, V], also the result


def scatter_rows(items: Array, ids: Array, values: Array, *, interpret: Any = False) -> Array:
    """`items` with rows `ids` replaced by `values`, in place where `items` is donated.

    Args:
      items: `[V, d]`, f32 or bf16, V a multiple of 128, stored with the features first.
      ids: int32 `[N]`, ascending; distinct where they are in [0, V), ignored elsewhere.
      values: `[N, d]`, cast to the type of the table.
    """
    rows, dim = items.shape
    size = max(LANES, min(MOST_IDS, ENTRIES // round_up(dim, 8) // LANES * LANES))
    size = min(size, round_up(ids.shape[0], LANES))
    missing = round_up(ids.shape[0], size) - ids.shape[0]
    wanted = jnp.pad(ids.astype(jnp.int32), (0, missing),
                     constant_values=jnp.iinfo(jnp.int32).max).reshape(-1, size)
    new = jnp.pad(values.astype(items.dtype), ((0, missing), (0, 0))).T
    steps = wanted.shape[0]

    def scalars(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, width), lambda i: (i, 0, 0), memory_space=pltpu.SMEM)

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    operands = _Refs(wanted[:, None], _tile_starts(wanted, rows)[:, None], new, items.T)
    specs = _Refs(scalars(size), scalars(size + LANES),
                  pl.BlockSpec((dim, size), lambda i: (0, i)), anywhere)
    (out,) = stream(
        _kernel, (operands,), (specs,),
        (jax.ShapeDtypeStruct(operands.table.shape, items.dtype),), (anywhere,), grid=(steps,),
        scratch={"slots": pltpu.VMEM((SLOTS, dim, LANES), items.dtype),
                 "arrived": pltpu.SemaphoreType.DMA((SLOTS,)),
                 "left": pltpu.SemaphoreType.DMA((SLOTS,))},
        name="catalogue_scatter", interpret=interpret,
        aliases={_Refs._fields.index("table"): 0})
    return out.T


def _tile_starts(ids: Array, rows: int) -> Array:
    """int32 `[C, S + 128]` from ids `[C, S]`; see `_Refs.starts`."""
    steps, size = ids.shape
    tile = _tile(ids, rows)
    first = jnp.concatenate([jnp.ones((steps, 1), bool), tile[:, 1:] != tile[:, :-1]], axis=1)
    place = jnp.where(first, jax.lax.iota(jnp.int32, size)[None], size)
    behind = jnp.full((steps, LANES - 1), size, jnp.int32)
    count = jnp.sum(first, axis=1, keepdims=True, dtype=jnp.int32)
    return jnp.concatenate([jnp.sort(place, axis=1), behind, count], axis=1)


def _tile(ids: Array, rows: int) -> Array:
    """The tile of a row; a row before or behind the table belongs to the first or last one."""
    return jax.lax.div(jnp.clip(ids, 0, rows - 1), LANES)


def _kernel(refs: _Refs, out: Any, *, slots: Any, arrived: Any, left: Any) -> None:
    rows, size = out.shape[1], refs.ids.shape[2]
    count = refs.starts[0, 0, size + LANES - 1]
    lane = jax.lax.broadcasted_iota(jnp.int32, slots.shape[1:], 1)

    def copy(number: Array, *, back: bool) -> Any:
        """Between HBM and VMEM, the `number`-th tile of this step."""
        slot = jax.lax.rem(number, SLOTS)
        base = _tile(refs.ids[0, 0, refs.starts[0, 0, number]], rows) * LANES
        there, here = out.at[:, pl.ds(pl.multiple_of(base, LANES), LANES)], slots.at[slot]
        ends, done = ((here, there), left) if back else ((there, here), arrived)
        return pltpu.make_async_copy(*ends, done.at[slot])

    def fetch(number: Array) -> None:
        @pl.when(number < count)
        def _fetch() -> None:
            @pl.when(number >= SLOTS)
            def _free_slot() -> None:
                copy(number - SLOTS, back=True).wait()

            copy(number, back=False).start()

    def put(place: Array, tile: Array) -> Array:
        row = refs.ids[0, 0, place]
        column = jax.lax.rem(jnp.clip(row, 0, rows - 1), LANES)
        base = pl.multiple_of(jax.lax.div(place, LANES) * LANES, LANES)
        values = refs.values[:, pl.ds(base, LANES)].astype(jnp.float32)
        turned = pltpu.roll(values, jax.lax.rem(column - place + base + LANES, LANES), 1)
        return jnp.where((lane == column) & (row >= 0) & (row < rows), turned, tile)

    def one_tile(number: Array, carry: None) -> None:
        fetch(number + AHEAD)
        copy(number, back=False).wait()
        slot = jax.lax.rem(number, SLOTS)
        tile = jax.lax.fori_loop(refs.starts[0, 0, number], refs.starts[0, 0, number + 1], put,
                                 slots[slot].astype(jnp.float32))
        slots[slot] = tile.astype(slots.dtype)
        copy(number, back=True).start()
        return carry

    for number in range(AHEAD):
        fetch(jnp.int32(number))
    jax.lax.fori_loop(0, count, one_tile, None)
    # The next step may write into the same tiles.
    jax.lax.fori_loop(jnp.maximum(count - SLOTS, 0), count,
                      lambda number, _: copy(number, back=True).wait(), None)
