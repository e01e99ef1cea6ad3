"""A trained model whose cold items have the rows that their content gives them.

The rows go where the items' own would be, so that evaluation, recommendation and export need not
know where a row comes from. `rec_jax.inference.cold_rule` says what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from rec_jax.data.content import open_content
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import open_item_vectors, vector_names
from rec_jax.errors import InputError
from rec_jax.inference.blocks import host_rows, set_rows
from rec_jax.inference.cold_edges import fill_by_edges
from rec_jax.inference.cold_rule import EDGES, ColdRule, Floats, Known, cold_vectors
from rec_jax.inference.served import Served
from rec_jax.model.rows import RowSource
from rec_jax.ranges import MOST_FLOAT, check
from rec_jax.tables.bias import place_bias


@dataclass(frozen=True)
class ColdFill:
    """What a model does with items that the training part does not have.

    rule: how they get their vectors; edges: of who took them, see `rec_jax.inference.cold_edges`.
    vectors: names of the item vectors that are their content; by
      default those of the run's `[[content]]`, or else the only ones that the dataset has.
    bias: added to the scores of cold items alone, as `rec_jax.evaluate` calibrates it.
    """

    rule: ColdRule = field(default_factory=ColdRule)
    vectors: tuple[str, ...] = ()
    bias: float = 0.0

    def __post_init__(self) -> None:
        check(self, "cold.")
        if not abs(self.bias) <= MOST_FLOAT:
            raise InputError(f"cold.bias is {self.bias:g}; expected a number")

    def about(self) -> dict[str, Any]:
        """What the protocol of numbers says of it."""
        rule = self.rule
        return {"fill": rule.fill, "neighbours": rule.neighbours, "temperature": rule.temperature,
                "ridge": rule.ridge, "bias": self.bias}


def fill_cold(served: Served, fill: ColdFill | str) -> Served:
    """The model with rows for the items that have content and no training interaction.

    fill: or the name of a rule's `fill`, whose other settings are then those by default.

    Raises:
      InputError: there is no content, or no item that has it is warm.
    """
    served.check_there("rows of cold items from their content")
    if isinstance(fill, str):
        fill = ColdFill(ColdRule(fill))  # type: ignore[arg-type]  # the rule checks it
    if fill.rule.fill == EDGES:
        if fill.vectors:
            raise InputError("cold.vectors are content, by which edges fill nothing; expected none")
        return fill_by_edges(served, fill.bias)
    dataset = served.dataset
    named = fill.vectors or tuple(part.name for part in served.config.content)
    content, has = read_content_of(dataset, named or only_vectors(dataset))
    met = dataset.popularity() > 0
    warm, cold = np.flatnonzero(met & has), np.flatnonzero(~met & has)
    stored = host_rows(served, served.rows)
    biases = (None if served.bias is None
              else host_rows(served, served.bias[:, None]))
    source, vectors = served.encoder.source, False
    if any(part.hidden for part in served.config.content) and served.nodes is None:
        source, stored, vectors = *_taken_apart(served, stored), True
    matrices = matrices_of(source, served.params)
    values, bias = own_values(fill.rule, source, matrices, stored, biases, content, warm, cold)
    made = np.concatenate([values, stored[cold, source.dim:]], axis=1)
    if vectors:
        made = np.asarray(source.compose(matrices, made))  # type: ignore[arg-type]
    rows = set_rows(served.rows, cold, made)
    return replace(served, rows=rows, filled=~met & has, cold=fill.about(),
                   bias=_bias(served, cold, bias, fill.bias))


def _taken_apart(served: Served, vectors: Floats) -> tuple[RowSource, Floats]:
    """How a run that is served as vectors f32 `[V, d]` makes them of rows, and these rows f32
    `[V, w]`."""
    dataset = served.dataset
    opened = open_content(served.config.content, dataset)
    source = RowSource(vectors.shape[1], opened.parts)
    content = np.pad(opened.read(np.arange(dataset.num_items)), ((0, 0), (source.dim, 0)))
    alone: Any = source.compose(matrices_of(source, served.params), content)  # type: ignore[arg-type]
    content[:, :source.dim] = vectors - alone
    return source, content


def own_values(rule: ColdRule, source: RowSource, matrices: Mapping[str, Any], stored: Floats,
               biases: Floats | None, content: Floats, warm: npt.NDArray[np.int64],
               cold: npt.NDArray[np.int64]) -> tuple[Floats, Floats | None]:
    """The values f32 `[C, d]` that the rows of `cold` items get beside their content columns, and
    their bias f32 `[C]`, where there is one.

    stored: f32 `[V, w]`; biases: f32 `[V, 1]` or None; content: f32 `[V, c]`, by which items are
    similar.
    """
    by_content = stored.copy()
    by_content[:, :source.dim] = 0
    alone = np.asarray(source.compose(matrices, by_content))[:, :source.dim]  # type: ignore[arg-type]
    vectors = stored[:, :source.dim] + alone
    if biases is not None:
        vectors = np.concatenate([vectors, biases], axis=1)
        alone = np.concatenate([alone, np.zeros_like(biases)], axis=1)
    found = cold_vectors(rule, Known(vectors[warm], alone[warm], content[warm]), alone[cold],
                         content[cold])
    values = found[:, :source.dim] - alone[cold, :source.dim]
    return values, None if biases is None else found[:, source.dim]


def read_content_of(dataset: Dataset, names: Sequence[str]
                    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Vectors f32 `[V, c]` of these names side by side, and bool `[V]`, which items have all."""
    opened = [open_item_vectors(dataset, name) for name in names]
    return (np.concatenate([np.asarray(one.vectors) for one in opened], axis=1),
            np.all([one.has for one in opened], axis=0))


def only_vectors(dataset: Dataset) -> tuple[str, ...]:
    """The name of a dataset's only item vectors.

    Raises:
      InputError: there are none, or several.
    """
    names = vector_names(dataset.vectors_folder)
    if len(names) != 1:
        raise InputError(f"{dataset.folder} has {len(names)} item vectors "
                         f"({', '.join(names) or 'none'}); expected the name of those that are "
                         "the content of cold items")
    return tuple(names)


def matrices_of(source: RowSource, params: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The parameters of the content, f32 by path, on the host."""
    return {path: np.asarray(params[path], np.float32) for path in source.paths}


def _bias(served: Served, cold: npt.NDArray[np.int64], filled: Floats | None, more: float
          ) -> jax.Array | None:
    """What the model adds to scores, where cold items get `more` beyond what they are given."""
    if filled is None and not more:
        return served.bias
    start = served.bias
    if start is None:
        start = place_bias(served.rows.shape[0], served.mesh, over=served.over)
    given = np.zeros(len(cold), np.float32) if filled is None else filled
    return set_rows(start, cold, given + np.float32(more))
