"""Vectors for the items of a dataset: from their text by an encoder, or from a file of vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from rec_jax import locks
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_check import ids_hash
from rec_jax.data.item_vectors import (
    Owner,
    check_name,
    finite,
    problems_of,
    read_about,
    write_item_vectors,
)
from rec_jax.data.queries import texts_in
from rec_jax.data.vector_files import VectorFile, read_vectors
from rec_jax.errors import InputError
from rec_jax.files import file_hash
from rec_jax.progress import Reporter, Silent
from rec_jax.ranges import at_least, check
from rec_jax.text.batches import BLOCK_TEXTS
from rec_jax.text.encoder import COMPUTED, TextConfig, load_text_encoder
from rec_jax.text.item_texts import ItemTexts, texts_of
from rec_jax.text.projection import Blocks, fit
from rec_jax.text.unfinished import Unfinished


@dataclass(frozen=True)
class EmbedConfig:
    """Where the vectors of a dataset's items come from, and what becomes of them.

    what: queries, the different texts of a dataset's queries in the place of its items.
    name: of the vectors. model: folder of a text encoder; text: how it is used. table, id,
    columns: see `item_texts.texts_of`. vectors: a file of ready ones, in place of a model.
    pca: so many principal components in their place; whiten: each with variance 1.
    overwrite: replace vectors of that name. block: texts that are sorted together by length, and
    the most that are embedded again after a kill.
    """

    name: str = "text"
    what: Literal["items", "queries"] = "items"
    model: str | None = None
    text: TextConfig = field(default_factory=TextConfig)
    table: str | None = None
    id: str | None = None
    columns: tuple[str, ...] = ()
    vectors: VectorFile | None = None
    pca: int | None = None
    whiten: bool = False
    overwrite: bool = False
    block: int = BLOCK_TEXTS

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.what == "queries" and self.table is not None:
            raise InputError("the texts of queries are those of the dataset; expected no table")
        check(self, "", block=at_least(1, 2**24), pca=at_least(1, 2**20))
        if (self.model is None) == (self.vectors is None):
            raise InputError("item vectors come from a model, or from a file of vectors; expected "
                             "exactly one of the two")
        if self.vectors is not None and (self.table is not None or self.text != TextConfig()):
            raise InputError("a table of text and the settings of a model are of no use beside a "
                             "file of vectors; expected one or the other")


class Source(Protocol):
    """Where vectors come from.

    dim: their width; identity: all that says which vectors these are; computed: what else their
    last bits depend on; facts: for people. All are JSON.
    """

    dim: int
    identity: Mapping[str, Any]
    computed: Mapping[str, Any]
    facts: Mapping[str, Any]

    def blocks(self, kept: Unfinished, reporter: Reporter) -> Blocks:
        """The vectors by item index; what takes long is kept in `kept`."""
        ...


class FromText:
    """Vectors of the items' text by an encoder."""

    def __init__(self, dataset: Owner, config: EmbedConfig, reporter: Reporter) -> None:
        assert config.model is not None
        self.texts = (
            texts_of(dataset, config.table, config.id or "item_id", config.columns)
            if isinstance(dataset, Dataset) else ItemTexts(("query",), dataset.item_ids()))
        for note in self.texts.notes:
            reporter.say(f"note: {note}")
        text_hash, count = self.texts.measure()
        self.count = dataset.num_items
        if not count:
            raise InputError(f"0 of {self.count} items have text in "
                             f"{', '.join(self.texts.columns)}; expected some that have")
        self.encoder = load_text_encoder(config.model, config.text)
        self.dim, about = self.encoder.dim, dict(self.encoder.about)
        self.block = config.block
        self.computed: Mapping[str, Any] = {
            "block": self.block, **{key: about.pop(key) for key in COMPUTED}}
        self.identity: Mapping[str, Any] = {
            "kind": "text", "columns": list(self.texts.columns),
            "table": None if config.table is None else Path(config.table).name,
            "text_hash": text_hash, **about}
        self.facts: Mapping[str, Any] = {"items_with_text": count}

    def blocks(self, kept: Unfinished, reporter: Reporter) -> Blocks:
        """Embed the blocks that are not kept yet."""
        if kept.begin({**self.identity, **self.computed}):
            reporter.say(f"{kept.folder} was of another job, and is removed")
        reporter.begin(self.count)
        number = -1
        for number, texts in enumerate(self.texts.blocks(self.block)):
            if kept.read(number) is None:
                kept.write(number, *self._block(texts))
            reporter.advance(len(texts))

        def again() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for each in range(number + 1):
                found = kept.read(each)
                if found is None:
                    raise RuntimeError(f"block {each} of {kept.folder} has vanished")
                yield found

        return again

    def _block(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a block, in which some have no text: `[b, c]`, bool `[b]`."""
        filled = [place for place, text in enumerate(texts) if text]
        vectors, has = np.zeros((len(texts), self.dim), np.float32), np.zeros(len(texts), bool)
        if filled:
            found = self.encoder.embed_block([texts[place] for place in filled])
            vectors[filled], has[filled] = found
        return vectors, has


class FromFile:
    """Vectors that somebody else made."""

    def __init__(self, dataset: Owner, config: EmbedConfig, reporter: Reporter) -> None:
        given = config.vectors
        assert given is not None
        self.found = read_vectors(given, dataset)
        self.dim = self.found.vectors.shape[1]
        self.computed: Mapping[str, Any] = {}
        self.identity: Mapping[str, Any] = {
            "kind": "file", "file": Path(given.path).name,
            "file_hash": file_hash(Path(given.path)), "columns": list(given.columns),
            "id": given.id,
            "ids_hash": None if given.ids is None else file_hash(Path(given.ids))}
        self.facts: Mapping[str, Any] = {"rows": self.found.rows, "unknown_ids": self.found.unknown,
                      "repeated_ids": self.found.repeated}

    def blocks(self, kept: Unfinished, reporter: Reporter) -> Blocks:
        """Slices of what was read."""
        found = self.found
        return lambda: ((found.vectors[at:at + BLOCK_TEXTS], found.has[at:at + BLOCK_TEXTS])
                        for at in range(0, len(found.has), BLOCK_TEXTS))


def embed_items(dataset: Dataset, config: EmbedConfig,
                reporter: Reporter | None = None) -> dict[str, Any]:
    """Write `DATASET/item_vectors/NAME.npy` and what belongs to it; see `data.item_vectors`.

    A job that was killed goes on at the next call, block by block, with the bits that it would
    have had; one that is done already is left as it is (`reused`).

    Returns the content of `NAME.json`, the folder, and seconds.

    Raises:
      InputError: the model, the text or the vectors are not as they should be, or vectors of
        that name are there and made of something else.
    """
    began, reporter = time.perf_counter(), reporter or Silent()
    owner: Owner = dataset if config.what == "items" else texts_in(dataset)
    source: Source = (FromFile if config.vectors else FromText)(owner, config, reporter)
    identity = {**source.identity, "pca": config.pca, "whiten": config.whiten}
    folder = owner.vectors_folder
    with locks.locked(folder):
        kept = Unfinished(folder / f".{config.name}.unfinished")
        about = None if config.overwrite else _done(owner, config.name, identity)
        reused = about is not None
        if about is None:
            about = _write(owner, config, source, identity, source.blocks(kept, reporter))
        kept.remove()
    return {"folder": str(folder), "reused": reused,
            "seconds": round(time.perf_counter() - began, 3), **about}


def _done(dataset: Owner, name: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands under the name, where it is the same; None where it may be made.

    Raises:
      InputError: vectors of that name are made of something else.
    """
    about = read_about(dataset.vectors_folder, name)
    if about is None:
        return None
    there = {"items": about.get("item_ids"), **about["source"]}
    wanted = {"items": ids_hash(dataset.item_ids()), **identity}
    differing = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
    if differing:
        kind = dataset.vectors_folder.name.replace("_", " ")
        raise InputError(f"{kind} {name!r} of {dataset.folder} exist and differ in "
                         f"{', '.join(differing)}; expected another name, or overwrite = true")
    broken = any(problem for _, problem in problems_of(
        dataset.vectors_folder, about, name, hashes=True))
    return None if broken else about


def _write(dataset: Owner, config: EmbedConfig, source: Source, identity: Mapping[str, Any],
           blocks: Blocks) -> dict[str, Any]:
    has = np.concatenate([part for _, part in blocks()])
    about = {"source": identity, "computed": source.computed, **source.facts}
    if config.pca is None and not config.whiten:
        return write_item_vectors(dataset, config.name, (block for block, _ in blocks()), has,
                                  source.dim, about)
    for _ in finite(dataset, (block for block, _ in blocks()), has):
        pass  # one number that is none would spoil the components of all
    projection = fit(blocks, source.dim, config.pca, config.whiten)
    return write_item_vectors(
        dataset, config.name, (projection(block) for block, _ in blocks()), has,
        projection.matrix.shape[1], {**about, "explained": round(projection.explained, 6)},
        projection.to_bytes())
