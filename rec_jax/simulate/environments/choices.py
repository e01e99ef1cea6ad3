"""Which item of a slate a user takes, by the user's liking of each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def multinomial(liking: Array, nothing: float, chance: Array) -> Array:
    """Place int32 `[]` of the item that is taken, -1: none.

    Multinomial logit (McFadden, 1974): probabilities are in proportion to exp(liking), and taking
    nothing is one more choice with the liking `nothing`. liking: f32 `[K]`; chance: f32 `[]`, even
    in [0, 1).
    """
    weights = jax.nn.softmax(jnp.append(liking, nothing))
    place = jnp.searchsorted(jnp.cumsum(weights)[:-1], chance, side="right")
    return jnp.where(place == liking.shape[0], -1, place).astype(jnp.int32)


def cascade(liking: Array, nothing: float, patience: float, chances: Array) -> Array:
    """Place int32 `[]` of the item that is taken, -1: none.

    A user looks at one item after the other, takes the first that pleases, each with probability
    sigmoid(liking - nothing), and after each that does not goes on with probability `patience`
    (the cascade model, Craswell et al., 2008). chances: f32 `[2, K]`, even in [0, 1).
    """
    pleases = chances[0] < jax.nn.sigmoid(liking - nothing)
    goes_on = chances[1] < patience
    looked_at = jnp.append(True, jnp.cumprod(goes_on[:-1]).astype(bool))
    taken = pleases & looked_at
    return jnp.where(jnp.any(taken), jnp.argmax(taken), -1).astype(jnp.int32)
