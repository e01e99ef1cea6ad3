"""Token ids of the items' texts, made once and kept beside the dataset.

    item_tokens/NAME.npy           int32 [V, L], 0 behind the end of a text
    item_tokens/NAME.lengths.npy   int32 [V], 0 for an item without text
    item_tokens/NAME.json          what they are made of, and sizes and sha256 of the files

`NAME.json` is removed first and written last, so that tokens are complete or absent. Tokens of
another text or tokenizer are made anew: that takes seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rec_jax import files, jsons, locks
from rec_jax.data.content import ContentConfig
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_check import ids_hash
from rec_jax.errors import InputError
from rec_jax.files import file_hash
from rec_jax.text.architecture import Architecture
from rec_jax.text.item_texts import ItemTexts, texts_of
from rec_jax.text.tokens import FILE as TOKENIZER
from rec_jax.text.tokens import Tokens, read_longest

FOLDER = "item_tokens"
FORMAT_VERSION = 1


class ItemTokens(NamedTuple):
    """tokens: int32 `[V, L]`; lengths: int32 `[V]`; both memory-mapped."""

    tokens: np.ndarray
    lengths: np.ndarray


def open_item_tokens(dataset: Dataset, content: ContentConfig, about: Architecture) -> ItemTokens:
    """The tokens of the items' texts for the encoder of `content`, made where they are missing.

    Raises:
      InputError: there is no text, or the tokenizer is not of the encoder.
    """
    assert content.encoder is not None
    folder = Path(content.encoder)
    longest = read_longest(folder, about, content.max_length)
    texts = texts_of(dataset, content.table, content.id, content.columns)
    text_hash, count = texts.measure()
    if not count:
        raise InputError(f"0 of {dataset.num_items} items have text in "
                         f"{', '.join(texts.columns)}; expected some that have")
    wanted = {"format_version": FORMAT_VERSION, "item_ids": ids_hash(dataset.item_ids()),
              "text_hash": text_hash, "tokenizer_hash": file_hash(folder / TOKENIZER),
              "max_length": longest}
    place = dataset.folder / FOLDER
    with locks.locked(place, wait=60.0):
        if not _is_whole(place, content.name, wanted):
            _write(place, content.name, wanted, *_tokenised(texts, folder, longest, about))
    return ItemTokens(*(np.load(place / name, mmap_mode="r", allow_pickle=False)
                        for name in _names(content.name)))


def _names(name: str) -> tuple[str, str]:
    return f"{name}.npy", f"{name}.lengths.npy"


def _is_whole(place: Path, name: str, wanted: dict[str, Any]) -> bool:
    try:
        said = json.loads((place / f"{name}.json").read_text())
        return {key: said[key] for key in wanted} == wanted and all(
            file_hash(place / file) == said["files"][file] for file in _names(name))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tokenised(texts: ItemTexts, folder: Path, longest: int, about: Architecture
               ) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = Tokens(folder, longest)
    if tokenizer.most > about.tokens:
        raise InputError(f"{folder / TOKENIZER} has ids up to {tokenizer.most - 1}, but "
                         f"config.json has {about.tokens} tokens; expected files of one model")
    # An item without text has no tokens, although a tokenizer puts its marks around nothing.
    found = [ids if text else [] for block in texts.blocks()
             for text, ids in zip(block, tokenizer(block), strict=True)]
    lengths = np.array([len(ids) for ids in found], np.int32)
    tokens = np.zeros((len(found), max(1, int(lengths.max()))), np.int32)
    for row, ids in zip(tokens, found, strict=True):
        row[:len(ids)] = ids
    return tokens, lengths


def _write(place: Path, name: str, about: dict[str, Any], *arrays: np.ndarray) -> None:
    (place / f"{name}.json").unlink(missing_ok=True)
    for file, array in zip(_names(name), arrays, strict=True):
        with files.atomic_writer(place / file) as out:
            np.save(out, array)
    written = {file: file_hash(place / file) for file in _names(name)}
    files.write_atomic(place / f"{name}.json", jsons.dumps({**about, "files": written}, indent=1)
                       + "\n")
