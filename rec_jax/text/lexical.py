"""Words of a query in the texts of the items: BM25 (Robertson and Zaragoza, 2009).

    score(q, i) = sum over words w of q of  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b n_i / n))
    idf(w) = log(1 + (N - df + 1/2) / (df + 1/2))

with tf the times that w stands in the text of item i, n_i its words, n their mean, and df the texts
out of N that have w. The weights are a sparse matrix `[words, V]` once, so that a query costs the
occurrences of its words. A word that a query has twice counts twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

Floats = npt.NDArray[np.float32]

K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, without case and accents: `Café-2` is `cafe` and `2`."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(one for one in plain if not unicodedata.combining(one)))


@dataclass(frozen=True)
class Lexical:
    """The texts of a catalogue. places: of each word; weights: `[words, V]`, CSR, f32."""

    places: Mapping[str, int]
    weights: Any

    def scores(self, texts: Sequence[str]) -> Floats:
        """BM25 f32 `[n, V]` of each item for each text; 0 where they share no word."""
        rows, columns, counts = [], [], []
        for row, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                if word in self.places:
                    rows.append(row)
                    columns.append(self.places[word])
                    counts.append(count)
        asked = sparse.csr_array((np.array(counts, np.float32), (rows, columns)),
                                 shape=(len(texts), self.weights.shape[0]))
        found: Floats = (asked @ self.weights).toarray()
        return found


def index_words(texts: Iterable[str], k1: float = K1, b: float = B) -> Lexical:
    """The index of the texts of all items, in their order; "" is an item without text."""
    places: dict[str, int] = {}
    rows, columns, counts, lengths = [], [], [], []
    for item, text in enumerate(texts):
        found = Counter(words_of(text))
        lengths.append(sum(found.values()))
        for word, count in found.items():
            rows.append(places.setdefault(word, len(places)))
            columns.append(item)
            counts.append(count)
    length = np.array(lengths, np.float64)
    filled = int(np.count_nonzero(length))
    often, row, column = np.array(counts, np.float64), np.array(rows, int), np.array(columns, int)
    in_texts = np.bincount(row, minlength=len(places))
    rare = np.log1p((filled - in_texts + 0.5) / (in_texts + 0.5))
    spread = k1 * (1 - b + b * length / max(length.sum() / max(filled, 1), 1.0))
    values = rare[row] * often * (k1 + 1) / (often + spread[column])
    return Lexical(places, sparse.csr_array((values.astype(np.float32), (row, column)),
                                            shape=(len(places), len(length))))
