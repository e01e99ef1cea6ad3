"""The examples of docs/extending are what they say: each against its definition in numpy f64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import LENGTH, ROWS, D, Trained, U, V, log_softmax
from examples import FOLDER, example
from flax import nnx
from marks import alone_or_cut, fast_where

from rec_jax.kernels import target_rank
from rec_jax.model.encoder import Encoder, build_encoder


def test_every_example_is_tried_here() -> None:
    named = Path(__file__).read_text()
    for path in FOLDER.glob("*.py"):
        assert f'"{path.stem}"' in named, path


MESHES = [(1, 1), (2, 4)]


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "streamed"], MESHES), ids=str)
def test_the_divergence_from_a_distribution_of_ratings(mode: str, mesh: tuple[int, int]) -> None:
    trained = Trained(example("rating_distribution").Config(backend="xla"),
                      example("weighted_history").Config(), mode, mesh)
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}

    def loss(params: Any, items: Any, users: Any) -> Any:
        queries, total, count = trained.queries(params, items, users), 0.0, 0
        for row in range(ROWS):
            for segment, last in ((1, 2), (2, 4)):
                own = (batch["segments"][row] == segment) & (batch["targets"][row] >= 0)
                if not own.any():
                    continue
                share = batch["values/rating"][row][own].astype(np.float64)
                share /= share.sum()
                logs = log_softmax(queries[row, last] @ items.T)[batch["targets"][row][own]]
                total, count = total + jnp.sum(share * (np.log(share) - logs)), count + 1
        return total / count

    trained.check(loss)


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "streamed"], MESHES), ids=str)
def test_a_policy_gradient_follows_signed_rewards(mode: str, mesh: tuple[int, int]) -> None:
    trained = Trained(example("policy_gradient").Config(baseline=0.2, backend="xla"),
                      example("weighted_history").Config(), mode, mesh)
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0
    assert (batch["values/reward"][live] < 0.2).any() and (batch["values/reward"][live] > 0.2).any()

    def loss(params: Any, items: Any, users: Any) -> Any:
        logs = log_softmax(trained.queries(params, items, users) @ items.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        advantage = batch["values/reward"].astype(np.float64) - 0.2
        return -jnp.sum(jnp.where(live, advantage * chosen, 0.0)) / live.sum()

    trained.check(loss)


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "sparse"], MESHES), ids=str)
def test_a_value_is_pulled_to_reward_and_best_next_value(mode: str, mesh: tuple[int, int]) -> None:
    trained = Trained(example("q_learning").Config(gamma=0.8),
                      example("weighted_history").Config(), mode, mesh)
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0
    follows = np.zeros_like(live)
    follows[:, :-1] = (batch["segments"][:, 1:] == batch["segments"][:, :-1]) & (
        batch["segments"][:, :-1] > 0)
    assert (live & follows).any() and (live & ~follows).any()

    def loss(params: Any, items: Any, users: Any) -> Any:
        scores = trained.queries(params, items, users) @ items.T
        value = jnp.take_along_axis(scores, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        after = jnp.roll(jnp.max(scores, axis=-1), -1, axis=1)
        target = batch["values/reward"].astype(np.float64) + 0.8 * jnp.where(follows, after, 0.0)
        missing = value - jax.lax.stop_gradient(target)
        return jnp.sum(jnp.where(live, 0.5 * missing**2, 0.0)) / live.sum()

    trained.check(loss)


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "streamed"], MESHES), ids=str)
def test_users_have_a_table_of_their_own(mode: str, mesh: tuple[int, int]) -> None:
    from rec_jax.objectives import next_item

    trained = Trained(next_item.Config(backend="xla"), example("user_vectors").Config(), mode, mesh)
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        logs = log_softmax(users[batch["users"]] @ items.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)
    idle = set(range(U)) - set(batch["users"][batch["segments"] > 0].tolist())
    for user in idle:
        np.testing.assert_array_equal(trained.after.parts[2][user], trained.before.parts[2][user])


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "streamed", "sparse"], MESHES), ids=str)
def test_a_row_source_of_ones_own(mode: str, mesh: tuple[int, int]) -> None:
    from rec_jax.objectives import next_item, sampled_softmax

    scaled = example("scaled_rows")
    objective = (sampled_softmax.Config(count=V, backend="xla") if mode == "sparse"
                 else next_item.Config(backend="xla"))  # all items drawn: the full softmax
    trained = Trained(objective, example("weighted_history").Config(), mode, mesh,
                      source=scaled.ScaledRows(D))
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        vectors = items * params[scaled.PATH]
        logs = log_softmax(trained.queries(params, vectors, users) @ vectors.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)


def test_micro_batches_give_the_same_step() -> None:
    make = functools.partial(Trained, example("rating_distribution").Config(backend="xla"),
                             example("weighted_history").Config(), "streamed", (1, 1))
    one, two = make(), make(accumulate=2)
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), two.after.parts,
                 one.after.parts)


def test_an_encoder_needs_no_place_that_is_asked_for() -> None:
    encoder, params = build_encoder(example("weighted_history").Config(), dim=D, length=LENGTH,
                                    causal=True, precision="f32", seed=0)
    assert isinstance(encoder, Encoder) and not encoder.takes_places
    assert issubclass(example("weighted_history").WeightedHistory, nnx.Module)
    from rec_jax.model.encoders import Inputs

    vectors = jax.random.normal(jax.random.key(0), (2, LENGTH, D))
    inputs = Inputs(jnp.ones((2, LENGTH), jnp.int32), jnp.arange(LENGTH)[None].repeat(2, 0))
    every = encoder(params, vectors, inputs)
    asked = encoder(params, vectors, inputs, at=jnp.array([[4], [1]]))
    np.testing.assert_array_equal(asked[:, 0], every[jnp.arange(2), jnp.array([4, 1])])


@pytest.mark.parametrize("bias", [False, True])
def test_a_backend_of_ones_own_ranks(bias: bool) -> None:
    random = np.random.default_rng(5)
    queries, items = random.standard_normal((9, D)), random.standard_normal((V, D))
    items[20] = items[3]  # ties count against the target
    targets = np.array([3, 20, 1, 2, 0, 36, 7, 7, 9])
    offset = random.standard_normal(V) if bias else np.zeros(V)
    found = target_rank(jnp.asarray(queries, jnp.float32), jnp.asarray(items, jnp.float32),
                        jnp.asarray(targets, jnp.int32), backend=example("plain_rank").BACKEND,
                        **({"bias": jnp.asarray(offset, jnp.float32)} if bias else {}))
    scores = (queries @ items.T + offset).astype(np.float32)
    own = scores[np.arange(9), targets]
    wanted = 1 + (scores >= own[:, None]).sum(axis=1) - 1
    np.testing.assert_array_equal(found, wanted)
