"""Texts -> vectors inside a training step: a static shape, and a cost of the texts that are there.

Texts are ordered by length and cut into chunks. A chunk is computed at the least of a few lengths
that its longest text fits, and one without any text is passed over. The backward pass computes a
chunk again, so that the activations of one chunk are all that is held, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rec_jax.mesh import BOTH, island
from rec_jax.text import bert, gpt2
from rec_jax.text.architecture import Architecture
from rec_jax.text.batches import bucket
from rec_jax.text.layers import Params
from rec_jax.text.pooling import Pooling, pool

Array = jax.Array
_CHUNK = {"cpu": 32}
_ON_ACCELERATORS = 512


class TextModel(NamedTuple):
    """How texts become vectors; static. sizes: lengths of chunks, of which the last one is that of
    the longest text; chunk: texts of one."""

    architecture: Architecture
    pooling: Pooling
    sizes: tuple[int, ...]
    chunk: int

    @property
    def encode(self) -> Callable[[Architecture, Params, Array, Array], Array]:
        """Of the model's family."""
        return (gpt2 if self.architecture.family == "gpt2" else bert).encode


def lengths_of_chunks(lengths: np.ndarray, longest: int) -> tuple[int, ...]:
    """At most three: for the shorter half of the texts, nine tenths, and all."""
    there = lengths[lengths > 0]
    return tuple(sorted({min(longest, bucket(int(np.quantile(there, share, method="higher")),
                                             longest)) for share in (0.5, 0.9, 1.0)}))


def chunk_of(mesh: Mesh) -> int:
    """Texts of a chunk, a multiple of the number of devices."""
    wanted = _CHUNK.get(mesh.devices.flat[0].platform, _ON_ACCELERATORS)
    return -(-wanted // mesh.size) * mesh.size


def encode_texts(model: TextModel, params: Params, tokens: Array, lengths: Array, mesh: Mesh
                 ) -> Array:
    """Tokens int32 `[M, L]` of M texts with `lengths` int32 `[M]` -> f32 `[M, c]`; 0 without text.

    Differentiable in the parameters. The devices of `mesh` share the texts of each chunk.
    """
    count = len(lengths)
    spare = -count % model.chunk
    order = jnp.argsort(-lengths, stable=True)
    place = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count), unique_indices=True)
    cut = [jnp.pad(array[order], [(0, spare), *[(0, 0)] * (array.ndim - 1)]).reshape(
        -1, model.chunk, *array.shape[1:]) for array in (tokens, lengths)]

    def at(size: int) -> Callable[..., Array]:
        def body(params: Params, tokens: Array, lengths: Array) -> Array:
            states = model.encode(model.architecture, params, tokens, lengths)
            return pool(model.pooling, states, lengths)

        cut = PartitionSpec(BOTH)
        on_mesh = island(body, mesh, (PartitionSpec(), cut, cut), cut)
        return lambda params, tokens, lengths: on_mesh(params, tokens[:, :size], lengths)

    def nothing(params: Params, tokens: Array, lengths: Array) -> Array:
        del params, lengths
        return jnp.zeros((len(tokens), model.architecture.width), jnp.float32)

    branches = [nothing, *map(at, model.sizes)]
    limits = jnp.array([0, *model.sizes[:-1]], jnp.int32)

    @jax.checkpoint
    def one(params: Params, chunk: Sequence[Array]) -> Array:
        texts, ends = chunk
        return jax.lax.switch(jnp.sum(ends[0] > limits), branches, params, texts, ends)

    _, found = jax.lax.scan(lambda _, chunk: (None, one(params, chunk)), None, tuple(cut))
    return _in_order(found.reshape(-1, model.architecture.width)[:count], place, order)


@jax.custom_vjp
def _in_order(rows: Array, place: Array, order: Array) -> Array:
    return rows[place]


# The gradient of a permutation is its inverse, and no sum: the same bits on every platform.
_in_order.defvjp(lambda rows, place, order: (rows[place], order),
                 lambda order, gradient: (gradient[order], None, None))
