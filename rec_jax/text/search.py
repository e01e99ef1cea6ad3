"""Items of a text query: by the meaning of the text, by its words, or by both.

    score(q, i) = cos(f(q), v_i) + lexical BM25(q, i)

f(q) is the query's vector by the text encoder, and v_i the vector that the same encoder gave the
item (`item_vectors/NAME.npy`); or f(q) is that vector times a run's matrix of content, and v_i the
vector that the run has of the item. Every item is scored, so the best ones are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from rec_jax.data.dataset import Dataset
from rec_jax.data.item_vectors import (
    ItemVectors,
    Owner,
    check_name,
    file_of,
    open_item_vectors,
    vector_names,
)
from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check
from rec_jax.text.encoder import TextConfig, load_text_encoder, model_hash
from rec_jax.text.item_texts import KEPT, texts_of
from rec_jax.text.lexical import Lexical, index_words
from rec_jax.text.projection import Projection

Floats = npt.NDArray[np.float32]
LEXICAL = 0.5
"""What a point of BM25 is worth in cosines: MRR@10 of the known items of two catalogues is flat
around it (`benchmarks/search.py`)."""


@dataclass(frozen=True)
class SearchConfig:
    """How a text finds items.

    model: folder of the text encoder that made the item vectors `name`; None: words alone.
    name: of the vectors; None: the only ones that the dataset has.
    prefix: before a query, where a model was trained so; None: as before the items' texts.
    table, id, columns: the texts whose words count, see `item_texts.texts_of`; without a table
      those that the dataset keeps, if any.
    lexical: what a point of BM25 is worth in cosines; 0: the encoder alone.
    learned: a file of what clicks taught, see `learned_file`; it says which space and vectors.
    """

    model: str | None = None
    name: str | None = None
    prefix: str | None = None
    table: str | None = None
    id: str = "item_id"
    columns: tuple[str, ...] = ()
    lexical: float = LEXICAL
    learned: str | None = None

    def __post_init__(self) -> None:
        check(self, "search.", lexical=at_least(0, 1e6))
        if self.name is not None:
            check_name(self.name)
        if self.model is None and self.learned is not None:
            raise InputError("a matrix that was learned leads the vectors of texts; expected the "
                             "folder of the model that makes them, too")
        if self.model is None and (self.name is not None or self.prefix is not None):
            raise InputError("a search without a text encoder goes by words alone, and name and "
                             "prefix are of an encoder's vectors; expected the folder of the "
                             "model that made them, too")
        if self.model is None and not self.lexical:
            raise InputError("a search without a text encoder goes by words alone; expected the "
                             "folder of the model that made the item vectors, or lexical above 0")


@dataclass(frozen=True)
class TextIndex:
    """A catalogue that texts are looked up in.

    encode: texts -> their vectors f32 `[n, c]`; vectors: of the items, f32 `[V, c]`, of length 1,
    or 0 where an item has none; None: by words alone. words: None: by the encoder alone.
    lexical: see `SearchConfig`. has: bool `[V]`, which items can be found.
    notes: lines for people. texts: of the items, where they were read.
    """

    encode: Callable[[Sequence[str]], Floats] | None
    vectors: Floats | None
    words: Lexical | None
    has: npt.NDArray[np.bool_]
    lexical: float = LEXICAL
    notes: tuple[str, ...] = ()
    texts: Sequence[str] = ()

    def cosines(self, texts: Sequence[str]) -> Floats:
        """f32 `[n, V]`, of the queries' vectors and the items'."""
        assert self.encode is not None and self.vectors is not None
        return unit(self.encode(texts)) @ self.vectors.T

    def scores(self, texts: Sequence[str]) -> Floats:
        """f32 `[n, V]` of every item for each text; -inf for items that cannot be found.

        Raises:
          InputError: a text has no letter or digit.
        """
        for text in texts:
            if not any(map(str.isalnum, text)):
                raise InputError(f"the text {text!r} has no letter or digit; expected some words")
        found = np.zeros((len(texts), len(self.has)), np.float32)
        if self.vectors is not None:
            found += self.cosines(texts)
        if self.words is not None:
            share = self.lexical if self.vectors is not None else 1.0
            found += np.float32(share) * self.words.scores(texts)
        return np.where(self.has, found, -np.inf).astype(np.float32)

    def in_space(self, vectors: Floats, lead: Callable[[Floats], Floats]) -> TextIndex:
        """The same with other `vectors` f32 `[V, d]` of the items, into whose space `lead` leads
        those of texts."""
        encode = self.encode
        assert encode is not None
        return replace(self, vectors=unit(vectors), encode=lambda texts: lead(encode(texts)))


def best_items(scores: Floats, k: int) -> npt.NDArray[np.int64]:
    """The k best of the items with scores `[V]`, best first, of equal ones the lower index first;
    none whose score is -inf or no number."""
    order = np.argsort(-scores, kind="stable")[:k]
    return order[scores[order] > -np.inf]


def open_index(dataset: Dataset, config: SearchConfig) -> TextIndex:
    """What `config` asks for, of a dataset with item vectors, or with texts of its items.

    Raises:
      InputError: there are no such vectors, they are not of a text encoder or of another one than
        the model, or a table or its columns are not as they should be.
    """
    words, worded, listed = None, np.zeros(dataset.num_items, bool), list[str]()
    notes: list[str] = []
    kept = [name for name in KEPT if name in dataset.meta["item_columns"]]
    if config.table is not None or (kept and config.lexical):
        texts = texts_of(dataset, config.table, config.id, config.columns)
        notes += texts.notes
        listed = [text for block in texts.blocks() for text in block]
        if config.lexical:
            words, worded = index_words(listed), np.array([bool(text) for text in listed])
    if config.model is None:
        if words is None:
            raise InputError(f"{dataset.folder} has no texts of its items, and no model is given; "
                             "expected the folder of the text encoder that made its item vectors, "
                             "or a table of texts")
        return TextIndex(None, None, words, worded, config.lexical, tuple(notes), listed)
    if words is None and config.lexical:
        notes.append("the words of the items are not known: the search goes by the encoder alone "
                     "(a table of texts gives them)")
    name = config.name or only_text_vectors(dataset)
    found = open_item_vectors(dataset, name)
    encode = query_encoder(dataset, name, found, config)
    return TextIndex(encode, unit(np.asarray(found.vectors)), words, found.has | worded,
                     config.lexical, tuple(notes), listed)


def only_text_vectors(dataset: Dataset) -> str:
    """The name of a dataset's only item vectors that an encoder made of text.

    Raises:
      InputError: there are none, or several.
    """
    names = [name for name in vector_names(dataset.vectors_folder)
             if open_item_vectors(dataset, name).about["source"].get("kind") == "text"]
    if len(names) != 1:
        raise InputError(f"{dataset.folder} has {len(names)} item vectors that are made of text "
                         f"({', '.join(names) or 'none'}); expected the name of one "
                         "(`rec-jax embed --model` makes them)")
    return names[0]


def query_encoder(dataset: Owner, name: str, found: ItemVectors,
                  config: SearchConfig) -> Callable[[Sequence[str]], Floats]:
    """Texts -> vectors f32 `[n, c]` in the space of the item vectors `name`, as these were made.

    Raises:
      InputError: they were not made of text, or by another model.
    """
    said, kind = found.about["source"], dataset.vectors_folder.name.replace("_", " ")
    if said.get("kind") != "text":
        raise InputError(f"the {kind} {name!r} of {dataset.folder} come from a file, so no "
                         "text can be compared with them; expected vectors of `rec-jax embed "
                         "--model`")
    assert config.model is not None
    folder = Path(config.model)
    encoder = load_text_encoder(folder, TextConfig(
        said["pooling"], said["normalise"], said["dtype"], said["max_length"],
        said["prefix"] if config.prefix is None else config.prefix))
    if model_hash(folder) != said["model_hash"]:
        raise InputError(f"{config.model} is not the model that made the {kind} {name!r} of "
                         f"{dataset.folder} ({said['model']}, {said['model_hash'][:12]}); expected "
                         "that one, or vectors of this one")
    project = _projection(dataset, name, found)
    return lambda texts: project(encoder.embed(texts))


def _projection(dataset: Owner, name: str, found: ItemVectors) -> Callable[[Floats], Floats]:
    """What `embed` did to the encoder's vectors."""
    path = file_of(dataset.vectors_folder, name, "projection.safetensors")
    if path.name not in found.about["files"]:
        return lambda vectors: vectors
    parts: dict[str, Any] = load_file(path)
    return Projection(parts["mean"], parts["matrix"], 1.0)


def unit(vectors: Floats) -> Floats:
    """The rows `[n, c]` with length 1, or 0 where they are 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
