"""What the TPU folds share: the tiling, the layout of the table, and the tile of scores.

Every kernel works on tiles of `[n, v]` scores: `n` queries against `v` rows. The remainder of
the queries is padded (N x d is small); the remainder of the table is masked inside the kernel.

XLA stores a `[V, d]` array on TPU in tiles of 8 x 128 and puts the axis last that wastes less:
rows, unless d is a multiple of 128. A kernel that asked for the other order would make XLA copy
the whole table first, so each kernel takes the table in the order in which it is stored: as
`[V, d]`, or as its transpose `[d, V]`, which is then the same bytes (`features_first`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..compat import vary, varying_axes
from ..primitives import Array, Scores

LANES = 128
VMEM_BUDGET = 12 * 2**20
"""Bytes of a tile's buffers: below the 16 MiB that a v5e or v5p kernel gets without asking."""
SCORE_BYTES = 20
"""VMEM bytes of one score: raw, masked, slope and exp in f32, exp in the type of the product."""


@dataclass(frozen=True)
class Tiling:
    """Shape and order of the tiles.

    n, v: queries and rows of one tile. features_first: the table is taken as `[d, V]`.
    rows_outer: the grid is (row tiles, query tiles), not (query tiles, row tiles).
    """

    n: int
    v: int
    features_first: bool
    rows_outer: bool = False

    @property
    def row_axis(self) -> int:
        """Axis of the rows in the table as the kernels see it; the other holds the features."""
        return 1 if self.features_first else 0

    def query_tile(self) -> Array:
        """Index of this grid step's tile of queries."""
        return pl.program_id(1 if self.rows_outer else 0)

    def row_base(self) -> Array:
        """First local row of this grid step's tile. Not to be asked for inside a branch."""
        return pl.program_id(0 if self.rows_outer else 1) * self.v

    def grid(self, padded_queries: int, rows: int) -> tuple[int, int]:
        """Number of tiles along both axes; the first is parallel, the second sequential."""
        sizes = (padded_queries // self.n, pl.cdiv(rows, self.v))
        return sizes[::-1] if self.rows_outer else sizes

    def query_spec(self, width: int) -> pl.BlockSpec:
        """Blocks of an array `[N, width]`."""
        return pl.BlockSpec((self.n, width), self._map(lambda i, j: (i, 0)))

    def table_spec(self, width: int) -> pl.BlockSpec:
        """Blocks of an array `[V, width]` after `stored`."""
        if self.features_first:
            return pl.BlockSpec((width, self.v), self._map(lambda i, j: (0, j)))
        return pl.BlockSpec((self.v, width), self._map(lambda i, j: (j, 0)))

    def lane_spec(self) -> pl.BlockSpec:
        """Blocks of an array `[1, V]`."""
        return pl.BlockSpec((1, self.v), self._map(lambda i, j: (0, j)))

    def stored(self, array: Array) -> Array:
        """`[V, width]` in the order of the kernel, and back."""
        return array.T if self.features_first else array

    def _map(self, index: Callable[[Any, Any], tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return (lambda j, i: index(i, j)) if self.rows_outer else index


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def stored_features_first(rows: int, dim: int) -> bool:
    """Whether XLA puts the rows of `[rows, dim]` on the lanes: when that pads fewer bytes."""
    by_features = round_up(dim, 8) * round_up(rows, LANES)
    return by_features < round_up(rows, 8) * round_up(dim, LANES)


def choose_tiling(queries: int, rows: int, dim: int, per_query: int, per_row: int, *,
                  budget: int, rows_outer: bool = False, square: bool = False) -> Tiling:
    """The largest tile whose buffers fit `budget`, no larger than the padded problem.

    Among equals the one that is long on the side that waits (queries, or rows if `rows_outer`),
    so that the other streams by less often; but short on neither, since each tile also costs a
    pass over what it accumulates.

    per_query, per_row: VMEM bytes of one query and of one row, by `query_bytes`, `row_bytes`.
    square: n must divide v.

    Raises:
      ValueError: not even the smallest tile fits.
    """
    largest_n = max(16, round_up(queries, 16))
    largest_v = round_up(rows, LANES)
    fitting = [
        (n, v) for n in (1024, 512, 256, 128, 64, 32, 16) for v in (2048, 1024, 512, 256, 128)
        if n <= largest_n and v <= largest_v and not (square and n > v)
        and n * per_query + v * per_row + n * v * SCORE_BYTES <= budget
    ]
    if not fitting:
        raise ValueError(f"no tile of rows with d={dim} fits {budget} bytes of VMEM")
    n, v = max(fitting, key=lambda tile: (tile[0] * tile[1], min(*tile, 256), tile[rows_outer]))
    return Tiling(n, v, stored_features_first(rows, dim), rows_outer)


def query_bytes(dim: int, *itemsizes: int, columns: int) -> int:
    """VMEM of one query: double buffers of `[N, d]` arrays and of `[N, few]` columns."""
    return 2 * (round_up(dim, LANES) * sum(itemsizes) + columns * LANES * 4)


def row_bytes(rows: int, dim: int, *itemsizes: int, stored: int = 0, turned: int = 0) -> int:
    """VMEM of one row: double buffers of arrays `[V, d]`, and f32 temporaries beside them.

    stored: temporaries in the order of the table; turned: temporaries `[v, d]`.
    """
    lanes = round_up(dim, LANES)
    width = round_up(dim, 16) if stored_features_first(rows, dim) else lanes
    return width * (2 * sum(itemsizes) + 4 * stored) + lanes * 4 * turned + 128


class Head(NamedTuple):
    """Operands of every fold, and in the kernel the refs to their blocks."""

    scale: Any  # f32 [1]
    valid: Any  # int32 [1], number of local rows that are items
    queries: Any  # [N, d]
    items: Any  # [V, d] or [d, V]
    bias: Any  # f32 [1, V] or None


def head(queries: Array, items: Array, scores: Scores, tiling: Tiling) -> tuple[Head, Head]:
    """Operands and block specs that every fold starts with; the queries are padded."""
    rows, dim = items.shape
    valid = jnp.clip(jnp.asarray(scores.num_items - scores.row_offset, jnp.int32), 0, rows)
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    operands = Head(
        jnp.reshape(scores.scale, (1,)).astype(jnp.float32), jnp.reshape(valid, (1,)),
        pad_queries(queries, tiling), tiling.stored(items),
        None if scores.bias is None else scores.bias.astype(jnp.float32)[None, :],
    )
    specs = Head(scalar, scalar, tiling.query_spec(dim), tiling.table_spec(dim),
                 None if scores.bias is None else tiling.lane_spec())
    return operands, specs


def local_rows(ids: Array, rows: int, scores: Scores) -> Array:
    """int32 rows of this shard for global ids; -1 for ids that are not here."""
    local = ids.astype(jnp.int32) - scores.row_offset
    return jnp.where((local >= 0) & (local < rows), local, -1)


def pad_queries(array: Array, tiling: Tiling, fill: float = 0) -> Array:
    """`array` with its first axis extended by `fill` to whole tiles; `[N]` becomes `[N', 1]`."""
    column = array[:, None] if array.ndim == 1 else array
    missing = round_up(array.shape[0], tiling.n) - array.shape[0]
    return jnp.pad(column, ((0, missing), (0, 0)), constant_values=fill) if missing else column


def stream(kernel: Callable[..., None], operands: tuple[Any, ...], in_specs: tuple[Any, ...],
           out_shape: tuple[Any, ...], out_specs: tuple[Any, ...], *, grid: tuple[int, ...],
           scratch: dict[str, Any], name: str, interpret: Any,
           cost: pl.CostEstimate | None = None, aliases: dict[int, int] | None = None,
           prefetch: int = 0) -> Any:
    """`pallas_call` whose operands and results vary over the same axes of a `shard_map`.

    The first axis of the grid is parallel and the second sequential; a single axis is
    sequential. The first `prefetch` operands are scalars that the index maps read.
    """
    axes = varying_axes(*jax.tree.leaves(operands))
    operands = jax.tree.map(lambda x: vary(x, axes), operands)
    kind = jax.typeof(jax.tree.leaves(operands)[0]).manual_axis_type
    out_shape = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind), out_shape)
    order = (pltpu.PARALLEL, pltpu.ARBITRARY)[-len(grid):]
    blocks: dict[str, Any] = {"grid": grid, "in_specs": in_specs, "out_specs": out_specs}
    if prefetch:
        blocks = {"grid_spec": pltpu.PrefetchScalarGridSpec(prefetch, **blocks)}
    return pl.pallas_call(
        kernel, out_shape=out_shape, **blocks, scratch_shapes=scratch,
        input_output_aliases=aliases or {},
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        interpret=interpret, name=name, cost_estimate=cost,
    )(*operands)


def cost(queries: Array, items: Array, products: int, exponentials: int,
         table_passes: float) -> pl.CostEstimate:
    """What a fold costs, for the scheduler: `products` of 2NVd operations, bytes from HBM."""
    pairs = queries.shape[0] * items.shape[0]
    return pl.CostEstimate(
        flops=2 * products * pairs * items.shape[1], transcendentals=exponentials * pairs,
        bytes_accessed=int(table_passes * items.size * items.dtype.itemsize
                           + 3 * queries.size * queries.dtype.itemsize))


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """f32 product of `a` and `b` over one axis of each; f32 operands keep f32 accuracy."""
    precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())),
                               precision=precision, preferred_element_type=jnp.float32)


