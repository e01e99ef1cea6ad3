"""A solver says that it does not fit into memory before it takes any."""

from __future__ import annotations

from rec_jax.devices import free_host_memory
from rec_jax.errors import InputError


def check_room(what: str, needed: int) -> None:
    """Raises InputError where the host cannot give `needed` bytes."""
    free = free_host_memory()
    if free is not None and needed > free:
        raise InputError(f"{what} needs {needed:,} bytes ({needed / 2**30:.1f} GiB) of memory, "
                         f"and {free:,} ({free / 2**30:.1f} GiB) are free")
