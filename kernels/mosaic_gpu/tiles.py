"""What both Hopper kernels share: tile sizes, memory layouts, scores of a tile, label lists.

A block of three warpgroups works on 128 rows of one side: two compute, 64 rows each, since
that is what one `wgmma` takes, and the third keeps TMA copies of the other side in flight. The
structure (roles, ring of buffers, compute warpgroups that take turns at the tensor cores so
that the exponentials of one hide behind the products of the other) is FlashAttention-3's
(Shah et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from ..primitives import Scores

Array = jax.Array
Ref = Any  # references into device memory have no public type

WARPGROUPS = 2
ROWS = 64  # of a warpgroup
BLOCK = WARPGROUPS * ROWS
SHARED_BYTES = 227 * 1024 - 4096  # of one block on Hopper, less barriers and small buffers
LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
NEVER = 2**31 - 1
FLOOR = -1e30
"""Where the running maximum starts: finite, so that a tile without candidates gives 0, not nan."""

BY_ROW = plgpu.Layout.WGMMA.reduce(1)  # a vector over the rows of an accumulator
BY_COLUMN = plgpu.Layout.WGMMA.reduce(0)


@dataclass(frozen=True)
class Tiles:
    """forward: items that stream past a block of queries at a time; grad: queries that stream
    past a block of items; forward_stages, grad_stages: copies in flight; turns: whether the
    compute warpgroups alternate between products and exponentials, which pays where the two
    take about as long; processors: blocks that run at once (132 on H100 and H200)."""

    forward: int
    forward_stages: int
    grad: int
    grad_stages: int
    turns: bool = True
    processors: int = 132


def choose_tiles(dim: int) -> Tiles:
    """Tile sizes for width `dim`: as long as the registers allow, as deep as memory allows."""
    forward = 128 if dim <= 128 else 64
    grad = 128 if dim <= 64 else 64

    def depth(tile: int) -> int:
        fixed = 2 * BLOCK * dim + 4 * BLOCK * out_columns(dim)
        return max(2, min(5, (SHARED_BYTES - fixed) // (2 * tile * dim)))

    # At d = 32 exponentials take most of the time: two warpgroups at them hide each other's gaps.
    return Tiles(forward, depth(forward), grad, depth(grad), turns=dim > 32)


def transforms(columns: int, dtype: Any) -> tuple[Any, ...]:
    """Tiling and swizzle of a shared buffer with `columns` columns, as `wgmma` and TMA want it."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * itemsize * 8)
    return plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle)


def shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """A shared-memory buffer for matrices."""
    return plgpu.SMEM(shape, dtype, transforms=transforms(shape[-1], dtype))


def out_columns(dim: int) -> int:
    """Columns of f32 results that are staged in shared memory at a time."""
    return 64 if dim % 64 == 0 else 32


def store_matrix(value: Array, staging: Ref, out: Ref) -> None:
    """f32 `[64, d]` from registers to device memory, some columns at a time.

    TMA clips: rows past the end of `out`'s array are not written.
    """
    width = staging.shape[-1]
    for start in range(0, value.shape[1], width):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        staging[...] = value[:, start:start + width]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staging, out.at[:, pl.ds(start, width)])


def add_product(acc: Array, coefficients: Array, rows: Ref, staging: Ref | None) -> Array:
    """acc + bf16(coefficients) @ rows; the left side stays in registers.

    With `staging` (bf16, shared) it goes through memory: the interpreter takes nothing else.
    """
    factors = coefficients.astype(rows.dtype)
    if staging is not None:
        staging[...] = factors
        plgpu.commit_smem()

        def fresh(ref: Ref) -> Array:
            plgpu.wgmma(ref, staging, rows)
            return ref[...]

        height, width = acc.shape
        return acc + pl.run_scoped(fresh, plgpu.ACC((height, width), jnp.float32))

    def add(ref: Ref) -> None:
        plgpu.wgmma(ref, factors, rows)

    total: Array = pl.run_state(add)(plgpu.ACC.init(acc))
    return total


def zeros(shape: tuple[int, ...], layout: Any, value: float = 0.0) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def across(vector: Array, shape: tuple[int, int], axis: int) -> Array:
    """A vector along `axis` of a tile, repeated over the other axis."""
    return lax.broadcast_in_dim(vector, shape, [axis])


def turn(schedule: Ref | None) -> None:
    """Wait until the other compute warpgroup comes here too; with None, go on."""
    if schedule is not None:
        plgpu.barrier_arrive(schedule)
        plgpu.barrier_wait(schedule)


