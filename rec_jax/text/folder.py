"""A model folder with other weights: everything else in it is as it was.

The inverse of `rec_jax.text.weights`: parameters by path become tensors by the names that Hugging
Face gives them, so that what reads the one folder reads the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax import files
from rec_jax.errors import InputError
from rec_jax.jsons import dumps
from rec_jax.text.weights import FILE, Source, find_prefix, opened_weights

_LARGEST = 2**24
"""Bytes of a file beside the weights that is copied: a tokenizer is smaller, other weights not."""
ABOUT = "rec_jax.json"
"""Says how the weights were made."""


def tensors_of(weights: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, np.ndarray]:
    """The tensors f32, by name without prefix, that `read_weights` makes these parameters of."""
    found: dict[str, np.ndarray] = {}
    for path, array in weights.items():
        source = sources[path]
        parts = np.split(np.asarray(array, np.float32), len(source.names), axis=-1)
        found |= {name: np.ascontiguousarray(part.T if source.transposed else part)
                  for name, part in zip(source.names, parts, strict=True)}
    return found


def write_folder(out: Path, like: Path, tensors: Mapping[str, np.ndarray],
                 prefixes: Sequence[str], first: str, about: Mapping[str, Any]) -> None:
    """Write the new folder `out`: that of `like` with `tensors` in the place of those of the name.

    tensors: by name without prefix; those that the file lacks are added. first: a tensor without
      prefix that says which of `prefixes` the file has, see `read_weights`; what of `tensors` is in
      the file without it, such as an output layer, has none. about: content of `rec_jax.json`.

    Raises:
      InputError: `out` exists, or `like` cannot be read.
    """
    from safetensors.numpy import save_file

    with opened_weights(like / FILE) as file:
        known = frozenset(file.keys())
        kept = {name: np.asarray(file.get_tensor(name)) for name in sorted(known)}
    prefix = find_prefix(known, first, prefixes)
    tied = [(copy, own) for copy, of in COPIES.items() for own in (of, prefix + of)
            if {copy, own} <= kept.keys() and np.array_equal(kept[copy], kept[own])]
    for name, tensor in tensors.items():
        kept[name if name.startswith(OUTPUT_NAMES) else prefix + name] = tensor
    kept |= {copy: kept[own] for copy, own in tied}
    check_out(out)
    with files.atomic_folder(out) as folder:
        for path in sorted(like.rglob("*")):
            if path.is_file() and path.name != FILE and not _other_weights(path):
                target = folder / path.relative_to(like)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        save_file(kept, folder / FILE, metadata={"format": "pt"})
        (folder / ABOUT).write_text(dumps(dict(about), indent=1) + "\n")


OUTPUT_NAMES = ("cls.", "lm_head.")
"""Before names of tensors that stand beside an encoder's and have none of its prefixes."""
COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias", "lm_head.weight": "wte.weight"}
"""Tensors that some files hold twice, and that have to stay equal where they are."""


def check_out(out: Path) -> None:
    """Raises InputError where something stands under `out`."""
    if out.exists():
        raise InputError(f"{out} exists already; expected the name of a new folder")


def _other_weights(path: Path) -> bool:
    """Whether a file holds the old weights in some other form."""
    return path.suffix in (".safetensors", ".bin", ".onnx", ".h5", ".msgpack", ".ot", ".pt") or (
        path.stat().st_size > _LARGEST)
