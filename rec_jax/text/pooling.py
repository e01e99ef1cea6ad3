"""From the vectors of a text's tokens to the one of the text, as sentence-transformers says it.

`modules.json` lists what follows the encoder: `1_Pooling/config.json` says how its vectors become
one, and `2_Normalize` that it gets length 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.text.architecture import Family, read_json

How = Literal["mean", "cls", "last"]
_FLAGS: dict[str, How] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
                          "pooling_mode_lasttoken": "last"}
_NAMES: dict[str, How] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}


@dataclass(frozen=True)
class Pooling:
    """how: the mean of all tokens, the first one or the last one; normalise: to length 1."""

    how: How
    normalise: bool

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise InputError(f"pooling is {self.how!r}; expected one of {', '.join(get_args(How))}")


def read_pooling(folder: Path, family: Family, how: str | None = None,
                 normalise: bool | None = None) -> Pooling:
    """The pooling of the model in `folder`; `how` and `normalise` replace what it says.

    A folder that says nothing has the mean of a bidirectional encoder and the last token of a
    causal one, and is not normalised.

    Raises:
      InputError: the folder has modules that are not known here, and `how` is not given.
    """
    said: str = "last" if family == "gpt2" else "mean"
    unit = False
    if (folder / "modules.json").is_file():
        modules = _modules(folder)
        unit = any(kind == "Normalize" for kind, _ in modules)
        for kind, path in modules if how is None else []:
            if kind == "Pooling":
                said = _read_how(folder / path / "config.json")
            elif kind not in ("Transformer", "Normalize"):
                raise InputError(f"{folder / 'modules.json'} has a module {kind!r}, which is "
                                 "unknown here; expected Transformer, Pooling and Normalize (or "
                                 "set pooling, which leaves it out)")
    elif (folder / "1_Pooling" / "config.json").is_file() and how is None:
        said = _read_how(folder / "1_Pooling" / "config.json")
    return Pooling(said if how is None else how,  # type: ignore[arg-type]
                   unit if normalise is None else normalise)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module; nothing in the file is trusted to be a path."""
    path = folder / "modules.json"
    try:
        found = [(str(each["type"]).rpartition(".")[2], str(each["path"]))
                 for each in read_json(path)]
    except (TypeError, KeyError):
        raise InputError(f"{path} is no list of modules with a type and a path each") from None
    for _, name in found:
        if not re.fullmatch(r"[\w-]*", name):
            raise InputError(f"{path} has a path {name!r}; expected the name of a folder beside it")
    return found


def _read_how(path: Path) -> How:
    about: Any = read_json(path)
    if not isinstance(about, dict):
        raise InputError(f"{path} holds no object; expected the config of a pooling")
    if "pooling_mode" in about:
        name = about["pooling_mode"]
        if not isinstance(name, str) or name not in _NAMES:
            raise InputError(f"{path} has pooling_mode {name!r}; expected one of "
                             f"{', '.join(_NAMES)}, or set pooling")
        return _NAMES[name]
    chosen = [key for key, value in about.items()
              if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _FLAGS:
        raise InputError(f"{path} asks for {', '.join(chosen) or 'no pooling'}; expected one of "
                         f"{', '.join(_FLAGS)}, or set pooling")
    return _FLAGS[chosen[0]]


def pool(pooling: Pooling, states: jax.Array, lengths: jax.Array) -> jax.Array:
    """States `[B, L, c]` of texts with `lengths` `[B]` tokens -> f32 `[B, c]`.

    mean: sum of the states of the text's tokens / their number; normalised: y / |y|. A text
    without tokens, which only fills a batch, gets 0.
    """
    length = states.shape[1]
    states = states.astype(jnp.float32)
    inside = jnp.arange(length) < lengths[:, None]
    if pooling.how == "mean":
        # A product with zeros and ones would let what is not finite behind a text's end in.
        total = jnp.sum(jnp.where(inside[..., None], states, 0.0), axis=1)
        found = total / jnp.maximum(lengths, 1)[:, None]
    else:
        place = jnp.maximum(lengths - 1, 0) if pooling.how == "last" else jnp.zeros_like(lengths)
        found = jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]
    if pooling.normalise:
        norm = jnp.sqrt(jnp.sum(jnp.square(found), axis=-1, keepdims=True))
        found = found / jnp.maximum(norm, 1e-12)
    return jnp.where(lengths[:, None] > 0, found, 0.0)
