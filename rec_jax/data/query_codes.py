"""Queries among rows that are not sorted yet.

A query has a text in the place of an item. Until rows are sorted both lie in one stream, so that
time, and else the order of the files, says what came first: text t has the code -1 - t among those
of the items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.vocabulary import Vocabulary

Codes = npt.NDArray[np.int32]


def codes_of(good: pl.DataFrame, items: Vocabulary, texts: Vocabulary | None, source: str) -> Codes:
    """Codes of the items of rows, or of their texts where these are queries."""
    if texts is None:
        return items.encode(good["item"], source)
    asked = good["query"].is_not_null()
    codes = np.empty(len(good), np.int32)
    mask = asked.to_numpy()
    codes[~mask] = items.encode(good["item"].filter(~asked), source)
    codes[mask] = -1 - texts.encode(good["query"].filter(asked), source)
    return codes


def renamed(codes: Codes, items: Codes, texts: Codes) -> Codes:
    """`codes` of one file as those of all files, which `items` and `texts` are by its own ones."""
    found, asked = np.empty_like(codes), codes < 0
    found[~asked], found[asked] = items[codes[~asked]], -1 - texts[-1 - codes[asked]]
    return found
