"""What the step and the modes of its tables say to each other.

A mode is how a table trains. It opens a table for one step: it says what of the table is
differentiated, answers the loss, and makes the new table from the gradients. `dense`, `sparse`
and `streamed` each are one file; a step opens each of its tables by its own mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rec_jax.errors import InputError
from rec_jax.mesh import replicated
from rec_jax.model.encoder import Encoder, Params
from rec_jax.model.encoders import Inputs
from rec_jax.model.rows import RowSource, drop_of
from rec_jax.model.tuning import EVERYTHING, Tuning
from rec_jax.objectives.base import Catalogue, Ids, Task
from rec_jax.tables import INPUTS, ITEMS, Hyper, Table, TableConfig
from rec_jax.tables.choose import Mode as ModeName
from rec_jax.tables.on_mesh import catalogue_top_k, shared_softmax

Array = jax.Array
Batch = dict[str, Any]
"""items, targets (-1: none), segments (0: padding), positions: int32 `[A, B, L]` for A
micro-batches; times as well where the model uses them, features/NAME `[A, B, L, K]` where it
has side features, users where there is a table of them, and f32 log_q (log of each target's
share of all labels), values/NAME and int32 histories `[A, B, S]` where the objective needs them;
f32 importance, factors on the positions' weights, where somebody has them."""


READ = "inputs"
"""The name of the rows that feed the encoder."""


class Setting(NamedTuple):
    """What a step is made for; static. tables: settings by name, modes: how each trains; compute:
    dtype of encoder and scores; tuning: what trains at which share of the learning rate."""

    encoder: Encoder
    objective: Any
    tables: Mapping[str, TableConfig]
    modes: Mapping[str, ModeName]
    mesh: Mesh
    compute: Any
    tuning: Tuning = EVERYTHING

    @property
    def reads(self) -> str:
        """The table whose rows feed the encoder."""
        return INPUTS if INPUTS in self.tables else ITEMS


class Request(NamedTuple):
    """Ids of one table whose rows a step reads, by name.

    each: `[A, ...]`, those of every micro-batch; shared: `[K]`, the same for all of them.
    positions: (A, N), of which a loss asks for the table's log-normaliser; (): there are none.
    """

    each: Mapping[str, Ids]
    shared: Mapping[str, Ids] = {}
    positions: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the step reads no row by its id."""
        return not self.each and not self.shared


class Gradients(NamedTuple):
    """What a table gets to finish a step.

    parameters, slices: gradients of the mean loss, in the structure of `OpenTable`.
    asked: what the loss left in `TableCatalogue.asked`, stacked over micro-batches.
    updates: optax's updates of `parameters`, where it trains them.
    seed: uint32 `[]`, for stochastic rounding.
    """

    parameters: Any
    slices: Any
    asked: Any
    updates: Any
    hyper: Hyper
    seed: Array


class Composed(NamedTuple):
    """How a table's stored rows become vectors, see `rec_jax.model.rows`, with its parameters.

    vectors: stored rows `[..., w]` -> vectors `[..., d]`; queries: `[..., d]` -> `[..., w]`, with
    the same products. in_step: stored rows `[..., w]`, ids `[...]` -> the rows as the step has
    them, without the own values of some items.
    """

    vectors: Callable[[Array], Array]
    queries: Callable[[Array], Array]
    in_step: Callable[[Array, Array], Array]


def composed(source: RowSource, params: Params, key: Array) -> Composed:
    """The functions of `source` with their parameters. key: of the step's `streams.ROWS`."""
    return Composed(functools.partial(source.compose, params),
                    functools.partial(source.expand, params),
                    functools.partial(source.without_own, key) if drop_of(source)
                    else STORED.in_step)


STORED = Composed(lambda rows: rows, lambda queries: queries, lambda rows, ids: rows)
"""Rows are the vectors themselves."""


class TableCatalogue(Catalogue, Protocol):
    """A table's answers to the loss of one micro-batch."""

    @property
    def asked(self) -> Any:
        """Arrays of the questions so far that the update needs; a pytree."""
        ...

    def stored(self, name: str) -> Array:
        """As `rows`, but as they are stored `[..., w]`: not composed."""
        ...


class OpenTable(NamedTuple):
    """A table in one step.

    parameters: differentiated, the same for every micro-batch.
    slices: differentiated, one slice `[A, ...]` for each micro-batch.
    catalogue: (parameters, one slice, the ids of one micro-batch, how rows become vectors) -> its
      answers.
    close: the new table.
    """

    parameters: Any
    slices: Any
    catalogue: Callable[[Any, Any, Mapping[str, Ids], Composed], TableCatalogue]
    close: Callable[[Gradients], Table]


