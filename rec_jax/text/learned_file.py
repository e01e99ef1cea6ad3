"""A matrix that clicks taught a search, as a file: for which vectors it is, and how good it was.

One safetensors file: `matrix` f32 `[c, d]`, vectors of some items as `probe`, by which a search
knows that it has the vectors that the matrix leads to, and a JSON object `about` in its header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rec_jax import jsons
from rec_jax.errors import InputError, first_line
from rec_jax.files import write_atomic

Floats = npt.NDArray[np.float32]
_FORMAT = "rec_jax search 1"
_PROBED = 16
_NEAR = 1e-3  # of vectors of length 1, between machines


class Learned(NamedTuple):
    """matrix: f32 `[c, d]`; probe: f32 `[p, d]`, see `probe_of`; about: space (text or items),
    name (of the item vectors of texts), model_hash, prefix, figures and settings."""

    matrix: Floats
    probe: Floats
    about: dict[str, Any]

    def check_items(self, vectors: Floats, where: object) -> None:
        """Raises InputError where the items have other vectors f32 `[V, d]` than it leads to."""
        other = probe_of(vectors)
        if other.shape != self.probe.shape or np.abs(other - self.probe).max() > _NEAR:
            raise InputError(f"{where} is not what the learned matrix leads texts to "
                             f"({self.about['of']}); expected that one, or a matrix that was "
                             "learned for this one")


def probe_of(vectors: Floats) -> Floats:
    """Vectors of length 1 of items that stand evenly among all V, and V itself: f32 `[p, d]`."""
    places = np.linspace(0, len(vectors) - 1, min(_PROBED, len(vectors))).astype(int)
    return np.concatenate([vectors[places], np.full((1, vectors.shape[1]), len(vectors), "f4")])


def write_learned(path: Path | str, learned: Learned) -> None:
    """Write it, whole or not at all."""
    write_atomic(path, save({"matrix": np.ascontiguousarray(learned.matrix),
                             "probe": np.ascontiguousarray(learned.probe)},
                            {"format": _FORMAT, "about": jsons.dumps(learned.about)}))


def read_learned(path: Path | str) -> Learned:
    """Raises InputError where it is no such file."""
    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            if said.get("format") == _FORMAT:
                return Learned(file.get_tensor("matrix"), file.get_tensor("probe"),
                               json.loads(said["about"]))
            fault = f"it says format {said.get('format')!r}"
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        fault = first_line(error)
    raise InputError(f"{path} cannot be read as a matrix of a search ({fault}); expected a file "
                     "that `rec-jax learn-search` wrote")
