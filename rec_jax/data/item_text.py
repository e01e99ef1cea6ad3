"""Titles and text of items, from a file of their own, joined to the vocabulary by id."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec_jax.data.prepare_config import ItemFile
from rec_jax.data.readers import Layout, guess_format, read


def read_item_text(source: ItemFile, ids: pl.Series) -> pl.DataFrame:
    """Columns `title` and `text` (where mapped) in the order of `ids`; null where unknown.

    Several text columns are joined by a space. Of an id that occurs twice, the first row counts.

    Raises:
      InputError: the file is missing or lacks a column.
    """
    roles = {"id": source.id} | ({"title": source.title} if source.title else {})
    roles |= {f"text{index}": name for index, name in enumerate(source.text)}
    form = guess_format(source.path, default="tsv" if source.separator else None)
    layout = Layout(roles, source.separator, encoding=source.encoding, names=source.names)
    frame = pl.concat([part.select(pl.col(*roles).cast(pl.String))
                       for part in read(Path(source.path), form, layout)])
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
    return found.select(columns)
