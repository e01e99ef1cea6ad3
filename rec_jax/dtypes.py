"""The floating-point types of a config, by the names that it gives them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

DTYPES: dict[str, Any] = {"f32": jnp.float32, "bf16": jnp.bfloat16}
