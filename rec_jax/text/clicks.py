"""Clicks after queries: (text, item) pairs of a log, and which of them are held out.

A text is held out with all of its clicks, by a hash of the seed and its words, so that figures are
of texts that nobody learned from, and the same ones wherever the log grows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.dataset import Dataset, places_of
from rec_jax.data.item_files import read_table
from rec_jax.errors import InputError
from rec_jax.text.lexical import words_of

Ints = npt.NDArray[np.int64]


class Clicks(NamedTuple):
    """texts: Q different ones, in the order of the log; query, item: int64 `[n]`, of each click the
    place of its text and its item; left_out: clicks of texts without a word, and of items that the
    dataset does not have."""

    texts: list[str]
    query: Ints
    item: Ints
    left_out: int = 0

    def of(self, chosen: npt.NDArray[np.bool_]) -> Clicks:
        """The clicks of the texts `chosen`, bool `[Q]`, with these texts alone."""
        places, kept = np.cumsum(chosen) - 1, chosen[self.query]
        texts = [text for text, own in zip(self.texts, chosen, strict=True) if own]
        return Clicks(texts, places[self.query[kept]], self.item[kept], self.left_out)


def read_clicks(dataset: Dataset, table: Path | str, query: str = "query",
                item: str = "item_id") -> Clicks:
    """The clicks on items of `dataset` in the columns `query` and `item` of a CSV, TSV or Parquet
    `table`, one a row.

    Raises:
      InputError: the table cannot be read, lacks a column, or has no click that counts.
    """
    found = read_table(table, {"id": item, "query": query})
    places = places_of(dataset.item_ids(), found["id"])
    # What a search would refuse: `_` is a part of words, and none alone.
    worded = pl.Series([any(map(str.isalnum, text or "")) and bool(words_of(text))
                        for text in found["query"]], dtype=pl.Boolean)
    counts = worded & places.is_not_null()
    if not counts.any():
        raise InputError(f"{table} has no click on an item of {dataset.folder}: {len(found)} rows, "
                         f"{int(places.is_not_null().sum())} of items that it has; expected texts "
                         f"in the column {query!r} and its item ids in {item!r}")
    asked = found["query"].filter(counts)
    texts = asked.unique(maintain_order=True)
    return Clicks(texts.to_list(), places_of(texts, asked).cast(pl.Int64).to_numpy(),
                  places.filter(counts).cast(pl.Int64).to_numpy(), int((~counts).sum()))


def split_clicks(clicks: Clicks, share: float, seed: int) -> tuple[Clicks, Clicks]:
    """The clicks to learn from, and those of about `share` of the texts, which are held out.

    Texts of the same words go together, whatever their case.

    Raises:
      InputError: one of the two has no click.
    """
    drawn = np.array([_number(seed, text) for text in clicks.texts]) < share
    learned, held = clicks.of(~drawn), clicks.of(drawn)
    if not learned.texts or not held.texts:
        raise InputError(f"of {len(clicks.texts)} texts {len(held.texts)} are held out, and "
                         f"{len(learned.texts)} are learned from; expected more texts, or another "
                         "share that is held out")
    return learned, held


def _number(seed: int, text: str) -> float:
    """0 to 1, by chance and always the same."""
    digest = hashlib.sha256(f"{seed} {' '.join(words_of(text))}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
