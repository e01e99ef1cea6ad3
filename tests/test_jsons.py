"""JSON has no NaN."""

from __future__ import annotations

import json

from rec_jax.jsons import dumps


def test_numbers_that_are_not_finite_become_null_wherever_they_are() -> None:
    value = {"a": float("nan"), "b": [1.5, (float("inf"), {"c": float("-inf")})], "d": "NaN"}
    assert json.loads(dumps(value)) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN"}


def test_finite_values_stay_as_they_are() -> None:
    value = {"a": 0.1, "b": [1, True, None, "x"], "c": 1e300}
    assert json.loads(dumps(value, indent=1)) == value
