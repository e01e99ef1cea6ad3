"""Ids that are texts, as 64-bit numbers that are checked.

The id of a text is half of its 128-bit hash (BLAKE2b), and the other half is kept beside it. Two
texts with one id, of which there is one chance in 10^3 among 2 * 10^8 texts, are found by the
other half and refused (`dynamic_ids`); that both halves agree has a chance of 10^-22 there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class TextIds(NamedTuple):
    """ids, checks: int64 `[n]`; no check is 0 or -1, which stand for none and for two."""

    ids: np.ndarray
    checks: np.ndarray


def text_ids(texts: Iterable[str]) -> TextIds:
    """The ids of `texts` and what they are checked by: the same on every machine."""
    joined = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts)
    halves = np.frombuffer(joined, "<i8").reshape(-1, 2).astype(np.int64)
    checks = halves[:, 1].copy()
    checks[(checks == 0) | (checks == -1)] = 1
    return TextIds(halves[:, 0].copy(), checks)
