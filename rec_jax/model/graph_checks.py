"""What does not fit vectors that are made of rows: one clear line for each."""

from __future__ import annotations

from typing import Any

from rec_jax.errors import InputError
from rec_jax.model.encoders import (
    derives_vectors,
    graph_layers,
    sampling_of,
    unit_vectors,
    uses_users,
)


def check_graph(config: Any) -> None:
    """Raises InputError where the config of a run does not fit what makes its vectors."""
    if config.item_graph is not None:
        _check_items(config)
    if derives_vectors(config.encoder):
        _check_nodes(config)


def _check_nodes(config: Any) -> None:
    """Raises InputError for what does not fit vectors of users and items."""
    kind, samples = config.encoder.kind, sampling_of(config.encoder) is not None
    for name, table in (("table", config.table), ("users", config.users)):
        if not samples and table is not None and table.update not in ("auto", "dense"):
            raise InputError(f"{name}.update = {table.update!r}: encoder {kind!r} reads and trains "
                             f"every row in every step; expected {name}.update = 'dense'")
    if graph_layers(config.encoder) and config.continual is not None:
        raise InputError(f"encoder {kind!r}: the graph of a run that goes on has an edge for each "
                         "interaction that it is tested on before it learns it; expected no "
                         "[continual], and a run of its own")
    if samples:
        _check_sampled(config)
    elif config.content:
        raise InputError(f"content: encoder {kind!r} makes an item's vector of rows alone, "
                         "without content; expected no [[content]]")
    if unit_vectors(config.encoder) and config.objective.needs.rates:
        raise InputError(f"encoder.unit: objective {config.objective.kind!r} reads biases in the "
                         "last columns of rows; expected encoder.unit = false")
    if config.bias.trained:
        raise InputError(f"bias.trained: encoder {kind!r} trains rows alone; expected "
                         "bias.trained = false (a bias.strength may be given)")
    if config.objective.needs.search:
        raise InputError(f"objective {config.objective.kind!r} searches stored rows, and those of "
                         f"encoder {kind!r} are not the vectors that it scores; expected an "
                         "objective that does not search, such as next_item or bpr")


def _check_sampled(config: Any) -> None:
    """Raises InputError for what does not fit vectors that are made of drawn neighbours."""
    if config.objective.needs.normaliser and config.table.update not in ("auto", "dense"):
        raise InputError(f"table.update = {config.table.update!r}: objective "
                         f"{config.objective.kind!r} scores the vectors of all items, which are "
                         "made of every row; expected table.update = 'dense', or an objective that "
                         "draws items, such as bpr")
    if config.users is not None and config.users.update not in ("auto", config.table.update):
        raise InputError(f"users.update = {config.users.update!r}, and table.update = "
                         f"{config.table.update!r}: vectors are made of the rows of both; expected "
                         "the same")
    if config.lora:
        raise InputError(f"lora: encoder {config.encoder.kind!r} applies its matrices to nodes "
                         "without adapters; expected no [[lora]]")
    if not config.table.tied:
        raise InputError("table.tied: no history is read, so a table of inputs would never be "
                         "trained; expected table.tied = true")


def _check_items(config: Any) -> None:
    """Raises InputError for what does not fit vectors that are made of neighbours' rows."""
    kind, update = config.objective.kind, config.table.update
    if graph_layers(config.encoder) or uses_users(config.encoder):
        raise InputError(f"item_graph: encoder {config.encoder.kind!r} reads users; expected one "
                         "of histories, such as transformer, or no [item_graph]")
    if not config.table.tied:
        raise InputError("item_graph: one table is read and scored, with the same neighbours; "
                         "expected table.tied = true")
    if update == "streamed" or (config.objective.needs.normaliser and update == "sparse"):
        raise InputError(f"table.update = {update!r}: objective {kind!r} scores the vectors of all "
                         "items, which [item_graph] makes of their neighbours; expected "
                         "table.update = 'dense', or 'sparse' with an objective that draws items, "
                         "such as sampled_softmax")
    if config.objective.needs.search:
        raise InputError(f"objective {kind!r} searches stored rows, and those of "
                         "[item_graph] are not the vectors that it scores; expected an objective "
                         "that does not search")
    if config.item_graph.drop == 1 and not config.content:
        raise InputError("item_graph.drop is 1: no step reads an item's own row, and items have no "
                         "content, so nothing of them would be trained; expected less than 1, or "
                         "[[content]]")
    if config.bias.trained:
        raise InputError("bias.trained: [item_graph] trains rows alone; expected bias.trained = "
                         "false (a bias.strength may be given)")
    if any(part.encoder is not None for part in config.content):
        raise InputError("content.encoder: a step makes vectors of the texts that it names, and "
                         "those of neighbours are none; expected vectors that `rec-jax embed` made")
    if config.continual is not None:
        raise InputError("item_graph: a run that goes on from another one has its neighbours no "
                         "more; expected no [continual]")
