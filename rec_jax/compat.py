"""What moved between the JAX versions that we support, in one place.

The range is stated in `pyproject.toml`; both ends run in the tests. Nothing here may import
another module of the project.
"""

from __future__ import annotations

import jax

JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])
