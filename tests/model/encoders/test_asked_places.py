"""Queries of some places alone are those that the encoder has there among all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, hstu, transformer

DIM, LENGTH = 8, 10
# Two users, of 4 and 5 items, then one place of padding; and one alone.
INPUTS = Inputs(jnp.array([[1] * 4 + [2] * 5 + [0], [1] * 10]),
                jnp.array([[*range(4), *range(5), 0], [*range(10)]]),
                jnp.array([[0, 1, 4, 90, 0, 7, 8, 60, 999, 0], [*range(0, 100, 10)]]))


@pytest.mark.parametrize(("at", "causal"), [
    ([[3], [9]], True), ([[3, 8, 0], [9, 0, 5]], False),
    pytest.param([[3], [9]], False, marks=pytest.mark.slow),
    pytest.param([[3, 8, 0], [9, 0, 5]], True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [
    transformer.Config(layers=2), transformer.Config(backend="xla"),
    transformer.Config(layers=1, activation="swiglu", norm="rms"),
    transformer.Config(layers=2, positions="rotary"), transformer.Config(query_chunk=4),
    hstu.Config(layers=2), hstu.Config(layers=1, time_bias=True), hstu.Config(query_chunk=4)],
    ids=["sasrec", "sasrec in xla", "swiglu", "rotary", "sasrec in pieces", "hstu", "time bias",
         "hstu in pieces"])
def test_asked_places_have_the_queries_that_they_have_among_all(
        config: Any, causal: bool, at: list[list[int]]) -> None:
    encoder, params = build_encoder(config, dim=DIM, length=LENGTH, causal=causal,
                                    precision="f32", seed=0)
    draw = np.random.default_rng(0)
    params = {path: leaf + jnp.asarray(0.3 * draw.standard_normal(leaf.shape), jnp.float32)
              for path, leaf in params.items()}
    vectors = jnp.asarray(draw.standard_normal((2, LENGTH, DIM)), jnp.float32)
    asked = jnp.array(at)
    found = jax.jit(encoder.__call__)(params, vectors, INPUTS, at=asked)
    among_all = jax.jit(encoder.__call__)(params, vectors, INPUTS)
    assert found.shape == (*asked.shape, DIM)
    np.testing.assert_allclose(
        found, np.take_along_axis(np.asarray(among_all), asked[..., None], 1),
        rtol=1e-5, atol=1e-5)
