"""Frequencies of labels are those of the batches that training sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.label_frequency import label_counts, log_shares, of_targets
from rec_jax.data.segments import Targets, Window


@pytest.mark.parametrize("window", ["last", "chunks"])
@pytest.mark.parametrize("length", [1, 7, 50])
@pytest.mark.parametrize("targets", ["next", "all"])
def test_counts_are_those_of_one_epoch(dataset: Dataset, window: Window, length: int,
                                       targets: Targets) -> None:
    stream = BatchStream(dataset, length=length, rows=1, window=window, shuffle=False,
                         targets=targets)
    seen = np.concatenate([stream.batch(step)["targets"].ravel()
                           for step in range(stream.rows_per_epoch)])
    np.testing.assert_array_equal(
        label_counts(dataset, length=length, window=window, targets=targets),
        np.bincount(seen[seen >= 0], minlength=dataset.num_items))


def test_users_without_a_second_item_have_no_label(
        write_histories: Callable[..., Dataset]) -> None:
    # Two items of each of the first users are for validation and test.
    made = write_histories([["a", "b", "c", "d"], ["a", "c", "d"], ["b"]])
    counts = label_counts(made, length=10, window="chunks")
    assert counts.sum() == counts[made.item_index(["b"])[0]] == 1


def test_shares_add_up_and_targets_find_theirs() -> None:
    shares = log_shares(np.array([3, 0, 5]))
    np.testing.assert_allclose(np.exp(shares), [3 / 8, 0, 5 / 8], rtol=1e-6)
    found = of_targets(shares, np.array([[2, -1], [0, 99]], np.int32))
    np.testing.assert_allclose(found, [[shares[2], 0], [shares[0], shares[2]]])
    assert found.dtype == np.float32
