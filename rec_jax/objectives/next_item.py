"""Next item with the exact softmax over the whole catalogue (`rec_jax.objectives.catalogue`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Task
from rec_jax.objectives.catalogue import CatalogueSoftmax


@dataclass(frozen=True)
class Config(CatalogueSoftmax):
    """Settings of the objective: those of `CatalogueSoftmax`."""

    kind: str = "next_item"

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """Every position that has a next item predicts it."""
        del items, segments, key
        flat = targets.reshape(-1)
        return Task(None, jnp.maximum(flat, 0), (flat >= 0).astype(jnp.float32))
