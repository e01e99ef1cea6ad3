"""Content of items: vectors that a text or image model made, one row an item.

`rec_jax.model.rows` says how they become a part of an item's vector, and
`rec_jax.data.item_vectors` where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import check_name, open_item_vectors
from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check

_PLANNED_COLUMNS = 64


@dataclass(frozen=True)
class ContentConfig:
    """One `[[content]]` entry of a run: vectors of the items, added to their rows by a matrix.

    name: of the vectors in the dataset, `item_vectors/NAME.npy`.
    drop: in this share of all steps, drawn for each item by itself, an item has no values of its
      own but its content alone, so that content learns to stand for an item without history; 1:
      items have nothing but content. It is one rate for all entries.
    """

    name: str
    drop: float = 0.0

    def __post_init__(self) -> None:
        check(self, "content.", drop=at_least(0, 1))
        check_name(self.name)

    @property
    def path(self) -> str:
        """Of its matrix among the encoder's parameters."""
        return f"content/{self.name}"


class Content(NamedTuple):
    """Content as a dataset has it. path: of its matrix; columns: c; drop: see `ContentConfig`."""

    path: str
    columns: int
    drop: float = 0.0


def check_different(content: Sequence[ContentConfig]) -> None:
    """Raises InputError where one name is given twice, or entries differ in `drop`."""
    names = [part.name for part in content]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"content: {name!r} is given twice; expected different names")
    rates = sorted({part.drop for part in content})
    if len(rates) > 1:
        raise InputError(f"content: drop is {rates[0]:g} in one entry, {rates[-1]:g} in another; "
                         "expected one rate, as an item has one row of its own")


def find_content(content: Sequence[ContentConfig], dataset: Dataset) -> tuple[Content, ...]:
    """The content that `dataset` has of what is asked for, which must be all.

    Raises:
      InputError: there are no such vectors, or they are of other items.
    """
    return tuple(Content(part.path, open_item_vectors(dataset, part.name).vectors.shape[1],
                         part.drop) for part in content)


def planned_content(content: Sequence[ContentConfig]) -> tuple[Content, ...]:
    """Stand-ins for a plan, which knows no dataset: 64 columns each."""
    return tuple(Content(part.path, _PLANNED_COLUMNS, part.drop) for part in content)


def read_content(content: Sequence[ContentConfig], dataset: Dataset,
                 items: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """The content columns f32 `[n, c]` of `items`, side by side; 0 for ids from V on.

    Raises:
      InputError: a value is no finite number.
    """
    parts = []
    for part in content:
        vectors = open_item_vectors(dataset, part.name).vectors
        known = items < len(vectors)
        found = np.where(known[:, None], vectors[np.where(known, items, 0)], np.float32(0))
        if not np.isfinite(found).all():
            bad = int(items[np.flatnonzero(~np.isfinite(found).all(axis=1))[0]])
            raise InputError(f"item vectors {part.name!r} of {dataset.folder} hold a value that is "
                             f"no finite number, in row {bad}")
        parts.append(found)
    return np.concatenate(parts, axis=1)
