"""Titles and text of items, from a file of their own, joined to the vocabulary by id."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec_jax.data.item_files import read_items
from rec_jax.data.prepare_config import ItemFile


def read_item_text(source: ItemFile, ids: pl.Series) -> tuple[pl.DataFrame, list[str]]:
    """Columns `title` and `text` (where mapped) in the order of `ids`; null where unknown.

    Several text columns are joined by a space. Of an id that occurs twice, the first row counts.
    Also returned: lines that say what of the file is of no use.

    Raises:
      InputError: the file is missing or lacks a column.
    """
    roles = {"id": source.id} | ({"title": source.title} if source.title else {})
    roles |= {f"text{index}": name for index, name in enumerate(source.text)}
    frames, faults = read_items(source, roles)
    frame = pl.concat([pl.DataFrame(schema=dict.fromkeys(roles, pl.String())), *frames])
    found = ids.alias("id").to_frame().join(
        frame.filter(pl.col("id").is_not_null()).unique("id", keep="first", maintain_order=True),
        on="id", how="left", maintain_order="left")
    columns = []
    if source.title:
        columns.append(pl.col("title"))
    if source.text:
        joined = pl.concat_str([f"text{index}" for index in range(len(source.text))],
                               separator=" ", ignore_nulls=True)
        columns.append(joined.replace("", None).alias("text"))
    result = found.select(columns)
    notes = faults.notes(source)
    for name in result.columns:
        if len(ids) and result[name].null_count() == len(ids):
            example = f": such as {frame['id'][0]!r} there, {ids[0]!r} here" if len(frame) else ""
            notes.append(f"0 of {len(ids)} items have a {name} in {Path(source.path).name}"
                         f"{example}")
    return result, notes
