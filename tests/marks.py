"""Which cases of a test are tried each time, and which with the long proofs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(kept: str | Iterable[str], names: Iterable[str]) -> list[Any]:
    """The names as parameters, of which all but `kept` are tried with the long proofs."""
    stay = {kept} if isinstance(kept, str) else set(kept)
    return [pytest.param(name, id=name, marks=() if name in stay else pytest.mark.slow)
            for name in names]