Opener = Callable[[Setting, str, Table, Request], OpenTable]
"""A way to train a table: what opens table `name` for one step in which `request` is read of it."""


class Answers:
    """The questions that every way to train answers alike, and refusals of the others."""

    asked: Any = ()

    def __init__(self, setting: Setting, table: Table, composed: Composed) -> None:
        self._mesh, self._table, self._composed = setting.mesh, table, composed

    def stored(self, name: str) -> Array:
        """See `TableCatalogue`."""
        raise NotImplementedError

    def rows(self, name: str) -> Array:
        """See `Catalogue`."""
        return self._composed.vectors(self.stored(name))

    @property
    def num_items(self) -> int:
        """V."""
        return self._table.num_items

    def softmax(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array]:
        """See `Catalogue`."""
        raise InputError("a sparse table gives no log-normaliser, since every row would have a "
                         "gradient; expected table.update = 'dense' or 'streamed', or an objective "
                         "whose needs.normaliser says so")

    def entropy(self, queries: Array, targets: Array, *, scale: float = 1.0,
                softcap: float | None = None, backend: str = "auto"
                ) -> tuple[Array, Array, Array]:
        """See `Catalogue`."""
        raise InputError("a sparse table gives no entropy, since every row would have a gradient; "
                         "expected table.update = 'dense' or 'streamed'")

    def bias(self, name: str) -> Array | None:
        """See `Catalogue`."""
        del name
        if self._table.bias is not None:
            raise InputError("a bias in the loss needs the full softmax; expected an objective "
                             "with needs.normaliser, or bias.strength = 0")
        return None

    def mean_row(self) -> Array:
        """See `Catalogue`."""
        raise InputError("a table that is not dense gives no mean row; expected "
                         "table.update = 'dense'")

    def top_k(self, queries: Array, k: int, exclude: Array | None = None
              ) -> tuple[Array, Array]:
        """See `Catalogue`."""
        return top_k(self._mesh, self._table, self._composed.queries(queries), k, exclude)

    def softmax_among(self, queries: Array, rows: Array, slots: Array, *, bias: Array,
                      scale: float = 1.0, backend: str = "auto"
                      ) -> tuple[Array, Array]:
        """See `Catalogue`."""
        return shared_softmax(self._mesh, queries, rows, slots, bias=bias, logit_scale=scale,
                              backend=backend)


def top_k(mesh: Mesh, table: Table, queries: Array, k: int, exclude: Array | None
          ) -> tuple[Array, Array]:
    """Best items of a table for queries `[n, d]`; see `Catalogue.top_k`."""
    queries = jax.lax.with_sharding_constraint(jax.lax.stop_gradient(queries), replicated(mesh))
    seen: Any = None if exclude is None else table.row_map.rows(exclude)
    scores, rows = catalogue_top_k(mesh, queries, jax.lax.stop_gradient(table.rows), k, seen,
                                   num_items=table.num_items, over=table.over)
    if table.row_map.identity:
        return scores, rows
    # Of equal scores the lower id comes first again; which of them are among the k, where not
    # all are, follows from their rows.
    score, ids = jax.lax.sort((-scores, table.row_map.ids(rows)), num_keys=2)
    return -score, ids


def queries_of(setting: Setting, params: Params, vectors: Array, micro: Batch, task: Task,
               key: Array | None, users: Array | None = None) -> Array:
    """Input vectors `[B * L, d]` -> queries `[N, d]` of the task's positions, compute dtype.

    key: of dropout; None: there is none. users: `[B * L, d]`, rows of the places' users.
    """
    batch, length = micro["items"].shape
    vectors = vectors.reshape(batch, length, -1)
    inputs = Inputs(micro["segments"], micro["positions"], micro.get("times"),
                    {feature.path: micro[feature.path] for feature in setting.encoder.features
                     if feature.path in micro},
                    None if users is None else users.reshape(batch, length, -1))
    queries = setting.encoder(params, vectors, inputs, key, task.hidden)
    flat = queries.reshape(batch * length, -1)
    return (flat if task.where is None else flat[task.where]).astype(setting.compute)


def weighted(loss: Array, weights: Array) -> Array:
    """Sum of `loss * weights`, of either sign; a position without weight cannot spoil it with nan
    or inf."""
    return jnp.sum(jnp.where(weights != 0, loss * weights, 0.0))
