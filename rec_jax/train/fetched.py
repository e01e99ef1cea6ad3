"""Rows of one table that a step names: fetched, differentiated as fetched, updated in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.mesh import replicated
from rec_jax.objectives.base import Ids
from rec_jax.tables import Hyper, Table, row_optimizer
from rec_jax.tables.fixed import trained_only
from rec_jax.tables.marks import marking
from rec_jax.tables.on_mesh import Fetched, apply_sparse, fetch, spread
from rec_jax.train.mode import Array, Request, Setting


class FetchedRows(NamedTuple):
    """The rows of a request.

    distinct: each row once a device.
    shared: vectors `[K, d]` by name, brought to every device once: each position reads them all.
    each: vectors f32 `[A, n, d]` by name.
    pull: gradients of `shared` and `each` -> f32 `[M, d]`, that of the distinct rows.
    """

    table: Table
    distinct: Fetched
    shared: dict[str, Array]
    each: dict[str, Array]
    pull: Callable[[Mapping[str, Array], Mapping[str, Array]], Array]


def fetch_rows(setting: Setting, name: str, table: Table, request: Request) -> FetchedRows:
    """Fetch what `request` names of table `name`."""
    mesh = setting.mesh
    wanted: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    for group, of_each in ((request.each, True), (request.shared, False)):
        for part, (ids, present) in group.items():
            # The devices share the slots of a micro-batch evenly.
            wanted[part], masks[part] = (_even(x.reshape(len(ids) if of_each else 1, -1), mesh.size)
                                         for x in (ids, present))
    distinct = fetch(mesh, table, wanted, masks, slack=setting.tables[name].gather_slack)
    vectors, pull = jax.vjp(lambda rows: spread(mesh, rows, distinct.unique, wanted),
                            distinct.rows.astype(jnp.float32))
    shared = {part: jax.lax.with_sharding_constraint(
        vectors[part][0, :ids.ids.size], replicated(mesh)) for part, ids in request.shared.items()}
    each = {part: vectors[part] for part in request.each}

    def back(to_shared: Mapping[str, Array], to_each: Mapping[str, Array]) -> Array:
        whole = {part: jnp.pad(grad, ((0, wanted[part].shape[1] - len(grad)), (0, 0)))[None]
                 for part, grad in to_shared.items()}
        (to_rows,) = pull({**to_each, **whole})
        return to_rows  # type: ignore[no-any-return]

    return FetchedRows(table, distinct, shared, each, back)


def rows_named(vectors: Array, ids: Ids) -> Array:
    """Vectors `[n', d]` of a name as `[..., d]`, without the slots that made them even."""
    return vectors[:ids.ids.size].reshape(*ids.ids.shape, vectors.shape[-1])


def update_fetched(setting: Setting, name: str, fetched: FetchedRows, to_rows: Array, hyper: Hyper,
                   seed: Array) -> Table:
    """The table after its row optimizer's step of those rows, from their gradient `[M, d]`."""
    table = fetched.table
    own = trained_only(row_optimizer(setting.tables[name].optimizer).update, table.fixed)
    update: Any = marking(own, table.state)
    return apply_sparse(setting.mesh, table, fetched.distinct, to_rows, update, hyper, seed=seed)


def _even(values: Array, devices: int) -> Array:
    """`[a, n]` with slots of 0 behind it until the devices divide n."""
    return jnp.pad(values, ((0, 0), (0, -values.shape[1] % devices)))
