"""What the vector of an item is that nobody has met yet: a rule on arrays, in NumPy.

An item is cold where it has content and no history. With v the vectors of warm items, x content
of length 1 around the mean of the warm items', and b what a model says of an item by content alone
(`A x` of a run with `[[content]]`, else 0), the vector of a cold item i is

    neighbours   sum_j w_j v_j over the K warm items whose x_j . x_i is largest,
                 w_j = exp(x_j . x_i / temperature) / sum
    projection   b_i + m + (x_i - x') R: R the ridge regression of v - b on x, of which m and x' are
                 the means
    both         the mean of the two
    edges        no rule of content: `rec_jax.inference.cold_edges`

The first is how a bound list of similar items speaks for a new one, the second what is linear in
content (LightFM and DropoutNet learn a b by descent; Gantner et al., ICDM 2010, fit it afterwards).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError
from rec_jax.ranges import above, at_least, check

Floats = npt.NDArray[np.float32]
Fill = Literal["neighbours", "projection", "both", "edges"]
EDGES = "edges"
FILLS: tuple[str, ...] = tuple(fill for fill in get_args(Fill) if fill != EDGES)
"""By content."""
_MOST = 1 << 24  # products that are held at once


@dataclass(frozen=True)
class ColdRule:
    """How a cold item gets its vector.

    fill: neighbours, projection, both, or edges. neighbours: K; temperature: of their weights.
    ridge: the penalty of the regression, in items.
    """

    fill: Fill = "both"
    neighbours: int = 10
    temperature: float = 0.1
    ridge: float = 10.0

    def __post_init__(self) -> None:
        if self.fill not in (*FILLS, EDGES):
            raise InputError(f"cold items are filled by {self.fill!r}; expected one of "
                             f"{', '.join(FILLS)}, or {EDGES}")
        check(self, "cold.", neighbours=at_least(1), temperature=above(0), ridge=above(0))


class Known(NamedTuple):
    """What is known of items. vectors: f32 `[n, d]`; alone: f32 `[n, d]`, by content alone;
    or `[n, 1]`; content: f32 `[n, c]`. Cold items have no `vectors`."""

    vectors: Floats
    alone: Floats
    content: Floats


def cold_vectors(rule: ColdRule, warm: Known, alone: Floats, content: Floats) -> Floats:
    """Vectors f32 `[C, d]` of cold items with `alone` f32 `[C, d]` and `content` f32 `[C, c]`.

    Raises:
      InputError: no item is warm.
    """
    if not len(warm.vectors):
        raise InputError("no item has both a history and content, so nothing is known of what "
                         "content means; expected content of the items that a run trains on")
    centre = warm.content.mean(axis=0, dtype=np.float64)
    own, asked = _units(warm.content - centre), _units(content - centre)
    found = []
    if rule.fill in ("neighbours", "both"):
        found.append(_neighbours(rule, warm.vectors, own, asked))
    if rule.fill in ("projection", "both"):
        found.append(alone + _regression(rule.ridge, warm.vectors - warm.alone, own, asked))
    return np.asarray(sum(found) / np.float32(len(found)), np.float32)


def _units(vectors: npt.NDArray[np.float64]) -> Floats:
    """Vectors of length 1, and 0 where there is none."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _neighbours(rule: ColdRule, vectors: Floats, own: Floats, asked: Floats) -> Floats:
    found = np.zeros((len(asked), vectors.shape[1]), np.float32)
    count = min(rule.neighbours, len(own))
    step = max(1, _MOST // len(own))
    for first in range(0, len(asked), step):
        part = slice(first, first + step)
        similar = asked[part] @ own.T
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(similar, nearest, axis=1).astype(np.float64)
        weights = np.exp((near - near.max(axis=1, keepdims=True)) / rule.temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        found[part] = np.einsum("ck,ckd->cd", weights, vectors[nearest])
    return found


def _regression(ridge: float, wanted: Floats, own: Floats, asked: Floats) -> Floats:
    """The ridge regression of `wanted` `[W, d]` on `own` `[W, c]`, at `asked` `[C, c]`."""
    middle, mean = own.mean(axis=0, dtype=np.float64), wanted.mean(axis=0, dtype=np.float64)
    centred = own - middle
    gram = centred.T @ centred + ridge * np.eye(own.shape[1])
    matrix = np.linalg.solve(gram, centred.T @ (wanted - mean))
    return (mean + (asked - middle) @ matrix).astype(np.float32)
