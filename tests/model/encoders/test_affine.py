"""The product with a bias, and its own backward pass, against their definition in f64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.model.encoders.layers import affine


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (130, 16, 33)])
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_products_and_their_gradients_are_those_of_the_definition(
        shape: tuple[int, int, int], dtype: jnp.dtype, error: float) -> None:
    rows, dim, width = shape
    draw = np.random.default_rng(rows)
    x, kernel, bias, g = (draw.normal(size=size) for size in
                          ((rows, dim), (dim, width), (width,), (rows, width)))
    out, back = jax.vjp(affine, jnp.asarray(x, dtype), jnp.asarray(kernel, jnp.float32),
                        jnp.asarray(bias, jnp.float32))
    found = (out, *back(jnp.asarray(g, dtype)))
    wanted = (x @ kernel + bias, g @ kernel.T, x.T @ g, g.sum(axis=0))
    # Parameters stay f32, whatever they are multiplied in.
    assert [each.dtype for each in found] == [dtype, dtype, jnp.float32, jnp.float32]
    for each, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(each, np.float64), other,
                                   atol=error * np.abs(other).max())
