"""Which models a plan knows a step of, and what its task reads."""

from __future__ import annotations

from rec_jax.errors import InputError
from rec_jax.objectives.base import Task
from rec_jax.run import RunConfig, makes_vectors


def check_known(config: RunConfig) -> None:
    """Raises InputError for a model whose step is not known from sizes alone."""
    if makes_vectors(config):
        whose = ("[item_graph]" if config.item_graph is not None else
                 f"encoder {config.encoder.kind!r}")
        raise InputError(f"{whose} makes vectors of rows, by the graph of a dataset or by their "
                         "norms, and a plan counts steps on rows alone; expected a model without a "
                         "graph, and no encoder.unit")


def drawn_rows(task: Task) -> tuple[int, bool]:
    """How many rows a step reads besides inputs and labels, and whether they are the same for all
    positions."""
    of_each = sum(ids.ids.size for ids in task.reads.values())
    return of_each + sum(ids.ids.size for ids in task.shared.values()), not of_each
