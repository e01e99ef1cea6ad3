"""LightGCN: users and items are what their neighbours in the graph of interactions make of them.

    q_u = vector of user u,     score of item j = q_u . vector of item j

The vectors are those of `rec_jax.model.propagation`: means over K layers of the graph, from the
rows of the two tables, which alone are trained (He et al., SIGIR 2020). They take the place of the
rows wherever a model is asked, so this file is `user` with layers. The graph is that of the
dataset's training part. A user who took nothing there has a row that no loss has moved.
"""

from __future__ import annotations

from dataclasses import dataclass

from rec_jax.model.encoders import user
from rec_jax.model.encoders.base import MOST_LAYERS
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config(user.Config):
    """Settings of the encoder: those of `user`, and

    layers: K, how far a row's neighbourhood reaches.
    """

    kind: str = "lightgcn"
    layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "encoder.", layers=at_least(1, MOST_LAYERS))

    @property
    def graph_layers(self) -> int:
        """Layers of propagation."""
        return self.layers
