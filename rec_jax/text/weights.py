"""Weights of a model folder -> a flat dict `path -> array`, each tensor held against its shape.

An encoder's file says which parameters it has and of which tensors they are made; this one reads
them. Paths are those of the engine's own encoders (`blocks/0/qkv/kernel`), so that what freezes
or adapts parameters by their path knows these too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax.errors import InputError

FILE = "model.safetensors"
Weights = dict[str, np.ndarray]
"""f32 arrays by path."""


@dataclass(frozen=True)
class Source:
    """Of which tensors of the file a parameter is made: side by side along its last axis.

    shape: of each tensor in the file; transposed: torch keeps `[out, in]`, and we `[in, out]`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False


def read_weights(folder: Path, sources: Mapping[str, Source],
                 prefixes: Sequence[str]) -> Weights:
    """The parameters of `sources`, by path, as f32.

    prefixes: what may stand before every name in the file, such as `bert.`; the first one that
      leads to a tensor counts for all.

    Raises:
      InputError: no such file, or a tensor is missing or of another shape or type.
    """
    path = folder / FILE
    if (folder / f"{FILE}.index.json").is_file() and not path.is_file():
        raise InputError(f"{folder} has its weights in several files; expected one {FILE}")
    with opened_weights(path) as file:
        known = frozenset(file.keys())
        prefix = find_prefix(known, next(iter(sources.values())).names[0], prefixes)
        return {name: _parameter(file, known, prefix, source, path)
                for name, source in sources.items()}


def find_prefix(known: Collection[str], first: str, prefixes: Sequence[str]) -> str:
    """The first of `prefixes` that leads to tensor `first` of those that are `known`."""
    return next((each for each in prefixes if each + first in known), "")


def has_tensors(folder: Path, names: Collection[str]) -> bool:
    """Whether the file of `folder` has all tensors of these names."""
    with opened_weights(folder / FILE) as file:
        return set(names) <= set(file.keys())


def opened_weights(path: Path) -> AbstractContextManager[Any]:
    """The file of weights, open.

    Raises:
      InputError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist; expected the weights as safetensors (other "
                         "formats can hold programs and are not read)")
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None


def _parameter(file: Any, known: frozenset[str], prefix: str, source: Source,
               path: Path) -> np.ndarray:
    parts = []
    for name in source.names:
        if prefix + name not in known:
            raise InputError(f"{path} has no tensor {prefix + name!r}, of shape "
                             f"{list(source.shape)}; is config.json of this model?")
        about = file.get_slice(prefix + name)
        if tuple(about.get_shape()) != source.shape or about.get_dtype() not in ("F32", "F16",
                                                                                 "BF16", "F64"):
            raise InputError(f"{path}: tensor {prefix + name!r} is {about.get_dtype()} "
                             f"{list(about.get_shape())}; expected floats {list(source.shape)}")
        tensor = np.asarray(file.get_tensor(prefix + name)).astype(np.float32)
        if not np.isfinite(tensor).all():
            raise InputError(f"{path}: tensor {prefix + name!r} has values that are not finite")
        parts.append(tensor.T if source.transposed else tensor)
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1))
