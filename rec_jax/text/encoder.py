"""A text encoder from a model folder: texts -> vectors, in batches over all devices."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.files import file_hash
from rec_jax.kernels import auto
from rec_jax.mesh import BOTH, MeshConfig, island, make_mesh, replicated
from rec_jax.model.encoder import Params
from rec_jax.text import bert, gpt2
from rec_jax.text.architecture import Architecture, Family, read_architecture
from rec_jax.text.batches import BLOCK_TEXTS, Batch, batch_tokens, plan, rounds
from rec_jax.text.pooling import Pooling, pool, read_pooling
from rec_jax.text.tokens import FILE as TOKENIZER
from rec_jax.text.tokens import Tokens, read_longest
from rec_jax.text.weights import FILE as WEIGHTS
from rec_jax.text.weights import read_weights

MODULES: Mapping[Family, ModuleType] = {"bert": bert, "gpt2": gpt2}
"""A family is a file with `sources`, `encode` and `PREFIXES`."""
COMPUTED = ("version", "platform", "attention", "jax")
"""Entries of `TextEncoder.about` that change no vector by more than rounding."""
VERSION = 1
"""Raised by one when the same texts get other bits than they did."""
_AHEAD = 2  # rounds that the devices work on while the host makes the next


@dataclass(frozen=True)
class TextConfig:
    """How texts become vectors; None: as the model's folder says.

    pooling: mean, cls or last. normalise: vectors of length 1. dtype: f32 or bf16, of matrices and
    activations (sums, norms and vectors are f32). max_length: tokens of a text, of which the rest
    is left out. prefix: what stands before every text, as some models were trained.
    """

    pooling: str | None = None
    normalise: bool | None = None
    dtype: str = "f32"
    max_length: int | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class TextEncoder:
    """A loaded model; `embed` is what it is for.

    params: by path, on every device of `mesh`. about: what decides its vectors, as JSON.
    """

    architecture: Architecture
    params: Params
    tokens: Tokens
    pooling: Pooling
    longest: int
    prefix: str
    mesh: Mesh
    about: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.architecture.width

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors f32 `[n, c]` of `n` texts; 0 for one without tokens.

        A vector depends on the texts of its block of `BLOCK_TEXTS` by rounding alone, and not at
        all on the number of devices.
        """
        found = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), BLOCK_TEXTS):
            part = texts[start:start + BLOCK_TEXTS]
            found[start:start + len(part)], _ = self.embed_block(part)
        return found

    def embed_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors f32 `[n, c]` of one block, and bool `[n]`: which texts have tokens."""
        ids = self.tokens([self.prefix + text for text in texts])
        found = np.zeros((len(texts), self.dim), np.float32)
        waiting: deque[tuple[list[Batch], jax.Array]] = deque()

        def take() -> None:
            batches, vectors = waiting.popleft()
            for batch, part in zip(batches, np.asarray(vectors), strict=False):
                found[batch.places] = part[:len(batch.places)]

        for batches in rounds(self._plan(ids), self.mesh.size):
            waiting.append((batches, self._round(batches)))
            if len(waiting) > _AHEAD:
                take()
        while waiting:
            take()
        return found, np.array([len(each) > 0 for each in ids], bool)

    def _plan(self, ids: list[list[int]]) -> Iterator[Batch]:
        platform = self.mesh.devices.flat[0].platform
        return plan(ids, self.longest, batch_tokens(platform))

    def _round(self, batches: list[Batch]) -> jax.Array:
        """Vectors `[D, B, c]` of a batch a device; the devices behind the last one have nothing."""
        spare = self.mesh.size - len(batches)
        placed = NamedSharding(self.mesh, PartitionSpec(BOTH))
        arrays = [np.pad(np.stack(parts), [(0, spare)] + [(0, 0)] * parts[0].ndim)
                  for parts in ([batch.tokens for batch in batches],
                                [batch.lengths for batch in batches])]
        tokens, lengths = (jax.device_put(array, placed) for array in arrays)
        return _vectors(self.params, tokens, lengths, mesh=self.mesh,
                        architecture=self.architecture, pooling=self.pooling)


def load_text_encoder(folder: Path | str, config: TextConfig | None = None,
                      mesh: Mesh | None = None) -> TextEncoder:
    """The encoder in `folder` (`config.json`, `model.safetensors`, `tokenizer.json`).

    mesh: whose devices share the batches; all of this process by default.

    Raises:
      InputError: a file is missing or damaged, the architecture is not known here, or the
        package `tokenizers` is not installed.
    """
    folder, config = Path(folder), config or TextConfig()
    architecture = read_architecture(folder)
    module = MODULES[architecture.family]
    pooling = read_pooling(folder, architecture.family, config.pooling, config.normalise)
    longest = read_longest(folder, architecture, config.max_length)
    tokens = Tokens(folder, longest)
    if tokens.most > architecture.tokens:
        raise InputError(f"{folder / TOKENIZER} has ids up to {tokens.most - 1}, but config.json "
                         f"has {architecture.tokens} tokens; expected files of one model")
    weights = read_weights(folder, module.sources(architecture), module.PREFIXES)
    mesh = make_mesh(MeshConfig(data=jax.local_device_count())) if mesh is None else mesh
    params = {path: jax.device_put(_stored(path, array, config.dtype), replicated(mesh))
              for path, array in weights.items()}
    about = {"model": folder.resolve().name, "model_hash": model_hash(folder),
             "family": architecture.family, "pooling": pooling.how,
             "normalise": pooling.normalise, "dtype": config.dtype, "max_length": longest,
             "prefix": config.prefix, "version": VERSION,
             "platform": jax.default_backend(),
             "attention": "native" if auto.takes_native("attention") else "xla",
             "jax": jax.__version__}
    return TextEncoder(architecture, params, tokens, pooling, longest, config.prefix, mesh, about)


def model_hash(folder: Path) -> str:
    """Hex sha256 of what a model computes with: weights, config and tokenizer."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, "config.json", TOKENIZER):
        digest.update(f"{name} {file_hash(folder / name)}\n".encode())
    return digest.hexdigest()


def _stored(path: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Matrices and tables in the type that is computed in; biases and norms stay f32."""
    return array.astype(DTYPES[dtype]) if array.ndim > 1 else array


@functools.partial(jax.jit, static_argnames=("mesh", "architecture", "pooling"))
def _vectors(params: Params, tokens: jax.Array, lengths: jax.Array, *, mesh: Mesh,
             architecture: Architecture, pooling: Pooling) -> jax.Array:
    """Tokens `[D, B, L]` and lengths `[D, B]`, a batch a device -> f32 `[D, B, c]`."""
    def body(params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        encode = MODULES[architecture.family].encode
        return pool(pooling, encode(architecture, params, tokens[0], lengths[0]), lengths[0])[None]

    cut = PartitionSpec(BOTH)
    found: jax.Array = island(body, mesh, (PartitionSpec(), cut, cut), cut)(
        params, tokens, lengths)
    return found