def operand_tiles(refs: Head) -> tuple[Array, Array]:
    """This tile's queries and rows, in the wider of their types."""
    wide = jnp.promote_types(refs.queries.dtype, refs.items.dtype)
    return refs.queries[...].astype(wide), refs.items[...].astype(wide)


def score_tile(refs: Head, queries: Array, table: Array, base: Array, tiling: Tiling,
               softcap: float | None) -> tuple[Array, Array | None]:
    """Scores `[n, v]` in f32 and, with softcap, the slope c' of the cap; see `row_base`.

    Every fold calls this function: equal operands in equal order give equal bits, so that
    `exp(score - lse)` in the second pass is the probability that the first pass summed.
    """
    raw = matmul(queries, table, (1, 1 - tiling.row_axis)) * refs.scale[0]
    there = None
    if refs.bias is not None:
        there = are_items(refs, base)
        raw = raw + jnp.where(there, refs.bias[...], 0.0)
    slope = None
    if softcap is not None:
        bent = jnp.tanh(raw * (1.0 / softcap))
        raw, slope = softcap * bent, 1.0 - bent * bent
    return raw if there is None else jnp.where(there, raw, -jnp.inf), slope


def are_items(refs: Head, base: Array) -> Array:
    """Whether the columns of a tile with a bias are items, bool `[1, v]`."""
    bias = refs.bias[...]  # past the end of the table it holds anything, NaN too
    return (lane_ids(bias.shape, base) < refs.valid[0]) & (bias != -jnp.inf)


