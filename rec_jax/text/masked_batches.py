"""Texts with hidden tokens, in batches of few shapes: a function of seed and step alone.

Of the tokens of a text that are no special ones, 15 % are to be predicted: floor(.15 n + u) of n
with u uniform, and at least one. Of these, 80 % are replaced by the mask token, 10 % by a random
one, and 10 % stay (Devlin et al., 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rec_jax.text.batches import bucket

SHARE, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1
Ints = np.ndarray


class MaskedBatch(NamedTuple):
    """tokens: int32 `[B, L]` with hidden ones; lengths: int32 `[B]`, 0 where there is no text;
    where: int32 `[M]`, flat places in `[B * L]` that are predicted; targets: int32 `[M]`, what
    stood there; weights: f32 `[M]`, 0 in slots that are not used."""

    tokens: Ints
    lengths: Ints
    where: Ints
    targets: Ints
    weights: Ints


@dataclass(frozen=True)
class Vocabulary:
    """mask: the id that hides a token; special: ids that are never hidden and never drawn; count:
    of all ids."""

    mask: int
    special: frozenset[int]
    count: int

    @property
    def drawn(self) -> Ints:
        """Ids that a random token is one of."""
        return np.array([each for each in range(self.count) if each not in self.special], np.int32)


def size_classes(lengths: Ints, longest: int) -> list[int]:
    """At most three lengths of batches, for the shorter half of the texts, nine tenths, and all."""
    return sorted({bucket(int(np.quantile(lengths, share, method="higher")), longest)
                   for share in (0.5, 0.9, 1.0)})


class MaskedTexts:
    """Texts that are masked anew in every epoch; or once for all, to measure by."""

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: Vocabulary, rows: int,
                 longest: int, seed: int) -> None:
        """texts: token ids, each with at least one that is not special; rows: texts of a batch."""
        self._texts = [np.asarray(text, np.int32) for text in texts]
        self._vocabulary, self._rows, self._seed = vocabulary, rows, seed
        self._drawn = vocabulary.drawn
        lengths = np.array([len(text) for text in self._texts])
        self._sizes = size_classes(lengths, longest)
        self._class = np.searchsorted(self._sizes, lengths)
        counts = np.bincount(self._class, minlength=len(self._sizes))
        self.batches = int(np.ceil(counts / rows).sum())
        self._order: tuple[int, list[tuple[int, Ints]]] = (-1, [])

    def at(self, step: int) -> MaskedBatch:
        """The batch of a step, in whatever order they are asked for."""
        epoch, number = divmod(step, self.batches)
        size, places = self._epoch(epoch)[number]
        random = np.random.default_rng((self._seed, 1, step))
        return self._masked(size, places, random)

    def _epoch(self, epoch: int) -> list[tuple[int, Ints]]:
        """Of each batch of an epoch the length and the texts."""
        if self._order[0] != epoch:
            random = np.random.default_rng((self._seed, 0, epoch))
            order = random.permutation(len(self._texts))
            found = []
            for number, size in enumerate(self._sizes):
                own = order[self._class[order] == number]
                found += [(size, own[at:at + self._rows]) for at in range(0, len(own), self._rows)]
            self._order = epoch, [found[each] for each in random.permutation(len(found))]
        return self._order[1]

    def _masked(self, size: int, places: Ints, random: np.random.Generator) -> MaskedBatch:
        rows, slots = self._rows, int(SHARE * size) + 1
        tokens, lengths = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
        where, targets = np.zeros((2, rows, slots), np.int32)
        weights = np.zeros((rows, slots), np.float32)
        for row, place in enumerate(places):
            text = self._texts[place]
            tokens[row, :len(text)], lengths[row] = text, len(text)
            free = np.flatnonzero(~np.isin(text, list(self._vocabulary.special)))
            count = max(1, int(SHARE * len(free) + random.random()))
            hidden = random.permutation(free)[:count]
            where[row, :count], targets[row, :count] = row * size + hidden, text[hidden]
            weights[row, :count] = 1
            coin = random.random(count)
            other = random.choice(self._drawn, count)
            tokens[row, hidden] = np.where(
                coin < TO_MASK, self._vocabulary.mask,
                np.where(coin < TO_MASK + TO_RANDOM, other, text[hidden]))
        return MaskedBatch(tokens, lengths, where.ravel(), targets.ravel(), weights.ravel())
