"""The best item alone is a maximum in the native backend: it is the first of `top_k`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import top_k
from rec_jax.kernels.native import build as native_build


@pytest.mark.parametrize(("rows", "dtype"), [(4500, jnp.float32), (97, jnp.bfloat16)])
def test_it_is_the_first_of_all(rows: int, dtype: Any) -> None:
    """Whole numbers make many ties; there are rows that are no items, NaN, and a query whose
    scores are all NaN. 4,500 rows are cut for several cores."""
    if reason := native_build.problem():
        pytest.skip(f"no native backend: {reason}")
    draw = np.random.default_rng(rows)
    queries = draw.integers(-2, 3, (40, 6)).astype(np.float32)
    queries[3] = np.nan
    items = draw.integers(-2, 3, (rows, 6)).astype(np.float32)
    items[5::11] = np.nan
    items[-7:] = 9.0
    bias = draw.integers(-3, 4, rows).astype(np.float32)
    bias[10::17] = -np.inf
    items[10::17] = np.nan
    given = (jnp.asarray(queries, dtype), jnp.asarray(items, dtype), jnp.asarray(bias))

    @jax.jit
    def both(queries: Any, items: Any, bias: Any) -> Any:
        return [[top_k(queries, items, 1, bias=bias, softcap=cap, num_items=rows - 7,
                       backend=name) for name in ("native", "reference")] for cap in (None, 8.0)]

    for one, other in both(*given):
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    ids = np.asarray(both(*given)[0][0][1]).ravel()
    assert ids[3] == -1 and (np.delete(ids, 3) >= 0).all()


def test_a_shard_without_items_has_no_best_one() -> None:
    if reason := native_build.problem():
        pytest.skip(f"no native backend: {reason}")
    scores, ids = top_k(jnp.ones((2, 4)), jnp.ones((9, 4)), 1, num_items=0, backend="native")
    assert np.asarray(ids).ravel().tolist() == [-1, -1]
    assert np.asarray(scores).ravel().tolist() == [-np.inf] * 2