def only_items(refs: Head, table: Array, base: Array, tiling: Tiling) -> Array:
    """`table`, or what has its shape, with 0 for rows that are no items, whatever they hold."""
    row = jax.lax.broadcasted_iota(jnp.int32, table.shape, tiling.row_axis) + base
    there = row < refs.valid[0]
    if refs.bias is not None:
        bias = refs.bias[...]
        if not tiling.features_first:
            bias = jnp.broadcast_to(bias, (8, bias.shape[1])).T[:, :1]
        there &= bias != -jnp.inf
    return jnp.where(there, table.astype(jnp.float32), 0.0).astype(table.dtype)


def lane_ids(shape: tuple[int, ...], base: Array) -> Array:
    """Local row of every column, int32 of this `shape` `[., v]`."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) + base


def mask_padding(refs: Head, tile: Any, base: Array, fill: float) -> None:
    """Set the columns of `tile` that are no items to `fill`."""
    @pl.when(base + tile.shape[1] > refs.valid[0])
    def _mask() -> None:
        columns = lane_ids(tile.shape, base)
        tile[...] = jnp.where(columns < refs.valid[0], tile[...], fill)


def when_label_here(targets: Any, tile: Any, base: Array,
                    then: Callable[[Array, Array], None]) -> None:
    """Call `then(here [n, v], has [n, 1])` if a label of these queries is a row of this tile."""
    label = targets[...]
    has = (label >= base) & (label < base + tile.shape[1])

    @pl.when(jnp.max(jnp.where(has, 1.0, 0.0)) > 0.0)
    def _here() -> None:
        then(lane_ids(tile.shape, base) == label, has)
