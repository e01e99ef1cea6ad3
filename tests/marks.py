"""Which cases of a test are tried each time, and which with the long proofs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(kept: str | Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters, of which all but `kept` are tried with the long proofs."""
    stay = {kept} if isinstance(kept, str) else set(kept)
    return [pytest.param(case, id=str(case), marks=() if case in stay else pytest.mark.slow)
            for case in cases]


def fast_where(kept: Callable[..., bool], *axes: Iterable[Any]) -> list[Any]:
    """Every combination of the axes as parameters, of which those that are not `kept` are tried
    with the long proofs: a few of them meet each value of each axis."""
    return [pytest.param(*case, marks=() if kept(*case) else pytest.mark.slow)
            for case in itertools.product(*axes)]


def alone_or_cut(mode: str, mesh: tuple[int, int]) -> bool:
    """Dense steps on one device, those of other modes on a mesh: each mode and each mesh once."""
    return (mode == "dense") == (mesh == (1, 1))
