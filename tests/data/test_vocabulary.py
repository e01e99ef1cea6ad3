"""Codes follow first appearance, whatever the type of the ids and the size of the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax.data.vocabulary import TABLE_LIMIT, Vocabulary
from rec_jax.errors import InputError


def encode(blocks: list[list[Any]], dtype: Any) -> tuple[list[int], list[str]]:
    vocabulary = Vocabulary("item")
    codes = [vocabulary.encode(pl.Series(block, dtype=dtype)) for block in blocks]
    assert all(part.dtype == np.int32 for part in codes)
    ids = vocabulary.ids().to_list()
    assert vocabulary.size == len(ids)
    return np.concatenate(codes).tolist(), ids


@pytest.mark.parametrize(("values", "dtype"), [
    ([5, 3, 5, 70_000, 0, 3, 1, 70_000, 9, 5], pl.Int64),
    ([5, TABLE_LIMIT, 5, -1, 0, 3, TABLE_LIMIT, -1, 9, 3], pl.Int64),  # past the table midway
    (["b", "a", "b", "ü", "01", "1", "a", "ü", "", "b"], pl.String)])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_codes_follow_first_appearance(values: list[Any], dtype: Any, size: int) -> None:
    blocks = [[], *(values[start:start + size] for start in range(0, len(values), size))]
    codes, ids = encode(blocks, dtype)
    order = list(dict.fromkeys(values))
    assert codes == [order.index(value) for value in values]
    assert ids == [str(value) for value in order]


def test_an_empty_vocabulary_has_no_ids() -> None:
    assert encode([[]], pl.String) == ([], [])


def test_numbers_and_text_do_not_mix() -> None:
    vocabulary = Vocabulary("user")
    vocabulary.encode(pl.Series([1, 2]))
    with pytest.raises(InputError, match="user ids are Int64 in one file and String in another"):
        vocabulary.encode(pl.Series(["1"]))
