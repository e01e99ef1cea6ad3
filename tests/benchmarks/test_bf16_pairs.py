"""The interval of paired differences."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bf16_pairs.py"
SPEC = importlib.util.spec_from_file_location("bf16_pairs", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
pairs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pairs)


def test_the_interval_is_that_of_students_t() -> None:
    found = pairs.paired([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * math.sqrt(2.5 / 5)  # four degrees of freedom
    assert found == {"mean": 3.0, "pairs": 5, "low": pytest.approx(3 - half),
                     "high": pytest.approx(3 + half)}


def test_what_both_have_in_common_does_not_widen_it() -> None:
    found = pairs.paired([0.1, 0.5, 0.9], [0.0, 0.4, 0.8])
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.1)


def test_a_single_pair_has_no_interval() -> None:
    assert pairs.paired([0.2], [0.1])["low"] is None
