"""The entropy of each query's softmax, from the sums of the same fold.

    H = - sum_j p_j log p_j,   log p_j = (s_j - m) - (lse - m)

so one more sum, of exp(s_j - m)(s_j - m), is all that H needs beside the log-normaliser, and every
term of it has one sign: nothing cancels. The label stands apart, as in the loss.

    d H / d s_j = - p_j (log p_j + H)

The second pass therefore has the weight p_j (a + b log p_j) in the place of p_j a: the same two
products and one exponential. The gradient of the queries wants sum_j p_j log p_j c'_j w_j from the
first pass, a product more than the loss alone.
"""

from __future__ import annotations

import jax.numpy as jnp

from .primitives import LEAST, Array, Partials


def value(merged: Partials, loss: Array, lse: Array) -> Array:
    """H f32 `[N]` of whole tables; 0 where a query has no item, NaN where its loss is."""
    assert merged.l_moment is not None
    share = -jnp.expm1(-loss) / jnp.where(merged.l_minus > 0, merged.l_minus, 1.0)
    others = share * (merged.l_minus * _above(merged) - merged.l_moment)
    own = jnp.where(loss == jnp.inf, 0.0, jnp.exp(-loss) * loss)
    return jnp.where(lse == -jnp.inf, 0.0, own + others)


def rows(merged: Partials, entropy: Array) -> Array:
    """Sum over j != y of exp(s_j - m) (- log p_j - H) c'_j w_j, f32 `[N, d]`: the gradient of H by
    the raw score's query, but for the factor exp(m - lse)."""
    assert merged.o_minus is not None and merged.o_moment is not None
    return (_above(merged) - entropy)[:, None] * merged.o_minus - merged.o_moment


def label_factors(loss: Array, entropy: Array, cotangent: Array) -> Array:
    """d / d score of the label, f32 `[N]`: - cotangent p_y (log p_y + H); 0 for no item."""
    known = jnp.where(loss == jnp.inf, 0.0, loss)
    return jnp.where(loss == jnp.inf, 0.0, cotangent * jnp.exp(-loss) * (known - entropy))


def _above(merged: Partials) -> Array:
    """lse - m f32 `[N]`, without the rounding of lse, which may be large where this is small; 0
    where all that is there is the label."""
    above = jnp.logaddexp(jnp.log(merged.l_minus), jnp.maximum(merged.s_y - merged.m, LEAST))
    return jnp.where(merged.l_minus > 0, above, 0.0)
