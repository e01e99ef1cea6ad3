"""What moved between the JAX versions that we support, for the kernels; nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import jax

Array = jax.Array


def varying_axes(*arrays: Array) -> frozenset[str]:
    """Mesh axes of an enclosing `shard_map` over which any of the arrays differs.

    Empty outside `shard_map`, and inside one that does not check (`check_vma=False`).
    """
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary(x: Array, axes: Iterable[str]) -> Array:
    """`x`, typed as varying over `axes` too; its transpose sums over the axes that were added."""
    missing = tuple(sorted(frozenset(axes) - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_like(x: Array, *others: Array) -> Array:
    """`x`, typed as varying wherever the others do: what a loop's carry needs at its start."""
    return vary(x, varying_axes(*others))
