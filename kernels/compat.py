"""What moved between the JAX versions that we support, for the kernels; nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
Tree = TypeVar("Tree")

_BARRIERS_HOLD = tuple(int(part) for part in jax.__version__.split(".")[:2]) >= (0, 12)


def varying_axes(*arrays: Array) -> frozenset[str]:
    """Mesh axes of an enclosing `shard_map` over which any of the arrays differs.

    Empty outside `shard_map`, and inside one that does not check (`check_vma=False`).
    """
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary(x: Array, axes: Iterable[str]) -> Array:
    """`x` as an array typed as varying over `axes` too; the transpose sums over the axes added."""
    x = jnp.asarray(x)
    missing = tuple(sorted(frozenset(axes) - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_like(x: Array, *others: Array) -> Array:
    """`x`, typed as varying wherever the others do: what a loop's carry needs at its start."""
    return vary(x, varying_axes(*others))


def result_like(x: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
                ) -> jax.ShapeDtypeStruct:
    """Type of a result of a foreign function that varies over mesh axes as `x` does."""
    kind = jax.typeof(x)
    place = NamedSharding(kind.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place,
                                manual_axis_type=kind.manual_axis_type)


def materialise(tree: Tree, opaque: Array) -> Tree:
    """`tree`, computed into buffers of its own before anything that uses it.

    XLA:CPU drops optimization barriers before it fuses in JAX 0.10. There a condition has the
    same effect, if its being true is beyond XLA's arithmetic: `opaque`, int32 `[]`, may be any
    number that is not known when compiling.
    """
    if _BARRIERS_HOLD:
        held: Tree = jax.lax.optimization_barrier(tree)
        return held
    chosen: Tree = jax.lax.cond(
        (opaque & 1) < 2, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), tree)
    return chosen
