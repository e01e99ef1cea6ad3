"""The text of each item of a dataset, in blocks: its titles and text, or columns of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_files import read_items
from rec_jax.data.item_text import read_item_text
from rec_jax.data.prepare_config import ItemFile
from rec_jax.errors import InputError
from rec_jax.text.batches import BLOCK_TEXTS

KEPT = ("title", "text")


@dataclass(frozen=True)
class ItemTexts:
    """A text an item, "" where it has none. columns: joined by a space; notes: lines for people."""

    columns: tuple[str, ...]
    source: Path | pl.Series
    notes: tuple[str, ...] = ()

    def blocks(self, size: int = BLOCK_TEXTS) -> Iterator[list[str]]:
        """The texts by item index, `size` at a time."""
        if isinstance(self.source, pl.Series):
            for start in range(0, len(self.source), size):
                yield self.source[start:start + size].fill_null("").to_list()
            return
        held: list[str] = []
        with pq.ParquetFile(self.source) as file:
            for batch in file.iter_batches(size, columns=list(self.columns)):
                frame = pl.DataFrame(batch)
                held += _joined(frame, self.columns).to_list()
                while len(held) >= size:
                    yield held[:size]
                    held = held[size:]
        if held:
            yield held

    def measure(self) -> tuple[str, int]:
        """Hex sha256 of all texts, and how many are not empty."""
        digest, count = hashlib.sha256(), 0
        for block in self.blocks():
            coded = [text.encode() for text in block]
            digest.update(np.array([len(each) for each in coded], "<i8").tobytes())
            digest.update(b"".join(coded))
            count += sum(map(bool, block))
        return digest.hexdigest(), count


def texts_of(dataset: Dataset, table: str | None = None, id: str = "item_id",
             columns: Sequence[str] = ()) -> ItemTexts:
    """The text of the items of `dataset`.

    table: a CSV, TSV or Parquet file with a column `id` and text `columns`; ids are matched as
      those of an item file are. None: the titles and text that the dataset keeps, or the
      `columns` of these.

    Raises:
      InputError: a file or column is missing, or no item has text.
    """
    if table is None:
        kept = [name for name in KEPT if name in dataset.meta["item_columns"]]
        if not kept:
            raise InputError(f"{dataset.folder} has no text of its items; expected a table of it, "
                             "or a dataset that was prepared with titles or text")
        for name in columns:
            if name not in kept:
                raise InputError(f"{dataset.folder} has no column {name!r} of text; it has "
                                 f"{', '.join(map(repr, kept))}")
        return ItemTexts(tuple(columns) or tuple(kept), dataset.folder / "item_vocab.parquet")
    if not columns:
        raise InputError(f"no column of {table} is named that holds text; expected at least one")
    ids = dataset.item_ids()
    frame, notes = read_item_text(ItemFile(table, id=id, text=tuple(columns)), ids)
    if frame["text"].null_count() == len(ids):
        raise InputError(notes[-1])
    return ItemTexts(tuple(columns), _joined(frame, ("text",)), tuple(notes))


def table_texts(table: str, columns: Sequence[str]) -> list[str]:
    """The text of every row of a CSV, TSV or Parquet file: its `columns`, joined by a space.

    Raises:
      InputError: the file or a column is missing, or no column is named.
    """
    if not columns:
        raise InputError(f"no column of {table} is named that holds text; expected at least one")
    # The reader wants an id, which the first column is here.
    named = {"id" if not number else f"text{number}": name for number, name in enumerate(columns)}
    frames, _ = read_items(ItemFile(table, id=columns[0], text=tuple(columns)), named)
    return [text for frame in frames for text in _joined(frame, list(named)).to_list()]


def _joined(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    text = pl.concat_str(list(columns), separator=" ", ignore_nulls=True)
    return frame.select(text.str.strip_chars().fill_null("").alias("text"))["text"]
