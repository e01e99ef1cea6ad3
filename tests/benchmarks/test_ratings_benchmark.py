"""Folds of ratings: each rating is tested once, and what is validated was none of the test's."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rec_jax.data.dataset import Dataset

RATINGS: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "benchmarks" / "ratings.py"))


def test_each_rating_is_tested_once_and_few_are_validated() -> None:
    parts = np.stack(RATINGS["parts_of"](1000, 5, 0.1, 3))
    assert np.all((parts == RATINGS["TEST"]).sum(axis=0) == 1)
    assert np.all((parts == RATINGS["TEST"]).sum(axis=1) == 200)
    assert 40 < (parts[2] == RATINGS["VALID"]).sum() < 120
    again, other = (np.stack(RATINGS["parts_of"](1000, 5, 0.1, seed)) for seed in (3, 4))
    assert np.array_equal(parts, again) and not np.array_equal(parts, other)


def test_a_fold_is_a_dataset_with_its_ratings_as_the_test_part(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = pl.DataFrame({"user": random.integers(0, 9, 300), "item": random.integers(0, 20, 300),
                         "rating": random.integers(1, 6, 300)})
    RATINGS["make_folds"](rows, tmp_path, 2, 0.2, 1)
    parts = RATINGS["parts_of"](300, 2, 0.2, 1)
    for fold, part in enumerate(parts):
        dataset = Dataset.open(tmp_path / str(fold))
        train, valid, end = dataset.split_bounds(np.arange(dataset.num_users))
        assert (end - valid).sum() == (part == RATINGS["TEST"]).sum()
        assert (valid - train).sum() == (part == RATINGS["VALID"]).sum() > 0
        assert list(dataset.rating_values) == [1, 2, 3, 4, 5]
