"""The tables' functions on whole arrays: each is one `shard_map` between parts that XLA cuts.

A step is ordinary code on global arrays (the encoder, the dense optimizer), which XLA partitions
by their shardings, with islands where the rows of a table meet the mesh. Batches are cut over
both axes, rows over the axes `over` of their table. On one device an island is a plain call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rec_jax.errors import InputError
from rec_jax.kernels import (
    RowUpdate,
    Updated,
    sample,
    softmax_entropy,
    softmax_in_parts,
    softmax_loss,
    top_k,
)
from rec_jax.mesh import BOTH, ITEMS, Axes, island
from rec_jax.tables import gather
from rec_jax.tables.gather import Route, Shards
from rec_jax.tables.places import Places
from rec_jax.tables.table import Table
from rec_jax.tables.unique import Unique, expand, unique_ids
from rec_jax.tables.update_sparse import update_sparse
from rec_jax.tables.update_streamed import Scored, update_streamed

Array = jax.Array
P = PartitionSpec
_CUT = P(BOTH)
_COLUMNS = P(None, BOTH)


class Fetched(NamedTuple):
    """Rows that a step uses, each device's distinct ones; leading axes are cut over both axes.

    rows: `[M, d]` in the table's type; unique: where they go, its ids are numbers of rows; route:
    how they came, None where the table is in one piece.
    """

    rows: Array
    unique: Unique
    route: Route | None


def shards_of(mesh: Mesh, over: Axes = (ITEMS,)) -> Shards:
    """How the mesh cuts a table over the axes `over`."""
    count = math.prod(mesh.shape[axis] for axis in over)
    return Shards(mesh.size // count, count, over)


def fetch(mesh: Mesh, table: Table, wanted: dict[str, Array], masks: dict[str, Array], *,
          slack: float | None = None) -> Fetched:
    """The rows of all ids in `wanted`, each once a device; not differentiable, see `spread`.

    wanted: int32 `[A, n]` by name, n a multiple of the device count; masks: bool, the same
    shapes, False where a position has no row.
    """
    shards = shards_of(mesh, table.over)
    capacity = _capacity(shards, table, wanted, slack)

    def body(rows: Array, places: Places | None, wanted: dict[str, Array],
             masks: dict[str, Array]) -> Fetched:
        ids, mask = (jnp.concatenate([part[name].ravel() for name in sorted(wanted)])
                     for part in (wanted, masks))
        unique = unique_ids(table.row_map.rows(ids), table.num_items, mask)
        route = None
        if capacity is not None:
            route = gather.make_route(unique, table.total // shards.pieces, shards, capacity)
        return Fetched(gather.fetch_rows(rows, unique, route, shards, places), unique, route)

    cut = P(table.over)
    return island(body, mesh, (cut, cut, _COLUMNS, _COLUMNS), _fetched_specs(capacity))(
        table.rows, table.places, wanted, masks)


def spread(mesh: Mesh, rows: Array, unique: Unique, like: dict[str, Array]) -> dict[str, Array]:
    """Fetched `rows` -> vectors `[A, n, d]` f32 of each of `like`, the `wanted` of `fetch`.

    Differentiable in `rows`; see `expand` for repeated, masked and bad ids.
    """
    def body(rows: Array, unique: Unique, like: dict[str, Array]) -> dict[str, Array]:
        vectors, parts, start = expand(rows, unique), {}, 0
        for name in sorted(like):
            shape = like[name].shape
            end = start + like[name].size
            parts[name] = vectors[start:end].reshape(*shape, -1)
            start = end
        return parts

    return island(body, mesh, (_CUT, _CUT, _COLUMNS), _COLUMNS)(rows, unique, like)


def full_softmax(mesh: Mesh, queries: Array, rows: Array, targets: Array, *, num_items: int,
                 over: Axes = (ITEMS,), bias: Array | None = None, logit_scale: float = 1.0,
                 softcap: float | None = None, part: int | None = None, backend: str = "auto"
                 ) -> tuple[Array, Array]:
    """`softmax_loss` against a table over the mesh: loss and lse f32 `[N]`.

    queries: `[N, d]`, N a multiple of the device count; rows `[V_padded, d]` and bias
      f32 `[V_padded]`, one number a row, cut over the axes `over`. Queries and results are cut
      over the axes that do not cut the rows, and are on all devices of the others.
      Differentiable, in the bias too.
    part: fold so many rows at a time, as one does of a table that lies elsewhere; on one device,
      without a bias, and differentiable in the queries alone.
    """
    if part is not None:
        if not shards_of(mesh, over).alone or bias is not None:
            raise InputError("table.part is for a table without a bias on one device; expected "
                             "none")
        return softmax_in_parts(queries, rows, targets, part=part, num_items=num_items,
                                logit_scale=logit_scale, softcap=softcap, backend=backend)
    loss, lse = _over_table(softmax_loss, mesh, over, queries, rows, targets, bias, 2, dict(
        num_items=num_items, logit_scale=logit_scale, softcap=softcap, backend=backend))
    return loss, lse


def full_entropy(mesh: Mesh, queries: Array, rows: Array, targets: Array, *, num_items: int,
                 over: Axes = (ITEMS,), bias: Array | None = None, logit_scale: float = 1.0,
                 softcap: float | None = None, backend: str = "auto"
                 ) -> tuple[Array, Array, Array]:
    """`full_softmax` with the entropy f32 `[N]` as a third result: `softmax_entropy`."""
    loss, lse, entropy = _over_table(
        softmax_entropy, mesh, over, queries, rows, targets, bias, 3, dict(
            num_items=num_items, logit_scale=logit_scale, softcap=softcap, backend=backend))
    return loss, lse, entropy


def _over_table(function: Callable[..., Any], mesh: Mesh, over: Axes, queries: Array, rows: Array,
                targets: Array, bias: Array | None, results: int, rule: dict[str, Any]) -> Any:
    """What `function` of the kernels gives for each query against all rows of the mesh."""
    shards = shards_of(mesh, over)

    def body(queries: Array, rows: Array, targets: Array, bias: Array | None) -> Any:
        return function(queries, rows, targets, bias=bias, axis_name=shards.axis, **rule)

    cut = P(tuple(axis for axis in BOTH if axis not in over))
    rows_cut = P() if shards.axis is None else P(over)
    return island(body, mesh, (cut, rows_cut, cut, rows_cut), (cut,) * results, check=True)(
        queries, rows, targets, bias)


def shared_softmax(mesh: Mesh, queries: Array, rows: Array, targets: Array, *, bias: Array,
                   logit_scale: float = 1.0, backend: str = "auto") -> tuple[Array, Array]:
    """`softmax_loss` against rows `[K, d]` that every device holds: loss and lse f32 `[N]`.

    Queries are cut over both axes, N a multiple of the device count. Differentiable in queries
    and rows.
    """
    def body(queries: Array, rows: Array, targets: Array, bias: Array) -> tuple[Array, Array]:
        return softmax_loss(queries, rows, targets, bias=bias, logit_scale=logit_scale,
                            backend=backend)

    return island(body, mesh, (_CUT, P(), _CUT, P()), (_CUT, _CUT), check=True)(
        queries, rows, targets, bias)


def catalogue_top_k(mesh: Mesh, queries: Array, rows: Array, k: int,
                    seen: tuple[Array, Array] | None, *, num_items: int,
                    over: Axes = (ITEMS,), bias: Array | None = None,
                    logit_scale: float = 1.0) -> tuple[Array, Array]:
    """`top_k` over a table on the mesh: scores f32 `[N, k]` and ids int32 `[N, k]`; queries are
    on every device. bias: f32 `[V_padded]`, cut as the rows; with one, `logit_scale` counts."""
    axis = shards_of(mesh, over).axis

    def body(queries: Array, rows: Array, seen: Any, bias: Array | None) -> tuple[Array, Array]:
        return top_k(queries, rows, k, exclude=seen, bias=bias, logit_scale=logit_scale,
                     num_items=num_items, axis_name=axis)

    return island(body, mesh, (P(), P(over), P(), P(over)), (P(), P()))(
        queries, rows, seen, bias)


def catalogue_sample(mesh: Mesh, queries: Array, rows: Array, k: int, seed: Array, *,
                     num_items: int, over: Axes = (ITEMS,), logit_scale: float = 1.0,
                     softcap: float | None = None) -> Array:
    """`sample` from a table on the mesh: ids int32 `[N, k]`; queries are on every device."""
    axis = shards_of(mesh, over).axis

    def body(queries: Array, rows: Array, seed: Array) -> Array:
        return sample(queries, rows, k, seed, logit_scale=logit_scale, softcap=softcap,
                      num_items=num_items, axis_name=axis)

    return island(body, mesh, (P(), P(over), P()), P())(queries, rows, seed)


def apply_sparse(mesh: Mesh, table: Table, fetched: Fetched, grads: Array, update: RowUpdate,
                 hyper: Any, *, seed: Array | None = None) -> Table:
    """Update the rows that were fetched, from the gradient `[M, d]` of `fetched.rows`."""
    shards = shards_of(mesh, table.over)

    def body(rows: Array, state: Any, places: Places | None, grads: Array, unique: Unique,
             route: Route | None, hyper: Any, seed: Array | None) -> tuple[Array, Any]:
        return update_sparse(rows, state, grads, unique, route, shards, update, hyper, seed=seed,
                             row_map=table.row_map, places=places)

    cut = P(table.over)
    specs = (cut, cut, cut, _CUT, _CUT, _route_specs(fetched.route), P(), P())
    rows, state = island(body, mesh, specs, (cut, cut))(
        table.rows, table.state, table.places, grads, fetched.unique, fetched.route, hyper, seed)
    return table.replace(rows=rows, state=state)


def apply_streamed(mesh: Mesh, table: Table, scored: Scored, inputs: tuple[Array, Array] | None,
                   update: RowUpdate, hyper: Any, *, seed: Array | None = None,
                   bias: Array | None = None, logit_scale: float = 1.0,
                   softcap: float | None = None, part: int | None = None,
                   backend: str = "auto") -> Table:
    """Update every row, from what the full softmax left; see `update_streamed`.

    inputs: (`fetched.unique.ids`, gradient of `fetched.rows`), or None if untied.
    bias: of that softmax; it stays as it is, see `apply_streamed_with_bias`.
    """
    rows, state, _ = _streamed(mesh, table, scored, inputs, update, hyper, seed, bias,
                               logit_scale=logit_scale, softcap=softcap, part=part,
                               backend=backend)
    return table.replace(rows=rows, state=state)


def apply_streamed_with_bias(mesh: Mesh, table: Table, scored: Scored,
                             inputs: tuple[Array, Array] | None, update: RowUpdate, hyper: Any, *,
                             bias: Array, seed: Array | None = None, logit_scale: float = 1.0,
                             softcap: float | None = None, backend: str = "auto"
                             ) -> tuple[Table, Array]:
    """`apply_streamed`, and the gradient of the bias f32 `[V_padded]`, cut as the rows: the same
    pass sums it. `rec_jax.tables.bias.update_bias` takes a step of it."""
    rows, state, grads = _streamed(mesh, table, scored, inputs, update, hyper, seed, bias,
                                   logit_scale=logit_scale, softcap=softcap, backend=backend)
    assert grads is not None
    return table.replace(rows=rows, state=state), grads


def _streamed(mesh: Mesh, table: Table, scored: Scored, inputs: tuple[Array, Array] | None,
              update: RowUpdate, hyper: Any, seed: Array | None, bias: Array | None,
              **scoring: Any) -> Updated:
    shards = shards_of(mesh, table.over)

    def body(rows: Array, state: Any, scored: Scored, inputs: tuple[Array, Array] | None,
             hyper: Any, seed: Array | None, bias: Array | None) -> Updated:
        return update_streamed(rows, state, scored, inputs, shards, update, hyper,
                               num_items=table.num_items, seed=seed, bias=bias, **scoring)

    cut = P(table.over)
    updated: Updated = island(body, mesh, (cut, cut, _CUT, _CUT, P(), P(), cut), cut)(
        table.rows, table.state, scored, inputs, hyper, seed, bias)
    return updated


def _capacity(shards: Shards, table: Table, wanted: dict[str, Array],
              slack: float | None) -> int | None:
    """Places in a message between two devices; None where there are no messages."""
    if shards.pieces == 1:
        return None
    count = sum(ids.size for ids in wanted.values()) // (shards.replicas * shards.pieces)
    return gather.message_capacity(count, shards, slack, num_items=table.num_items,
                                   rows_per_shard=table.total // shards.pieces)


def _fetched_specs(capacity: int | None) -> Fetched:
    if capacity is None:
        return Fetched(_CUT, _CUT, None)  # type: ignore[arg-type]
    return Fetched(_CUT, _CUT, Route(_CUT, _CUT, _CUT, P(), capacity))  # type: ignore[arg-type]


def _route_specs(route: Route | None) -> Any:
    return None if route is None else Route(
        _CUT, _CUT, _CUT, P(), route.capacity)  # type: ignore[arg-type]
