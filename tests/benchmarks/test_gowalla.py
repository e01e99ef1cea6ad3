"""A given split becomes a dataset, and the lists' metrics are those of the papers on graphs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rec_jax.data.dataset import Dataset

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gowalla.py"
SPEC = importlib.util.spec_from_file_location("gowalla", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
gowalla = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gowalla)


def test_a_given_split_is_kept_and_its_lists_are_measured(tmp_path: Path) -> None:
    train = pl.DataFrame({"user": [0, 0, 0, 1, 1, 2, 2], "item": [0, 1, 2, 0, 3, 4, 1]})
    test = pl.DataFrame({"user": [0, 0, 1], "item": [3, 4, 1]})
    gowalla.make_dataset(train, test, str(tmp_path / "out"), 2, 0)
    dataset = Dataset.open(tmp_path / "out")
    users, items = (ids.cast(pl.Int64).to_numpy() for ids in (dataset.user_ids(),
                                                             dataset.item_ids()))
    parts = [{(int(users[u]), int(items[i])) for u in range(3)
              for i in dataset.items[begin[u]:end[u]]}
             for begin, end in ((dataset.offsets, dataset.train_end),
                                (dataset.train_end, dataset.valid_end),
                                (dataset.valid_end, dataset.offsets[1:]))]
    assert parts[2] == set(test.iter_rows()) and len(parts[1]) == 2
    assert parts[0] | parts[1] == set(train.iter_rows()) and not parts[0] & parts[1]
    assert len({user for user, _ in parts[1]}) == 2

    # User 0 has seen 0, 1, 2, and is shown 4, 3: both were wanted. User 1 has seen 0 and 3, and is
    # shown 4, 2: 1 was wanted. User 2 has no test part.
    likes = {0: [9, 9, 9, 1, 2], 1: [9, 1, 2, 9, 3], 2: [0, 0, 0, 0, 0]}
    vectors = np.array([[likes[user][item] for item in items] for user in users], np.float32)
    found = gowalla.list_metrics(vectors, np.eye(5, dtype=np.float32), dataset, k=2)
    assert found == {"recall@2": 0.5, "ndcg@2": 0.5, "users": 2}
    found = gowalla.list_metrics(vectors, np.eye(5, dtype=np.float32), dataset, k=3)
    assert found["recall@3"] == 1 and found["ndcg@3"] == pytest.approx(
        (1 + 1 / math.log2(4)) / 2)
    # A bias above all differences puts item 1 first for user 1, and user 0 has seen it.
    bias = np.array([100.0 * (item == 1) for item in items], np.float32)
    found = gowalla.list_metrics(vectors, np.eye(5, dtype=np.float32), dataset, k=1, bias=bias)
    assert found == {"recall@1": 0.75, "ndcg@1": 1.0, "users": 2}
