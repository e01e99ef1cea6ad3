"""What every encoder takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx


class Inputs(NamedTuple):
    """The layout of a batch of (packed) histories; every array is `[B, L]`.

    segments: int32, 0 = padding, 1.. = the user within the row; a segment's places stand side by
      side, and attention stays inside one.
    positions: int32, restart at 0 for each segment.
    times: int32, seconds from the segment's first item to each, at most 2^31 - 1; an encoder gets
      them from the first item that is not hidden. None where its config does not say `uses_times`
      and no feature needs them.
    features: codes int32 `[B, L, K]` of side features by path; added to the item vectors before
      an encoder sees them, see `rec_jax.model.features`.
    users: vectors f32 `[B, L, d]` of the users of the places, where a run has a table of them.
    """

    segments: jax.Array
    positions: jax.Array
    times: jax.Array | None = None
    features: Mapping[str, jax.Array] | None = None
    users: jax.Array | None = None


MOST_LAYERS = 64
"""Of propagation over a graph."""

Encoder = Callable[..., jax.Array]
"""`encoder(vectors [B, L, d], inputs, key=None, at=None) -> queries [B, L, d]`.

No key, no dropout. An encoder may leave `at` out; one that has it is given int32 `[B, C]`, the
places whose queries are wanted, `[B, C, d]`, so that its last block computes no others. Without
dropout only.
"""


class EncoderConfig(Protocol):
    """The frozen dataclass beside an encoder.

    A property `uses_times` that is true asks for `Inputs.times`, and `uses_users` for
    `Inputs.users`. A property `reads_history` that is false says that queries depend on no input,
    or on a whole history, so that every item of one is a label of a causal objective. A property
    `graph_layers` above 0 says that the vectors of users and items are made of their rows by so
    many layers of a graph: of `rec_jax.model.propagation`, or where there is a property `samples`
    of `rec_jax.model.aggregation`. A property `unit` that is true says that these vectors have
    norm 1. A property `carries_begin` says that it reads places in front of a history, which have
    no item (`rec_jax.data.attributes`). A property `drop` is the share of steps in which an item
    has no row of its own.
    """

    @property
    def kind(self) -> str: ...

    def build(self, *, dim: int, length: int, causal: bool, dtype: jax.typing.DTypeLike,
              rngs: nnx.Rngs) -> nnx.Module:
        """A module of width `dim` for histories of at most `length` items.

        Raises:
          InputError: where the settings do not fit `dim`.
        """
        ...


def at_places(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """x `[B, L, ...]` at places `at` `[B, C]` as `[B, C, ...]`; all of it where `at` is None."""
    if at is None:
        return x
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def uses_users(config: EncoderConfig) -> bool:
    """Whether an encoder reads `Inputs.users`, so that a run has a table of them."""
    return bool(getattr(config, "uses_users", False))


def reads_history(config: EncoderConfig) -> bool:
    """Whether an encoder's queries depend on the items of a history; most do."""
    return bool(getattr(config, "reads_history", True))


def carries_begin(config: EncoderConfig) -> bool:
    """Whether an encoder reads places in front of a history; one that does not say so does not."""
    return bool(getattr(config, "carries_begin", False))


def graph_layers(config: EncoderConfig) -> int:
    """Layers of a graph that make vectors of the rows of users and items; 0: there is no graph."""
    return int(getattr(config, "graph_layers", 0))


def unit_vectors(config: EncoderConfig) -> bool:
    """Whether the vectors of users and items are made of their rows with norm 1."""
    return bool(getattr(config, "unit", False))


def derives_vectors(config: EncoderConfig) -> bool:
    """Whether the vectors of users and items are made of their rows, and are not these."""
    return graph_layers(config) > 0 or unit_vectors(config)


def sampling_of(config: EncoderConfig) -> tuple[tuple[int, ...], str] | None:
    """How many neighbours a layer reads of a node, and by what aggregator; None: there is no graph
    whose neighbours are drawn."""
    found: tuple[tuple[int, ...], str] | None = getattr(config, "samples", None)
    return found


def uses_times(config: EncoderConfig) -> bool:
    """Whether an encoder reads `Inputs.times`; one that does not say so does not."""
    return bool(getattr(config, "uses_times", False))
