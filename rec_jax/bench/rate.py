"""What a machine can do at best, and what a training step usefully asks of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.dtypes import DTYPES
from rec_jax.run import RunConfig


class Product:
    """A square matrix product on one device, timed again and again."""

    def __init__(self, precision: str) -> None:
        self.size = 2048 if jax.default_backend() == "cpu" else 8192
        self.factor = jnp.full((self.size, self.size), 0.5, DTYPES[precision])
        self.call = jax.jit(jnp.matmul).lower(self.factor, self.factor).compile()
        self.rates: list[float] = []

    def run(self, repeats: int = 3) -> None:
        """Time it; the best of `repeats` counts."""
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(self.call(self.factor, self.factor))
            seconds.append(time.perf_counter() - start)
        self.rates.append(2.0 * self.size**3 / min(seconds))

    @property
    def best(self) -> float:
        """Operations a second, of all runs."""
        return max(self.rates)

    @property
    def usual(self) -> float:
        """Operations a second, the median over runs: what the machine had to give meanwhile."""
        return median(self.rates)


def useful_operations(config: RunConfig, params: Mapping[str, Any], segments: np.ndarray,
                      targets: int, num_items: int) -> float:
    """Operations that a step cannot do without, all devices together.

    Matrix products alone, three times the forward ones: of the encoder's matrices for places that
    hold an item, of attention for the pairs of places that see each other, and 8 V d for each
    target of the exact softmax (6 d for each pair that a sampled objective scores). Empty places,
    masked pairs, norms, activations and optimizers count as nothing.

    segments: int `[..., L]`, 0 for an empty place. targets: places that the loss counts.
    """
    of_row = segments.reshape(-1, segments.shape[-1])
    first = np.arange(len(of_row))[:, None] * (of_row.max() + 1)
    lengths = np.bincount((first + of_row)[of_row > 0]).astype(float)
    seen = lengths * (lengths + 1) / 2 if config.objective.causal else lengths**2
    matrices = sum(leaf.size for path, leaf in params.items()
                   if path.endswith("kernel") and leaf.ndim > 1)
    layers, dim = getattr(config.encoder, "layers", 0), config.table.dim
    objective = config.objective
    scores = (8.0 if objective.needs.normaliser else 6.0) * objective.pairs(targets, num_items)
    return float(6 * matrices * lengths.sum() + 12 * layers * dim * seen.sum() + scores * dim)
