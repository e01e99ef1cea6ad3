"""Recommenders that are solved, not trained: no gradient, no step, no checkpoint.

What they score is ranked by the protocol of `rec_jax.inference.protocol`, so that their
numbers stand beside those of trained models. One file a solver; each holds a frozen `Config` whose
`fit` takes the training part and returns a `rec_jax.solvers.base.Fitted`. `SOLVERS` is the one
line that names it.
"""

SOLVERS = {
    "popularity": "rec_jax.solvers.popularity",
    "itemknn": "rec_jax.solvers.itemknn",
    "userknn": "rec_jax.solvers.userknn",
    "ease": "rec_jax.solvers.ease",
    "ials": "rec_jax.solvers.ials",
}

__all__ = ["SOLVERS"]
