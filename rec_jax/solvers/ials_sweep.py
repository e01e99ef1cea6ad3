"""Half a sweep of alternating least squares: all rows of one table, the other one fixed.

With fixed vectors y and the entries r of a row, implicit feedback (Hu, Koren and Volinsky, 2008)
wants 1 where there is an entry, with confidence 1 + alpha r, and 0 elsewhere, with confidence 1:

    (Y^T Y + sum alpha r y y^T + ridge I) x = sum (1 + alpha r) y

and explicit feedback wants the entries alone: (sum y y^T + ridge I) x = sum r y. The Gramian Y^T Y
is made once. `ridge` is reg * n^power, where n is the sum of the row's confidences (Rendle et al.,
2022; Zhou et al., 2008).

Rows of both tables are cut over both axes of the mesh; a device solves its own, for which the
fixed rows come by all-to-all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rec_jax.mesh import BOTH, batch_sharding, island, row_sharding
from rec_jax.solvers.base import Matrix
from rec_jax.solvers.ials_layout import Batch, Layout, places
from rec_jax.tables.on_mesh import fetch, spread
from rec_jax.tables.table import Table, first_rows, padded_size

Array = jax.Array
P = PartitionSpec
_CUT = P(BOTH)
_product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Rule:
    """What a half sweep solves; static. columns: rows of the fixed table, without padding."""

    alpha: float
    reg: float
    power: float
    implicit: bool
    solver: Literal["cholesky", "cg"]
    cg_steps: int


def new_table(count: int, dim: int, mesh: Mesh, *, seed: int = 0, scale: float = 0.0) -> Table:
    """Rows `[padded, dim]`; row r of it stands at `places(...)[r]`, and starts the same on any
    mesh. scale: standard deviation of the first values; 0: zeros."""
    total = padded_size(count)
    index = np.full(total, count, np.int32)
    index[places(count, total, mesh.size)] = np.arange(count)

    def make(index: Array) -> Array:
        return first_rows(jnp.uint32(seed % 2**32), index, dim=dim, scale=scale, num_items=count)

    rows = jax.jit(make, out_shardings=row_sharding(mesh, BOTH))(index)
    return Table(rows, (), total, BOTH)


def rows_of(table: Table, count: int, mesh: Mesh) -> np.ndarray:
    """f32 `[count, d]` in the order of the ids."""
    return np.asarray(table.rows)[places(count, table.rows.shape[0], mesh.size)]


def half_sweep(mesh: Mesh, solved: Table, fixed: Table, layout: Layout, rule: Rule) -> Table:
    """`solved` with every row of the layout's matrix `[R, C]` anew; rows without entries stay.

    fixed: the table of the columns.
    """
    where = places(layout.matrix.shape[1], fixed.rows.shape[0], mesh.size)
    gram = _gramian(mesh, fixed.rows) if rule.implicit else jnp.zeros(
        (fixed.rows.shape[1],) * 2, jnp.float32)
    sharding, rows = batch_sharding(mesh), solved.rows
    columns = jnp.float32(layout.matrix.shape[1])
    for batch in layout.batches(where):
        placed = Batch(*(jax.device_put(part, sharding) for part in batch))
        rows = _solve(mesh, rule, layout.slots, rows, fixed, placed, gram, columns)
    return solved.replace(rows=rows)


def solve_new(mesh: Mesh, fixed: Table, histories: Matrix, rule: Rule) -> np.ndarray:
    """Fold-in: vectors f32 `[M, d]` of rows that were not there in training."""
    count, dim = histories.shape[0], fixed.rows.shape[1]
    if count == 0:
        return np.zeros((0, dim), np.float32)
    table = new_table(count, dim, mesh)
    table = half_sweep(mesh, table, fixed, Layout.of(histories, mesh.size), rule)
    return rows_of(table, count, mesh)


@partial(jax.jit, static_argnums=0)
def _gramian(mesh: Mesh, rows: Array) -> Array:
    def body(rows: Array) -> Array:
        gram = _product("vd,ve->de", rows, rows)
        return gram if mesh.size == 1 else jax.lax.psum(gram, BOTH)

    return island(body, mesh, (_CUT,), P())(rows)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _solve(mesh: Mesh, rule: Rule, slots: int, rows: Array, fixed: Table, batch: Batch,
           gram: Array, columns: Array) -> Array:
    vectors = _vectors(mesh, fixed, batch)

    def body(rows: Array, vectors: Array, batch: Batch, gram: Array, columns: Array) -> Array:
        system = _system(rule, slots, vectors, batch, gram, columns)
        if rule.solver == "cholesky":
            solved = _by_cholesky(*system)
        else:
            before = jnp.take(rows, batch.row, axis=0, mode="fill", fill_value=0.0)
            solved = _by_cg(*system, before, rule.cg_steps)
        return rows.at[batch.row].set(solved, mode="drop")

    return island(body, mesh, (_CUT, _CUT, _CUT, P(), P()), _CUT)(
        rows, vectors, batch, gram, columns)


def _vectors(mesh: Mesh, fixed: Table, batch: Batch) -> Array:
    """Rows of a batch's entries `[D * P, L, d]`, 0 where there is none."""
    if mesh.size == 1:  # a plain gather: nothing travels, so ids need no sorting
        return jnp.where(batch.there[..., None], fixed.rows[batch.ids], 0.0)
    wanted = {"ids": batch.ids.reshape(1, -1)}
    fetched = fetch(mesh, fixed, wanted, {"ids": batch.there.reshape(1, -1)})
    found = spread(mesh, fetched.rows, fetched.unique, wanted)["ids"]
    return found.reshape(*batch.ids.shape, -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Normal:
    """The matrices of S systems, not yet multiplied out: gram + sum of weight * y y^T + ridge I.

    vectors: `[P, L, d]`; weights: `[P, L]`; owner: `[P]`; ridge: `[S]`.
    """

    vectors: Array
    weights: Array
    owner: Array
    gram: Array
    ridge: Array

    def add(self, pieces: Array) -> Array:
        """`[P, ...]` -> sums over the pieces of each row `[S, ...]`."""
        return jax.ops.segment_sum(pieces, self.owner, self.ridge.shape[0],
                                   indices_are_sorted=True)

    def dense(self) -> Array:
        """`[S, d, d]`."""
        weighted = self.vectors * self.weights[..., None]
        pieces = _product("pld,ple->pde", weighted, self.vectors)
        eye = jnp.eye(self.gram.shape[0], dtype=jnp.float32)
        return self.add(pieces) + self.gram + self.ridge[:, None, None] * eye

    def times(self, x: Array) -> Array:
        """Each matrix times its vector of `x` `[S, d]`."""
        mine = jnp.take(x, self.owner, axis=0, mode="fill", fill_value=0.0)  # [P, d]
        along = self.weights * _product("pld,pd->pl", self.vectors, mine)
        summed = self.add(_product("pl,pld->pd", along, self.vectors))
        return summed + _product("sd,de->se", x, self.gram) + self.ridge[:, None] * x


def _system(rule: Rule, slots: int, vectors: Array, batch: Batch, gram: Array,
            columns: Array) -> tuple[_Normal, Array]:
    """The matrices and right sides `[S, d]` of a device's batch."""
    if rule.implicit:
        weights = rule.alpha * batch.values
        gain = 1.0 + weights
    else:
        weights, gain = batch.there.astype(jnp.float32), batch.values
    normal = _Normal(vectors, weights, batch.owner, gram, jnp.ones(slots, jnp.float32))
    sides = normal.add(_product("pl,pld->pd", gain, vectors))
    confidence = (columns + normal.add(jnp.sum(weights, axis=1)) if rule.implicit
                  else batch.entries)
    ridge = jnp.where(batch.entries > 0, rule.reg * confidence**rule.power, 1.0)
    return _Normal(vectors, weights, batch.owner, gram, ridge), sides


def _by_cholesky(normal: _Normal, sides: Array) -> Array:
    lower = jnp.linalg.cholesky(normal.dense())
    solve = partial(jax.lax.linalg.triangular_solve, lower, left_side=True, lower=True)
    return solve(solve(sides[..., None]), transpose_a=True)[..., 0]


def _by_cg(normal: _Normal, sides: Array, start: Array, steps: int) -> Array:
    """Conjugate gradients from `start` `[S, d]`, all systems side by side (Takacs et al., 2011)."""
    left = sides - normal.times(start)

    def one(_: Any, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        x, left, direction, size = carry
        turned = normal.times(direction)
        step = _ratio(size, jnp.sum(direction * turned, axis=1))
        x, left = x + step[:, None] * direction, left - step[:, None] * turned
        after = jnp.sum(left * left, axis=1)
        return x, left, left + _ratio(after, size)[:, None] * direction, after

    carry = (start, left, left, jnp.sum(left * left, axis=1))
    return jax.lax.fori_loop(0, steps, one, carry)[0]


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
