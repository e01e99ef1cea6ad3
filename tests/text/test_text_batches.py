"""Each text is in one batch, in a shape of a few, whatever their lengths are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_jax.text.batches import BUCKETS, batch_tokens, bucket, plan, rounds


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 70), max_size=120), longest=st.sampled_from([70, 100, 512]),
       devices=st.integers(1, 5))
def test_every_text_with_tokens_is_in_one_batch(lengths: list[int], longest: int,
                                                devices: int) -> None:
    texts = [[100 * place + at for at in range(length)] for place, length in enumerate(lengths)]
    batches = list(plan(texts, longest, 128))
    seen = np.concatenate([batch.places for batch in batches]) if batches else np.zeros(0)
    assert sorted(seen) == [place for place, length in enumerate(lengths) if length]
    for batch in batches:
        rows, size = batch.tokens.shape
        assert rows == max(1, 128 // size) and (size in BUCKETS or size == longest)
        assert batch.lengths[:len(batch.places)].max() > max(
            (each for each in BUCKETS if each < size), default=0)
        assert (batch.lengths[len(batch.places):] == 0).all()
        for row, place in enumerate(batch.places):
            assert batch.tokens[row, :batch.lengths[row]].tolist() == texts[place]
            assert not batch.tokens[row, batch.lengths[row]:].any()
    # Only the last one may have room.
    assert all(len(batch.places) == len(batch.tokens) for batch in batches[:-1])
    grouped = list(rounds(iter(batches), devices))
    assert [id(batch) for each in grouped for batch in each] == [id(batch) for batch in batches]
    assert all(len(each) <= devices and len({batch.tokens.shape for batch in each}) == 1
               for each in grouped)


@pytest.mark.parametrize(("length", "longest", "size"), [
    (1, 512, 8), (8, 512, 8), (9, 512, 12), (500, 512, 512), (20, 22, 22), (3, 5, 5),
    (1500, 2048, 2048)])
def test_the_bucket_of_a_length(length: int, longest: int, size: int) -> None:
    assert bucket(length, longest) == size


def test_padding_is_little() -> None:
    random = np.random.default_rng(0)
    texts = [[1] * int(length) for length in np.clip(random.lognormal(3, 0.7, 8192), 1, 256)]
    batches = list(plan(texts, 256, batch_tokens("cpu")))
    used = sum(map(len, texts)) / sum(batch.tokens.size for batch in batches)
    assert used > 0.8, used
