"""The text encoder of a run's content: its parameters, and the tokens of every item.

Paths of its parameters begin with `text/`, beside those of the run's encoder, so that rules and
adapters name them as all others: `text/blocks/0/qkv/kernel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.data.content import ContentConfig
from rec_jax.data.dataset import Dataset
from rec_jax.mesh import replicated
from rec_jax.model.encoder import TEXT, is_text
from rec_jax.model.lora import Adapted, merged
from rec_jax.text import bert, gpt2
from rec_jax.text.architecture import read_architecture
from rec_jax.text.encoder import model_hash
from rec_jax.text.folder import tensors_of, write_folder
from rec_jax.text.in_step import TextModel, chunk_of, encode_texts, lengths_of_chunks
from rec_jax.text.item_tokens import ItemTokens, open_item_tokens
from rec_jax.text.pooling import read_pooling
from rec_jax.text.weights import read_weights

Params = Mapping[str, jax.Array]
_BLOCK = 8192
"""Items whose vectors are computed at once."""


class ItemEncoder(NamedTuple):
    """content: what the config says; parameters: f32 by path, as the folder has them; tokens: of
    every item; adapted: of its matrices, known when the run's adapters are."""

    content: ContentConfig
    model: TextModel
    parameters: dict[str, jax.Array]
    tokens: ItemTokens
    adapted: tuple[Adapted, ...] = ()

    @property
    def width(self) -> int:
        """Columns of a vector."""
        return self.model.architecture.width

    def weights(self, params: Params, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
        """The parameters of the text encoder, of those of a run, as it computes with them: adapters
        are a part of their matrices, and matrices are of `dtype`."""
        own = {path: leaf for path, leaf in params.items() if is_text(path)}
        return {path.removeprefix(TEXT): leaf.astype(dtype) if leaf.ndim > 1 else leaf
                for path, leaf in merged(self.adapted, own).items()}

    def vectors(self, params: Params, mesh: Mesh, dtype: Any) -> np.ndarray:
        """Those of all items, f32 `[V, c]`, on the host."""
        own = jax.jit(lambda params: self.weights(params, dtype))(
            {path: leaf for path, leaf in params.items() if is_text(path)})
        order = np.argsort(-np.asarray(self.tokens.lengths), kind="stable")
        found = np.zeros((len(order), self.width), np.float32)
        size = min(_BLOCK, len(order))
        for start in range(0, len(order), size):
            items = order[start:start + size]
            padded = np.pad(items, (0, size - len(items)), mode="edge")
            part = _encode(own, np.asarray(self.tokens.tokens[padded]),
                           np.asarray(self.tokens.lengths[padded]), model=self.model, mesh=mesh)
            found[items] = np.asarray(part)[:len(items)]
        return found


_encode = jax.jit(lambda params, tokens, lengths, model, mesh: encode_texts(
    model, params, tokens, lengths, mesh), static_argnames=("model", "mesh"))


def open_item_encoder(content: ContentConfig, dataset: Dataset, mesh: Mesh) -> ItemEncoder:
    """The encoder of `content` for the items of `dataset`.

    Raises:
      InputError: a file of its folder is missing or damaged, or the items have no text.
    """
    assert content.encoder is not None
    folder = Path(content.encoder)
    about = read_architecture(folder)
    module = gpt2 if about.family == "gpt2" else bert
    tokens = open_item_tokens(dataset, content, about)
    sizes = lengths_of_chunks(np.asarray(tokens.lengths), tokens.tokens.shape[1])
    model = TextModel(about, read_pooling(folder, about.family), sizes, chunk_of(mesh))
    weights = read_weights(folder, module.sources(about), module.PREFIXES)
    params = {TEXT + path: jax.device_put(array, replicated(mesh))
              for path, array in weights.items()}
    return ItemEncoder(content, model, params, tokens)


def write_tuned(encoder: ItemEncoder, params: Params, out: Path) -> None:
    """Write a new folder with the text encoder of a run, which `embed` reads as any other.

    Raises:
      InputError: `out` exists.
    """
    assert encoder.content.encoder is not None
    folder, about = Path(encoder.content.encoder), encoder.model.architecture
    module = gpt2 if about.family == "gpt2" else bert
    sources = module.sources(about)
    tensors = tensors_of(encoder.weights(params), sources)
    write_folder(out, folder, tensors, module.PREFIXES, next(iter(sources.values())).names[0],
                 {"model": folder.resolve().name, "model_hash": model_hash(folder),
                  "trained": encoder.content.train})
