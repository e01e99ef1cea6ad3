"""Checkpoints of older versions: how the arrays of a run were named before tables had names."""

from __future__ import annotations

import dataclasses

from rec_jax.checkpoint.reader import CheckpointReader

TABLES = "tables"
"""What a checkpoint says beside its arrays since tables have names: those names."""


def with_named_tables(opened: CheckpointReader) -> CheckpointReader:
    """The checkpoint of a run under the paths of today.

    Once a state had one table or two, `rows` and `inputs`; the first is now `tables/items`.
    """
    if TABLES in opened.info.extra:
        return opened
    return dataclasses.replace(opened, items={
        item: {_current(path): source for path, source in sources.items()}
        for item, sources in opened.items.items()})


def _current(path: str) -> str:
    if "['encoder']" in path or "['tables']" in path:  # parameters may have any name
        return path
    return path.replace("['rows']", "['tables']['items']").replace(
        "['inputs']", "['tables']['inputs']")
