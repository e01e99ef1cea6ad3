"""Rows of codes: nearest centres, sums of rows as those of a dense product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.data.content import Content, ContentConfig
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_codes import open_item_codes, quantise
from rec_jax.errors import InputError
from rec_jax.model.rows import RowSource

DIM, PIECES, CENTRES = 5, 3, 4
SOURCE = RowSource(DIM, (Content("content/a", 2), Content("content/b", PIECES, 0.0, CENTRES)))


def test_codes_are_nearest_centres_and_follow_from_the_vectors() -> None:
    random = np.random.default_rng(0)
    middles = 10 * random.standard_normal((CENTRES, 7))
    group = random.integers(0, CENTRES, 200)
    vectors = (middles[group] + 0.1 * random.standard_normal((200, 7))).astype(np.float32)
    codes = quantise(vectors, 2, 16)
    assert codes.shape == (200, 2) and codes.dtype == np.uint8 and codes.max() < 16
    np.testing.assert_array_equal(codes, quantise(vectors, 2, 16))
    for number, part in enumerate(np.array_split(vectors, 2, axis=1)):
        own = codes[:, number]
        used = np.unique(own)
        means = np.stack([part[own == code].mean(axis=0) for code in used])
        distances = ((part[:, None] - means)**2).sum(axis=-1)
        # Lloyd's rounds end, or nearly so, where each point is at the nearest of these means.
        assert (used[distances.argmin(axis=1)] == own).mean() > 0.95
        within = sum(((part[group == g] - part[group == g].mean(axis=0))**2).sum()
                     for g in range(CENTRES))
        assert distances.min(axis=1).sum() < 0.7 * within
        assert all(len(set(group[own == code])) == 1 for code in used)
    # No more different pieces than centres: nothing is lost.
    few = vectors[:9].repeat(3, axis=0)
    assert len({tuple(code) for code in quantise(few, 2, 16)}) == 9


def test_a_row_is_the_sum_of_its_codes_rows_and_so_is_the_gradient() -> None:
    random = np.random.default_rng(1)
    params = {part.path: jnp.asarray(random.standard_normal((part.inputs, DIM)), jnp.float32)
              for part in SOURCE.content}
    assert params["content/b"].shape == (PIECES * CENTRES, DIM)
    assert SOURCE.init_parameters(0, 0.02)["content/b"].shape == (PIECES * CENTRES, DIM)
    assert SOURCE.width == DIM + 2 + PIECES and not SOURCE.linear
    codes = random.integers(0, CENTRES + 1, (6, 4, PIECES))
    codes[0, 0] = 0
    hot = np.zeros((6, 4, PIECES, CENTRES), np.float32)
    for place in np.ndindex(6, 4, PIECES):
        if codes[place]:
            hot[(*place, codes[place] - 1)] = 1
    values = random.standard_normal((6, 4, DIM + 2)).astype(np.float32)
    rows = np.concatenate([values, codes], axis=-1).astype(np.float32)
    back = random.standard_normal((6, 4, DIM)).astype(np.float32)

    def dense(params: Any) -> Any:
        params = {path: np.asarray(leaf) for path, leaf in params.items()}
        return (values[..., :DIM] + values[..., DIM:] @ params["content/a"]
                + hot.reshape(6, 4, -1) @ params["content/b"])

    run = jax.jit(jax.value_and_grad(lambda p: jnp.sum(back * SOURCE.compose(p, rows))))
    value, gradient = run(params)
    np.testing.assert_allclose(value, np.sum(back * dense(params)), rtol=1e-5)
    wanted = {"content/a": np.einsum("abc,abd->cd", values[..., DIM:], back),
              "content/b": np.einsum("abc,abd->cd", hot.reshape(6, 4, -1), back)}
    for path, found in gradient.items():
        np.testing.assert_allclose(found, wanted[path], atol=1e-5, err_msg=path)
    with pytest.raises(InputError, match="a query cannot be turned for rows of codes"):
        SOURCE.expand(params, jnp.zeros((1, DIM)))


def test_codes_are_kept_beside_the_dataset(some_vectors: Path) -> None:
    dataset = Dataset.open(some_vectors)
    codes = open_item_codes(dataset, "text", 2, 8)
    assert not codes[-3:].any() and codes[:-3].min() == 1 and codes.max() <= 8
    path = some_vectors / "item_codes" / "text-2x8.npy"
    before = path.stat().st_mtime_ns
    np.testing.assert_array_equal(open_item_codes(dataset, "text", 2, 8), codes)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    np.testing.assert_array_equal(open_item_codes(dataset, "text", 2, 8), codes)
    with pytest.raises(InputError, match="have 6 columns; expected at most so many"):
        open_item_codes(dataset, "text", 7, 8)
    with pytest.raises(InputError, match=r"expected no content\.encoder"):
        ContentConfig("text", codes=2, encoder="x")
