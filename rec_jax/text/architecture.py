"""What `config.json` of a Hugging Face model folder says of an encoder, as one frozen record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rec_jax.errors import InputError

Family = Literal["bert", "gpt2"]
FAMILIES: Mapping[str, Family] = {
    "bert": "bert", "roberta": "bert", "xlm-roberta": "bert", "camembert": "bert", "gpt2": "gpt2"}
"""`model_type` of the models that are known here -> the file that computes them."""
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu",
               "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""Names in `config.json` -> names of `layers.activate`."""
_LARGEST = 2**31


@dataclass(frozen=True)
class Architecture:
    """Shapes and constants of an encoder.

    width: c, of a token's vector; hidden: of the feed-forward layer; positions: rows of the table
    of positions, of which the first token has row `first_position` (RoBERTa begins behind the row
    of its padding); types: rows of the table of token types, 0 where there is none.
    """

    family: Family
    layers: int
    heads: int
    width: int
    hidden: int
    tokens: int
    positions: int
    first_position: int
    types: int
    activation: str
    epsilon: float

    @property
    def longest(self) -> int:
        """Tokens that a text can have at most."""
        return self.positions - self.first_position


def read_architecture(folder: Path) -> Architecture:
    """The encoder in `folder`.

    Raises:
      InputError: no `config.json`, or one of a model that is not known here; one line says why.
    """
    path = folder / "config.json"
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no object; expected the config of a model")
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{path} has model_type {kind!r}, which is unknown here; expected one of "
                         f"{', '.join(FAMILIES)}")
    fields = _Fields(path, found)
    made = _gpt2(fields) if FAMILIES[kind] == "gpt2" else _bert(fields, kind)
    if made.width % made.heads:
        raise InputError(f"{path}: {made.heads} heads do not divide the width {made.width}")
    if made.longest < 1:
        raise InputError(f"{path}: {made.positions} positions leave no room for a token")
    return made


def read_json(path: Path) -> Any:
    """The content of a JSON file of a model folder.

    Raises:
      InputError: it is missing, or no JSON.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a model folder as Hugging Face writes "
                         "it: config.json, model.safetensors, tokenizer.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error})") from None


class _Fields:
    """Checked look-ups in a config."""

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        self.path, self.found = path, found

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.found.get(name, default)
        if value is None:
            value = default
        if type(value) is not int or not least <= value < _LARGEST:
            raise InputError(f"{self.path}: {name} is {value!r}; expected a whole number of at "
                             f"least {least}")
        return value

    def epsilon(self, name: str, default: float) -> float:
        value = self.found.get(name, default)
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise InputError(f"{self.path}: {name} is {value!r}; expected a number above 0")
        return float(value)

    def activation(self, name: str, default: str) -> str:
        value = self.found.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise InputError(f"{self.path}: {name} is {value!r}; expected one of "
                             f"{', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def only(self, name: str, value: object) -> None:
        """Refuse a switch that changes what a model computes and is not known here."""
        found = self.found.get(name, value)
        if found != value:
            raise InputError(f"{self.path}: {name} is {found!r}, which is unknown here; expected "
                             f"{value!r}")


def _bert(fields: _Fields, kind: str) -> Architecture:
    fields.only("position_embedding_type", "absolute")
    fields.only("is_decoder", False)
    padding = fields.count("pad_token_id", 0 if kind == "bert" else 1, least=0)
    width = fields.count("hidden_size", 768)
    return Architecture(
        family="bert", layers=fields.count("num_hidden_layers", 12),
        heads=fields.count("num_attention_heads", 12), width=width,
        hidden=fields.count("intermediate_size", 3072), tokens=fields.count("vocab_size", 30522),
        positions=fields.count("max_position_embeddings", 512),
        first_position=0 if kind == "bert" else padding + 1,
        types=fields.count("type_vocab_size", 2), activation=fields.activation(
            "hidden_act", "gelu"), epsilon=fields.epsilon("layer_norm_eps", 1e-12))


def _gpt2(fields: _Fields) -> Architecture:
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    width = fields.count("n_embd", 768)
    return Architecture(
        family="gpt2", layers=fields.count("n_layer", 12), heads=fields.count("n_head", 12),
        width=width, hidden=fields.count("n_inner", 4 * width),
        tokens=fields.count("vocab_size", 50257), positions=fields.count("n_positions", 1024),
        first_position=0, types=0, activation=fields.activation(
            "activation_function", "gelu_new"),
        epsilon=fields.epsilon("layer_norm_epsilon", 1e-5))
