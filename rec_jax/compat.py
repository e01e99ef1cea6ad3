"""What differs between the JAX and Python versions that we support, in one place.

The range is stated in `pyproject.toml`; both ends run in the tests. Nothing here may import
another module of the project.
"""

from __future__ import annotations

import mmap
import platform
import sys

import jax

JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])

CACHE_IS_SAFE = JAX_VERSION < (0, 11)
"""Whether compiled programs may be read from JAX's compilation cache. With 0.12, tests that did so
on CPUs crashed; versions between were not tried."""

MAP_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and (
    platform.machine() in ("x86_64", "aarch64")) else 0)
"""Flag of memory that is only counted when it is used; Python 3.11 does not name it."""


def is_complete_entry(data: bytes) -> bool:
    """Whether an entry of JAX's cache is complete; it is compressed, with a length or checksum."""
    from jax._src.compilation_cache import decompress_executable

    try:
        return bool(decompress_executable(data))
    except Exception:  # each library for compression has an error of its own
        return False
