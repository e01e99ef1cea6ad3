"""Which cases of a test are tried each time, and which with the long proofs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

OTHER_LOOPS = "--xla_cpu_use_fusion_emitters=false"
"""A flag by which XLA compiles loops in half the time, and otherwise than for users: what it
computes for a row depends in its last bit on where the row lies."""

bits_of_rows = pytest.mark.skipif(
    f"{OTHER_LOOPS!r} in os.environ.get('XLA_FLAGS', '')",  # conftest.py sets it later
    reason="tests/inference/test_users_level.py runs it with the loops that users get")
"""A test that compares bits of rows that lie in different places."""


def slow_but(kept: str | Iterable[str], names: Iterable[str]) -> list[Any]:
    """The names as parameters, of which all but `kept` are tried with the long proofs."""
    stay = {kept} if isinstance(kept, str) else set(kept)
    return [pytest.param(name, id=name, marks=() if name in stay else pytest.mark.slow)
            for name in names]
