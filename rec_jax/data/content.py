"""Content of items: vectors that a text or image model made, one row an item.

`rec_jax.model.rows` says how they become a part of an item's vector, and
`rec_jax.data.item_vectors` where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_codes import MOST_CENTRES, open_item_codes
from rec_jax.data.item_vectors import check_name, open_item_vectors
from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check, check_different

_PLANNED_COLUMNS = 64


@dataclass(frozen=True)
class ContentConfig:
    """One `[[content]]` entry of a run: vectors of the items, added to their rows by a matrix.

    name: of the vectors in the dataset, `item_vectors/NAME.npy`.
    kind: how a vector becomes a part of the row: by a matrix, or by an MLP, which only a table that
      trains densely can have.
    hidden: of an MLP: the widths of its hidden layers.
    drop: in this share of all steps, drawn for each item by itself, an item has no values of its
      own but its content alone, so that content learns to stand for an item without history; 1:
      items have nothing but content. It is one rate for all entries.
    encoder: folder of a text encoder that is a part of the model: vectors are made inside a step,
      of the texts of the items that it touches, and no file of vectors is read. None: there is one.
    train: of an encoder: what `[[lora]]` adds to its matrices alone, or all of it.
    codes: cut the vectors into so many pieces, and learn a row of d values for each of the
      `centres` that k-means finds of a piece: an item has the sum of its rows in the place of a map
      of its vector (VQ-Rec). 0: the vectors themselves.
    centres: of each piece, where there are codes; at most 255.
    table, id, columns: of an encoder: the texts, see `item_texts.texts_of`.
    max_length: of an encoder: tokens of a text that are read; as its folder says by default.
    """

    name: str
    kind: Literal["linear", "mlp"] = "linear"
    hidden: tuple[int, ...] = ()
    drop: float = 0.0
    encoder: str | None = None
    train: Literal["lora", "all"] = "lora"
    codes: int = 0
    centres: int = 255
    table: str | None = None
    id: str = "item_id"
    columns: tuple[str, ...] = ()
    max_length: int | None = None

    def __post_init__(self) -> None:
        check(self, "content.", drop=at_least(0, 1), max_length=at_least(1),
              codes=at_least(0, 64), centres=at_least(2, MOST_CENTRES), hidden=at_least(1, 2**16))
        check_name(self.name)
        if (self.kind == "mlp") != bool(self.hidden):
            raise InputError(f"content.hidden is {list(self.hidden)}, and content.kind "
                             f"{self.kind!r}; expected the widths of hidden layers, such as "
                             "hidden = [256], for kind 'mlp' alone")
        if self.hidden and (self.codes or self.encoder is not None):
            raise InputError("content.kind = 'mlp' is of vectors that stay as they are; expected "
                             "no content.codes and no content.encoder")
        if self.encoder is not None and self.codes:
            raise InputError("content.codes are of vectors that stay as they are; expected no "
                             "content.encoder")
        if self.encoder is None and (self.table, self.columns, self.max_length) != (None, (), None):
            raise InputError("content.table, columns and max_length are of an encoder that makes "
                             "the vectors; expected content.encoder too")

    @property
    def path(self) -> str:
        """Of its matrix among the encoder's parameters."""
        return f"content/{self.name}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all its parameters."""
        return parameter_paths(self.path, self.hidden)


