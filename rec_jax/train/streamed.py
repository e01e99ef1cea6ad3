"""Streamed: full softmax over a table whose gradient is never an array.

The loss reads the table as a constant. Zeros are added to loss and log-normaliser, whose gradients
are the cotangents of those two; from them the kernel's second pass makes each tile's gradient
again and takes the optimizer step there. Rows that the step names (the inputs of tied
tables, further labels) are fetched as in `sparse`, and their gradients join in the tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.model.rows import drop_of
from rec_jax.objectives.base import Ids
from rec_jax.tables import ITEMS, Table, row_optimizer
from rec_jax.tables.bias import update_bias
from rec_jax.tables.fixed import leave_rows, trained_only
from rec_jax.tables.on_mesh import (
    apply_streamed,
    apply_streamed_with_bias,
    full_entropy,
    full_softmax,
)
from rec_jax.tables.update_streamed import Scored
from rec_jax.train.fetched import FetchedRows, fetch_rows
from rec_jax.train.mode import Array, Composed, Gradients, OpenTable, Request, Setting
from rec_jax.train.sparse import SparseCatalogue


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asked:
    """The softmax that the loss asked for, as the update needs it: queries `[N, d]`, rows of the
    targets int32 `[N]`, the answers f32 `[N]`; entropy: None where it was not asked for. Static:
    how it scored."""

    queries: Array
    targets: Array
    loss: Array
    lse: Array
    entropy: Array | None
    logit_scale: float = field(metadata={"static": True})
    softcap: float | None = field(metadata={"static": True})
    backend: str = field(metadata={"static": True})

    @property
    def scoring(self) -> dict[str, Any]:
        """How it scored, as arguments."""
        return {"logit_scale": self.logit_scale, "softcap": self.softcap, "backend": self.backend}


class StreamedCatalogue(SparseCatalogue):
    """Answers from one pass over the table, and from the rows that were fetched."""

    def __init__(self, setting: Setting, table: Table, parts: Mapping[str, Any],
                 shared: Mapping[str, Array], ids: Mapping[str, Ids], composed: Composed) -> None:
        super().__init__(setting, table, shared, parts["each"], ids, composed)
        self._zeros, self._part = parts["zeros"], setting.tables[ITEMS].part

    def softmax(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array]:
        """See `Catalogue`."""
        return self._ask(("loss", "lse"), queries, targets, scale, softcap, backend)

    def entropy(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array, Array]:
        """See `Catalogue`."""
        return self._ask(("loss", "lse", "entropy"), queries, targets, scale, softcap, backend)

    def _ask(self, names: tuple[str, ...], queries: Array, targets: Array, scale: float,
             softcap: float | None, backend: str) -> Any:
        """The answers of one pass, with zeros added whose gradients are their cotangents."""
        if self.asked:
            raise InputError("a streamed table is passed over once a step; expected an objective "
                             "that asks for the log-normaliser once, or table.update = 'dense'")
        table = self._table
        targets, queries = table.row_map.rows(targets), self._composed.queries(queries)
        answers = self._answers(names, queries, targets, scale, softcap, backend)
        found = {name: answer + self._zeros[name]
                 for name, answer in zip(names, answers, strict=True)}
        self.asked = (Asked(queries, targets, found["loss"], found["lse"], found.get("entropy"),
                            scale, softcap, backend),)
        return tuple(found.values())

    def _answers(self, names: tuple[str, ...], queries: Array, targets: Array, scale: float,
                 softcap: float | None, backend: str) -> tuple[Array, ...]:
        """What is asked by name, f32 `[N]` each; queries and targets are those of
        `full_softmax`."""
        table = self._table
        given: dict[str, Any] = {
            "num_items": table.num_items, "over": table.over, "bias": table.bias,
            "logit_scale": scale, "softcap": softcap, "backend": backend}
        rows = jax.lax.stop_gradient(table.rows)
        if "entropy" not in names:
            return full_softmax(self._mesh, queries, rows, targets, part=self._part, **given)
        if self._part is not None:
            raise InputError("a table that is read in parts (table.part) gives no entropy; "
                             "expected none")
        return full_entropy(self._mesh, queries, rows, targets, **given)

    def bias(self, name: str) -> Array | None:
        """See `Catalogue`."""
        table = self._table
        if table.bias is None:
            return None
        if table.trains_bias:
            raise InputError("several labels a position have no gradient of a trained bias in a "
                             "streamed table; expected table.update = 'dense', or bias.trained = "
                             "false")
        numbers = table.row_map.rows(self._ids[name].ids)
        return jnp.take(table.bias, numbers, axis=0)


def open_table(setting: Setting, name: str, table: Table, request: Request) -> OpenTable:
    """See `mode.Opener`."""
    fetched = None if request.empty else fetch_rows(setting, name, table, request)
    zeros = jnp.zeros(request.positions, jnp.float32)
    slices = {"each": {} if fetched is None else fetched.each,
              "zeros": {"loss": zeros, "lse": zeros, "entropy": zeros}}

    def catalogue(shared: Any, parts: Any, ids: Mapping[str, Ids],
                  composed: Composed) -> StreamedCatalogue:
        return StreamedCatalogue(setting, table, parts, shared, {**ids, **request.shared},
                                 composed)

    def close(gradients: Gradients) -> Table:
        joined, asked, scored = left(fetched, gradients)
        own = row_optimizer(setting.tables[name].optimizer).update
        update = trained_only(own, table.fixed)
        if drop_of(setting.encoder.source) == 1:  # items have no values of their own
            update = leave_rows
        if table.bias is None or not table.trains_bias:
            return apply_streamed(setting.mesh, table, scored, joined, update, gradients.hyper,
                                  bias=table.bias, seed=gradients.seed,
                                  part=setting.tables[name].part, **asked.scoring)
        moved, to_bias = apply_streamed_with_bias(
            setting.mesh, table, scored, joined, update, gradients.hyper, bias=table.bias,
            seed=gradients.seed, **asked.scoring)
        bias, state = update_bias(table.bias, to_bias, table.bias_state, own, gradients.hyper)
        return moved.replace(bias=bias, bias_state=state)

    return OpenTable({} if fetched is None else fetched.shared, slices, catalogue, close)


def left(fetched: FetchedRows | None, gradients: Gradients
         ) -> tuple[tuple[Array, Array] | None, Asked, Scored]:
    """What a step leaves for the update of all rows: gradients of those that it named, and the
    softmax that its loss asked for, of all micro-batches."""
    joined = None
    if fetched is not None:
        joined = (fetched.distinct.unique.ids,
                  fetched.pull(gradients.parameters, gradients.slices["each"]))
    if not gradients.asked:
        raise InputError("a streamed table was not asked for its log-normaliser; expected an "
                         "objective with needs.normaliser, or table.update = 'sparse'")
    (asked,), to_zeros = gradients.asked, gradients.slices["zeros"]
    of_entropy = None if asked.entropy is None else (asked.entropy, to_zeros["entropy"])
    return joined, asked, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), Scored(
        asked.queries, asked.targets, asked.loss, asked.lse, to_zeros["loss"], to_zeros["lse"],
        of_entropy))