def ring(steps: Any, stages: int, free: Ref, copy: Callable[[Any, Any], None]) -> None:
    """The memory warpgroup: `copy(step, slot)` as soon as the slot's last readers are done."""
    @pl.loop(0, steps)
    def _step(step: Any) -> None:
        slot = lax.rem(step, jnp.int32(stages))

        @pl.when(step >= stages)
        def _wait() -> None:
            plgpu.barrier_wait(free.at[slot])

        copy(step, slot)


class Rule(NamedTuple):
    """`Scores`, as the kernels take them.

    Scores are kept as log2 e times their value: the hardware has 2^x. The sign of the scale goes
    into the queries, exactly; `factors` f32 `[2]` hold its magnitude, times log2 e and plain.
    `bias`: f32 `[V]`, not scaled. `limits`: int32 `[2]`, number of rows that are items and
    first row of the block of rows at hand.
    """

    queries: Array
    factors: Array
    bias: Array | None
    limits: Array
    softcap: float | None


def kernel_rule(queries: Array, items: Array, scores: Scores, padded: int,
                first_row: Array | int = 0) -> Rule:
    """Fold the sign of the scale into the queries and pad them to `padded` rows of zeros."""
    scale = jnp.asarray(scores.scale, jnp.float32)
    # Not 0, since a masked score is -inf times the factor.
    size = jnp.maximum(jnp.abs(scale), 1e-30)
    signed = queries * jnp.sign(scale).astype(queries.dtype)
    signed = jnp.pad(signed, ((0, padded - queries.shape[0]), (0, 0)))
    bias = None if scores.bias is None else scores.bias.astype(jnp.float32)
    valid = jnp.clip(jnp.asarray(scores.num_items) - jnp.asarray(scores.row_offset),
                     0, items.shape[0])
    limits = jnp.stack([valid.astype(jnp.int32), jnp.asarray(first_row, jnp.int32)])
    return Rule(signed, jnp.stack([size * LOG2E, size]), bias, limits, scores.softcap)


def tile_scores(products: Array, factors: Ref, bias: Array | None, softcap: float | None
                ) -> tuple[Array, Array | None, Array | None]:
    """From products h.w to (x, unit, slope): the score times log2 e is x, or x * unit.

    Without bias and cap the factor is left for later: it joins the subtraction of the maximum
    in one instruction. slope is the derivative of the cap, or None.
    """
    if bias is None and softcap is None:
        return products, factors[0], None
    if bias is not None and softcap is None:
        return products * factors[0] + bias * LOG2E, None, None
    assert softcap is not None
    raw = products * factors[1]
    if bias is not None:
        raw = raw + bias
    # tanh by exponentials: the hardware's own tanh is good to 11 bits only.
    tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(raw * (2.0 * LOG2E / softcap)))
    x = tanh * (softcap * LOG2E)
    # The cap must not bring back what a bias of -inf takes out.
    x = x if bias is None else jnp.where(bias == -jnp.inf, -jnp.inf, x)
    return x, None, 1.0 - tanh * tanh


def times(x: Array, unit: Array | None) -> Array:
    return x if unit is None else x * unit


class Hits(NamedTuple):
    """Where labels meet tiles. Group g's tiles, ascending, are tiles[starts[g]:starts[g + 1]].

    Tiles with a label are rare, so the kernels keep the next one in a register and compare;
    all that labels need stays in a branch.
    """

    starts: Array  # int32 [groups + 1]
    tiles: Array  # int32 [N + 1]


def label_hits(group: Array, tile: Array, groups: int) -> Hits:
    """Distinct pairs (group, tile), sorted; a pair of group `groups` or more counts as none.

    group, tile: int32 `[N]`. No pair is packed into one integer, so nothing overflows.
    """
    group, tile = lax.sort((group, tile), num_keys=2)
    new = jnp.concatenate([jnp.ones(1, bool),
                           (group[1:] != group[:-1]) | (tile[1:] != tile[:-1])])
    place = jnp.cumsum(new) - 1
    size = group.shape[0] + 1
    groups_of = jnp.full(size, NEVER, jnp.int32).at[place].set(group)
    tiles = jnp.full(size, NEVER, jnp.int32).at[place].set(tile)
    starts = jnp.searchsorted(groups_of, jnp.arange(groups + 1, dtype=jnp.int32))
    return Hits(starts.astype(jnp.int32), tiles)
