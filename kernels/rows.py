"""Some rows of a table, read and written: bytes moved grow with the rows asked for.

XLA does it everywhere but for narrow tables on TPU. It stores those with the features first and
would copy a whole table to reach a few rows; there two kernels take the table as it lies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .primitives import Array

WIDEST = 1024
"""Width up to which the buffers of the kernels fit VMEM."""
_LAST = jnp.iinfo(jnp.int32).max


def gather_rows(rows: Array, ids: Array, *, ordered: bool = False, backend: str = "auto"
                ) -> Array:
    """`rows[ids]`, `[N, ...]` in the table's type; 0 for ids outside [0, V).

    Args:
      rows: `[V, ...]`.
      ids: int32 `[N]`.
      ordered: promises that the ids ascend and that none is negative.
      backend: "auto", "xla" or "mosaic_tpu"; see `choose`.
    """
    if choose(rows, backend) == "mosaic_tpu":
        from .mosaic_tpu.gather import gather_rows as pick

        here = (ids >= 0) & (ids < rows.shape[0])
        return jnp.where(here[:, None], pick(rows, jnp.where(here, ids, 0)), 0)
    # A negative index would count from the end.
    ids = jnp.where(ids < 0, _LAST, ids)
    return rows.at[ids].get(mode="fill", fill_value=0, indices_are_sorted=ordered)


def scatter_rows(rows: Array, ids: Array, values: Array, *, backend: str = "auto") -> Array:
    """`rows` with those of `ids` replaced by `values`; in place under `jit` with rows donated.

    Args:
      rows: `[V, ...]`.
      ids: int32 `[N]`, ascending; those in [0, V) are distinct, others are ignored.
      values: `[N, ...]`, cast to the table's type.
      backend: "auto", "xla" or "mosaic_tpu"; see `choose`.
    """
    if choose(rows, backend, whole_tiles=True) == "mosaic_tpu":
        from .mosaic_tpu.scatter import scatter_rows as put

        return put(rows, ids, values)
    here = (ids >= 0) & (ids < rows.shape[0])
    # Ids that are not here get distinct indices past the end, as `unique_indices` promises.
    index = jnp.where(here, ids, rows.shape[0] + jax.lax.iota(jnp.int32, ids.size))
    return rows.at[index].set(values.astype(rows.dtype), mode="drop", unique_indices=True)


def choose(rows: Array, backend: str = "auto", *, whole_tiles: bool = False) -> str:
    """What "auto" takes: "mosaic_tpu" on TPU for rows stored with the features first, or "xla".

    whole_tiles: the kernel needs V to be a multiple of 128, as a table's is.

    Raises:
      ValueError: the kernels were asked for and cannot serve these rows.
    """
    if backend == "xla" or (backend == "auto" and platform() != "tpu"):
        return "xla"
    if backend not in ("auto", "mosaic_tpu"):
        raise ValueError(f"backend is {backend!r}; expected auto, xla or mosaic_tpu")
    reason = _refusal(rows, whole_tiles)
    if reason is None:
        return "mosaic_tpu"
    if backend == "auto":
        return "xla"
    raise ValueError(f"backend mosaic_tpu cannot take rows of {rows.dtype.name} {rows.shape}: "
                     f"{reason}")


def platform() -> str:
    """Where code that is traced now will run: on the mesh it is traced for, if there is one.

    A mesh may be of devices that this host does not have, when a program is compiled ahead.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def _refusal(rows: Array, whole_tiles: bool) -> str | None:
    if rows.ndim != 2 or rows.dtype not in (jnp.float32, jnp.bfloat16):
        return "expected [V, d] in float32 or bfloat16"
    from .mosaic_tpu.tiles import LANES, stored_features_first

    if not stored_features_first(*rows.shape):
        return "they are stored row by row"
    if rows.shape[1] > WIDEST:
        return f"expected at most {WIDEST} entries a row"
    if whole_tiles and rows.shape[0] % LANES:
        return f"expected a multiple of {LANES} rows"
    return None
