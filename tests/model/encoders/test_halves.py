"""A causal row that attends in halves has the queries and gradients of the whole one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import Inputs, attention, hstu, transformer

DIM, LENGTH = 8, 71


@pytest.mark.parametrize("config", [
    pytest.param(transformer.Config(layers=2), marks=pytest.mark.slow),
    transformer.Config(layers=1, positions="rotary"),
    hstu.Config(layers=2, time_bias=True)], ids=["sasrec", "rotary", "hstu"])
def test_halves_are_the_whole(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, params = build_encoder(config, dim=DIM, length=LENGTH, causal=True, precision="f32",
                                    seed=0)
    draw = np.random.default_rng(0)
    params = {path: leaf + jnp.asarray(0.3 * draw.standard_normal(leaf.shape), jnp.float32)
              for path, leaf in params.items()}
    segments = np.sort(draw.integers(1, 4, (2, LENGTH)), axis=1)
    positions = np.concatenate([np.arange(LENGTH)[None]] * 2)
    inputs = Inputs(jnp.asarray(segments), jnp.asarray(positions),
                    jnp.asarray(np.cumsum(draw.integers(0, 9, (2, LENGTH)), axis=1)))
    vectors = jnp.asarray(draw.standard_normal((2, LENGTH, DIM)), jnp.float32)
    weights = jnp.asarray(draw.standard_normal((2, LENGTH, DIM)), jnp.float32)

    def answer() -> list[np.ndarray]:
        def loss(params: Any, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
            queries = encoder(params, vectors, inputs)
            return jnp.sum(queries * weights), queries

        (_, queries), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1),
                                                             has_aux=True))(params, vectors)
        return [np.asarray(leaf) for leaf in jax.tree.leaves((queries, gradients))]

    assert attention._HALVED <= LENGTH
    halves = answer()
    monkeypatch.setattr(attention, "_HALVED", LENGTH + 1)
    for found, whole in zip(halves, answer(), strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5 * (1 + np.abs(whole).max()))
