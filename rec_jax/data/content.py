"""Content of items: vectors that a text or image model made, one row an item.

`rec_jax.model.rows` says how they become a part of an item's vector. They lie in the dataset's
folder `item_vectors`, one file `NAME.npy` `[V, c]` a source.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.ranges import check

FOLDER = "item_vectors"
_PLANNED_COLUMNS = 64


@dataclass(frozen=True)
class ContentConfig:
    """One `[[content]]` entry of a run: vectors of the items, added to their rows by a matrix.

    name: of the vectors in the dataset, `item_vectors/NAME.npy`.
    """

    name: str

    def __post_init__(self) -> None:
        check(self, "content.")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise InputError(f"content.name is {self.name!r}; expected the name of vectors in the "
                             f"dataset's folder {FOLDER}, without .npy")

    @property
    def path(self) -> str:
        """Of its matrix among the encoder's parameters."""
        return f"content/{self.name}"


class Content(NamedTuple):
    """Content as a dataset has it. path: of its matrix; columns: c."""

    path: str
    columns: int


def check_different(content: Sequence[ContentConfig]) -> None:
    """Raises InputError where one name is given twice."""
    names = [part.name for part in content]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"content: {name!r} is given twice; expected different names")


def find_content(content: Sequence[ContentConfig], dataset: Dataset) -> tuple[Content, ...]:
    """The content that `dataset` has of what is asked for, which must be all.

    Raises:
      InputError: there are no such vectors, or not one a item.
    """
    return tuple(Content(part.path, open_vectors(part, dataset).shape[1]) for part in content)


def planned_content(content: Sequence[ContentConfig]) -> tuple[Content, ...]:
    """Stand-ins for a plan, which knows no dataset: 64 columns each."""
    return tuple(Content(part.path, _PLANNED_COLUMNS) for part in content)


def open_vectors(part: ContentConfig, dataset: Dataset) -> npt.NDArray[np.float32]:
    """The vectors `[V, c]`, memory-mapped.

    Raises:
      InputError: there are none, or they are no f32 matrix with a row for each item.
    """
    path = dataset.folder / FOLDER / f"{part.name}.npy"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.npy"))
        near = difflib.get_close_matches(part.name, known, 1)
        raise InputError(f"{dataset.folder} has no item vectors {part.name!r}; "
                         + (f"did you mean {near[0]!r}?" if near else
                            f"expected one of {', '.join(known)}" if known else
                            "it has none (rec-jax embed makes them)"))
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != dataset.num_items \
            or not vectors.shape[1]:
        raise InputError(f"{path} holds {vectors.dtype} {list(vectors.shape)}; expected float32 "
                         f"[{dataset.num_items}, c]")
    return vectors  # type: ignore[no-any-return]


def read_content(content: Sequence[ContentConfig], dataset: Dataset,
                 items: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """The content columns f32 `[n, c]` of `items`, side by side; 0 for ids from V on.

    Raises:
      InputError: a value is no finite number.
    """
    parts = []
    for part in content:
        vectors = open_vectors(part, dataset)
        known = items < len(vectors)
        found = np.where(known[:, None], vectors[np.where(known, items, 0)], np.float32(0))
        if not np.isfinite(found).all():
            bad = int(items[np.flatnonzero(~np.isfinite(found).all(axis=1))[0]])
            raise InputError(f"item vectors {part.name!r} of {dataset.folder} hold a value that is "
                             f"no finite number, in row {bad}")
        parts.append(found)
    return np.concatenate(parts, axis=1)
