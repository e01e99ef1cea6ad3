"""Shared fixtures: eight fake devices, a compile cache, and the optional real data."""

from __future__ import annotations

import os
from pathlib import Path

# Before the first import of jax: the device count is read once.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; a stranger's clone has none."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED} (it may not be redistributed)")
    return SHARED
