"""What a step reads of items whose vectors are a mixture with their neighbours', where it makes
those that it names alone.

    ids that feed the encoder or that a loss names -> these, and K neighbours of each -> their rows

A name becomes two: labels -> labels:o (the items themselves), labels:n (their neighbours). So ids
come before rows, and rows are fetched, trained and sharded as any others. It costs 1 + K rows a
name, however large the graph is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rec_jax.data.covisits import Nearest
from rec_jax.model.graphs import of_vectors
from rec_jax.model.item_graph import ItemGraph, some_vectors
from rec_jax.objectives.base import Ids
from rec_jax.tables import ITEMS
from rec_jax.train.mode import Array, Batch, Setting, TableCatalogue
from rec_jax.train.node_catalogue import Named, NodeCatalogue
from rec_jax.train.state import TrainState

OWN, NEAR = ":o", ":n"


class ItemNeighbourhood(NamedTuple):
    """graph: whose neighbours are read."""

    graph: ItemGraph

    def of_batch(self, ids: Named, batch: Batch) -> Named:
        """`ids` that feed the encoder, as they are."""
        del batch
        return ids

    def rows_of(self, named: Mapping[str, Mapping[str, Ids]]) -> Named:
        """What is read of each table for the vectors of the items in `named`."""
        found: Named = {table: dict(ids) for table, ids in named.items() if table != ITEMS}
        found[ITEMS] = {}
        for name, ids in named[ITEMS].items():
            near = self._near(ids.ids)
            found[ITEMS][name + OWN] = ids
            found[ITEMS][name + NEAR] = Ids(near.ids,
                                            ids.present[..., None] & (near.weights > 0))
        return found

    def _near(self, ids: Array) -> Nearest:
        ids = jnp.clip(ids, 0, len(self.graph.near.ids) - 1)
        return Nearest(*(each[ids] for each in self.graph.near))

    def answers(self, setting: Setting, state: TrainState, params: Mapping[str, Array],
                answers: Mapping[str, TableCatalogue], ids: Mapping[str, Mapping[str, Ids]],
                micro: Batch) -> dict[str, TableCatalogue]:
        """The answers with vectors of items in the place of their rows.

        ids: what `rows_of` gave, of one micro-batch and of all of them.
        """
        del micro
        rows = answers[ITEMS]

        def vectors(name: str) -> Array:
            weights = self._near(ids[ITEMS][name + OWN].ids).weights
            return some_vectors(self.graph, params, rows.rows(name + OWN).astype(jnp.float32),
                                rows.rows(name + NEAR).astype(jnp.float32), weights)

        return {**answers, ITEMS: NodeCatalogue(setting, state.items, rows, vectors)}

    def reader(self, setting: Setting) -> Setting:
        """How a query is made: what the encoder is given are vectors already."""
        return setting._replace(encoder=of_vectors(setting.encoder))