class Content(NamedTuple):
    """Content as a dataset has it. path: of its matrix; columns: c; drop: see `ContentConfig`;
    centres: of codes, of which a row has `columns`; 0: it has a vector; hidden: of an MLP, see
    `ContentConfig`."""

    path: str
    columns: int
    drop: float = 0.0
    centres: int = 0
    hidden: tuple[int, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether it is a matrix times a vector."""
        return not self.centres and not self.hidden

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all its parameters."""
        return parameter_paths(self.path, self.hidden)

    @property
    def inputs(self) -> int:
        """Rows of the matrix."""
        return self.columns * max(1, self.centres)


def parameter_paths(path: str, hidden: Sequence[int]) -> tuple[str, ...]:
    """Of the parameters of content: `path`, or kernel and bias of each layer of an MLP."""
    return (path,) if not hidden else tuple(
        f"{path}/{layer}/{part}" for layer in range(len(hidden) + 1) for part in ("kernel", "bias"))


class OpenContent(NamedTuple):
    """What a dataset has of a run's content. parts: what a model has to know of each; vectors:
    each f32 `[V, c]`, memory-mapped, or codes; where: it lies, for errors."""

    parts: tuple[Content, ...]
    vectors: tuple[npt.NDArray[Any], ...]
    where: Path

    def read(self, items: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The content columns f32 `[n, c]` of `items`, side by side; 0 for ids from V on.

        Raises:
          InputError: a value is no finite number.
        """
        columns = []
        for part, vectors in zip(self.parts, self.vectors, strict=True):
            known = items < len(vectors)
            found = np.where(known[:, None], vectors[np.where(known, items, 0)], np.float32(0))
            bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
            if bad.size:
                raise InputError(f"item vectors {part.path.partition('/')[2]!r} of {self.where} "
                                 f"hold a value that is no finite number, in row {items[bad[0]]}")
            columns.append(found)
        return np.concatenate(columns, axis=1)


def check_content(content: Sequence[ContentConfig]) -> None:
    """Raises InputError where one name is given twice, or entries differ in `drop`."""
    check_different("content", [part.name for part in content])
    rates = sorted({part.drop for part in content})
    if len(rates) > 1:
        raise InputError(f"content: drop is {rates[0]:g} in one entry, {rates[-1]:g} in another; "
                         "expected one rate, as an item has one row of its own")
    if sum(part.encoder is not None for part in content) > 1:
        raise InputError("content: several entries have an encoder; expected one that has")


def check_mode(content: Sequence[ContentConfig], mode: str) -> None:
    """Raises InputError where the item table trains in a `mode` that cannot have such content."""
    if mode == "streamed" and any(part.codes for part in content):
        raise InputError("content.codes: a streamed table is scored as it is stored; expected "
                         "table.update = 'dense', or 'sparse' with an objective that samples")
    if mode != "dense" and any(part.hidden for part in content):
        raise InputError(f"content.kind = 'mlp': a {mode} table does not have the vectors of all "
                         "items that an MLP makes of their content; expected table.update = "
                         "'dense', which carries it, or content.kind = 'linear', which every mode "
                         "does")


def trained_content(content: Sequence[ContentConfig]) -> ContentConfig | None:
    """The entry whose vectors an encoder makes inside the step, or None."""
    return next((part for part in content if part.encoder is not None), None)


def open_content(content: Sequence[ContentConfig], dataset: Dataset, width: int = 0
                 ) -> OpenContent:
    """The content that `dataset` has of what is asked for, which must be all.

    width: columns of an entry with an encoder, whose vectors are 0 until it has made them.

    Raises:
      InputError: there are no such vectors, or they are of other items.
    """
    vectors = tuple(
        open_item_codes(dataset, part.name, part.codes, part.centres) if part.codes else
        open_item_vectors(dataset, part.name).vectors if part.encoder is None else
        np.broadcast_to(np.float32(0), (dataset.num_items, width)) for part in content)
    parts = tuple(Content(part.path, each.shape[1], part.drop, part.centres if part.codes else 0,
                          part.hidden)
                  for part, each in zip(content, vectors, strict=True))
    return OpenContent(parts, vectors, dataset.folder)


def planned_content(content: Sequence[ContentConfig]) -> tuple[Content, ...]:
    """Stand-ins for a plan, which knows no dataset: 64 columns each.

    Raises:
      InputError: one is made by a text encoder inside the step.
    """
    if trained_content(content) is not None:
        raise InputError("content.encoder: a plan knows nothing of texts; expected vectors that "
                         "`rec-jax embed` made")
    return tuple(Content(part.path, part.codes or _PLANNED_COLUMNS, part.drop,
                         part.centres if part.codes else 0, part.hidden) for part in content)
