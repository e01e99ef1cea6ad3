"""GraphSAGE: users and items are what learned layers make of their own rows and their neighbours'.

    q_u = vector of user u,     score of item j = q_u . vector of item j

The layers are those of `rec_jax.model.aggregation` (Hamilton et al., NeurIPS 2017). They know a
node by its features and its neighbours, not by its number, so an item that no training saw has a
vector too, once somebody took it (`rec_jax.inference.cold_edges`). That a row of its own is missing
then is what `drop` gets the layers used to. The graph is that of the dataset's training part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.errors import InputError
from rec_jax.model.encoders import user
from rec_jax.model.encoders.base import MOST_LAYERS
from rec_jax.ranges import at_least, check

MOST_PLACES = 2**12


@dataclass(frozen=True)
class Config(user.Config):
    """Settings of the encoder: those of `user`, and

    fan_out: how many neighbours of a node a training reads, for each layer from the first on.
    aggregator: what is taken of neighbours: their mean, or the largest of learned values (pool).
    drop: the share of steps in which an item has no row of its own.
    """

    kind: str = "graphsage"
    fan_out: tuple[int, ...] = (10, 10)
    aggregator: Literal["mean", "pool"] = "mean"
    drop: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "encoder.", drop=at_least(0, 1), fan_out=at_least(1, MOST_PLACES))
        if self.unit:
            raise InputError("encoder.unit: the layers of 'graphsage' end in vectors of any norm; "
                             "expected encoder.unit = false, or encoder.kind = 'lightgcn'")
        if not 1 <= len(self.fan_out) <= MOST_LAYERS:
            raise InputError(f"encoder.fan_out has {len(self.fan_out)} numbers; expected one a "
                             f"layer, for 1 to {MOST_LAYERS} layers")

    @property
    def graph_layers(self) -> int:
        """Layers of the graph that a vector follows from."""
        return len(self.fan_out)

    @property
    def samples(self) -> tuple[tuple[int, ...], str]:
        """What a graph is drawn from by: fan-out and aggregator."""
        return self.fan_out, self.aggregator

    def build(self, **given: Any) -> nnx.Module:
        """The module, whose matrices the graph's layers take by their paths."""
        return GraphSage(self, given["dim"], given["rngs"])


class _Kernel(nnx.Module):
    """A matrix `[d, d]`."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        make = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(make(rngs.params(), (dim, dim), jnp.float32))


class _Affine(_Kernel):
    """A matrix and a vector."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        super().__init__(dim, rngs)
        self.bias = nnx.Param(jnp.zeros(dim))


class _Side(nnx.Module):
    """One layer of one kind of nodes."""

    def __init__(self, pools: bool, dim: int, rngs: nnx.Rngs) -> None:
        self.own, self.near = _Kernel(dim, rngs), _Kernel(dim, rngs)
        self.bias = nnx.Param(jnp.zeros(dim))
        if pools:
            self.pool = _Affine(dim, rngs)


class _Layer(nnx.Module):
    """One layer."""

    def __init__(self, pools: bool, dim: int, rngs: nnx.Rngs) -> None:
        self.users, self.items = _Side(pools, dim, rngs), _Side(pools, dim, rngs)


class GraphSage(user.User):
    """See the formula of the file; what it is given are vectors already."""

    def __init__(self, config: Config, dim: int, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        self.layers = nnx.List([_Layer(config.aggregator == "pool", dim, rngs)
                                for _ in config.fan_out])

    def __call__(self, vectors: jax.Array, inputs: Any, key: jax.Array | None = None,
                 at: jax.Array | None = None) -> jax.Array:
        """As `user.User`."""
        return super().__call__(vectors, inputs, key, at)
