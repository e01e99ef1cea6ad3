"""What moved in `jax.experimental.pallas.mosaic_gpu` between the JAX versions we support."""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu

_OLD = jax.__version_info__ < (0, 11)


def load_with_layout(ref: Any, layout: Any, *, optimized: bool = True) -> jax.Array:
    """Load `ref` into registers with a given layout; before 0.11 the index was an argument."""
    index: tuple[Any, ...] = ((),) if _OLD else ()
    value: jax.Array = plgpu.load(ref, *index, layout=layout, optimized=optimized)
    return value


def plain(scalar: jax.Array) -> jax.Array:
    """An int32 scalar loaded inside a kernel, without the mesh axes over which it varies.

    Inside `shard_map` a load keeps them in its type and arithmetic in a kernel drops them, so
    that branches and loops see two types; adding 0 is arithmetic that costs nothing.
    """
    return scalar + jax.numpy.int32(0)
