"""What moved between the JAX versions that we support, in one place.

The range is stated in `pyproject.toml`; both ends run in the tests. Nothing here may import
another module of the project.
"""

from __future__ import annotations

import jax

JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])

PROGRAMS_MAY_BE_KEPT = JAX_VERSION < (0, 11)
"""Whether compiled programs may be read from JAX's cache again. With 0.12, tests that did so on
CPUs crashed; versions between were not tried."""


def is_whole_program(data: bytes) -> bool:
    """Whether an entry of JAX's cache is all there: it is compressed, with a length or a sum."""
    from jax._src.compilation_cache import decompress_executable

    try:
        return bool(decompress_executable(data))
    except Exception:  # each library for compression has an error of its own
        return False
