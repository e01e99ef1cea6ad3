"""Texts of any length -> batches of few static shapes, of which almost nothing is padding.

Texts go from the longest to the shortest, and each batch takes the next ones: as many as have
`batch_tokens` tokens at the length of the bucket that the longest of them needs. So every
batch but the last is full. Which texts share a batch depends on nothing but the texts of the block
that they stand in, never on how many devices there are or on what was computed before: that is why
a resumed job has the bits of one that was not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

BUCKETS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
BLOCK_TEXTS = 8192
"""Texts that are sorted together; what is computed again where a job was killed."""
_ON_CPU, _ON_ACCELERATORS = 1024, 16384


def batch_tokens(platform: str) -> int:
    """Tokens of a batch: on a CPU few, whose activations stay in its cache."""
    return _ON_CPU if platform == "cpu" else _ON_ACCELERATORS


class Batch(NamedTuple):
    """tokens: int32 `[B, L]`, 0 behind the end of a text; lengths: int32 `[B]`, 0 where there is
    no text; places: of the texts in the block, fewer than B in the last batch."""

    tokens: np.ndarray
    lengths: np.ndarray
    places: np.ndarray


def bucket(length: int, longest: int) -> int:
    """The length of the batch for a text of `length` tokens."""
    return min(next((size for size in BUCKETS if size >= length), longest), longest)


def plan(texts: Sequence[Sequence[int]], longest: int, tokens: int) -> Iterator[Batch]:
    """Batches of about so many `tokens` of the texts (token ids) that have any, the longest first.
    """
    lengths = np.array([len(text) for text in texts], np.int32)
    order = np.argsort(-lengths, kind="stable")[:int((lengths > 0).sum())]
    begin = 0
    while begin < len(order):
        size = bucket(int(lengths[order[begin]]), longest)
        rows = max(1, tokens // size)
        places = order[begin:begin + rows]
        begin += len(places)
        ids, counts = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
        for row, place in enumerate(places):
            ids[row, :lengths[place]] = texts[place]
        counts[:len(places)] = lengths[places]
        yield Batch(ids, counts, places)


def rounds(batches: Iterator[Batch], devices: int) -> Iterator[list[Batch]]:
    """Up to `devices` batches of one shape that follow each other."""
    for _, alike in groupby(batches, key=lambda batch: batch.tokens.shape):
        held: list[Batch] = []
        for batch in alike:
            held.append(batch)
            if len(held) == devices:
                yield held
                held = []
        if held:
            yield held
