"""Texts -> token ids, by the tokenizer that a model folder carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rec_jax.errors import InputError, first_line
from rec_jax.text.architecture import Architecture, read_json

FILE = "tokenizer.json"


class Tokens:
    """The tokenizer of a folder; texts get its special tokens and at most `longest` tokens."""

    def __init__(self, folder: Path, longest: int) -> None:
        path = folder / FILE
        if importlib.util.find_spec("tokenizers") is None:
            raise InputError("texts need the package `tokenizers`, which is not installed; "
                             "expected `pip install rec-jax[text]`")
        if not path.is_file():
            raise InputError(f"{path} does not exist; expected the tokenizer as Hugging Face "
                             "writes it")
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(longest)
        except Exception as error:  # the library has no error of its own
            raise InputError(f"{path} cannot be read as a tokenizer: "
                             f"{first_line(error)}") from None

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; of what holds nothing that the tokenizer knows, an empty list."""
        return [found.ids for found in self._tokenizer.encode_batch(list(texts))]

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text: what is put around every text, and what is marked so."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(self._tokenizer.encode("").ids) | {
            number for number, token in added.items() if token.special}

    @property
    def mask(self) -> int | None:
        """The id that stands for a hidden token, or None."""
        found = (self._tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>"))
        return next((number for number in found if number is not None), None)

    @property
    def most(self) -> int:
        """One above the largest id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def read_longest(folder: Path, about: Architecture, asked: int | None = None) -> int:
    """Tokens of a text at most: what is asked for, or what the folder says, or what the model can.

    Raises:
      InputError: the model has no places for so many.
    """
    if asked is not None:
        if not 1 <= asked <= about.longest:
            raise InputError(f"max_length is {asked}; expected 1 to {about.longest}, the places "
                             "that the model has")
        return asked
    for name, key in (("sentence_bert_config.json", "max_seq_length"),
                      ("tokenizer_config.json", "model_max_length")):
        found = read_json(folder / name) if (folder / name).is_file() else {}
        said = found.get(key) if isinstance(found, dict) else None
        if isinstance(said, int | float) and not isinstance(said, bool) and said >= 1:
            return int(min(said, about.longest))
    return about.longest
