"""A row is its trained values and A times its content, in every way to train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_step import LENGTH, D, Trained, V, log_softmax
from examples import example
from marks import alone_or_cut, fast_where

from rec_jax import streams
from rec_jax.data.content import Content, ContentConfig, check_content
from rec_jax.errors import InputError
from rec_jax.model.rows import RowSource
from rec_jax.objectives import next_item, sampled_softmax

history = example("weighted_history")

SOURCE = RowSource(D, (Content("content/title", 3), Content("content/image", 2)))


def test_without_content_nothing_is_computed() -> None:
    plain = RowSource(D)
    rows = jnp.ones((4, D))
    assert plain.compose({}, rows) is rows and plain.expand({}, rows) is rows
    assert (plain.width, plain.columns, SOURCE.width) == (D, 0, D + 5)


def test_a_turned_query_has_the_same_product_with_the_stored_row() -> None:
    random = np.random.default_rng(0)
    params = {part.path: jnp.asarray(random.standard_normal((part.columns, D)))
              for part in SOURCE.content}
    rows, queries = (jnp.asarray(random.standard_normal((6, width))) for width in (D + 5, D))
    np.testing.assert_allclose(
        jnp.sum(SOURCE.expand(params, queries) * rows, axis=1),
        jnp.sum(queries * SOURCE.compose(params, rows), axis=1), rtol=2e-5)


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "streamed", "sparse"], [(1, 1), (2, 4)]), ids=str)
def test_the_step_is_that_of_e_plus_a_x(mode: str, mesh: tuple[int, int]) -> None:
    content = np.random.default_rng(1).standard_normal((V, 5)).astype(np.float32)
    objective = (sampled_softmax.Config(count=V, backend="xla") if mode == "sparse"
                 else next_item.Config(backend="xla"))  # all items drawn: the full softmax
    trained = Trained(objective, history.Config(), mode, mesh, source=SOURCE, fixed=content)
    np.testing.assert_array_equal(trained.before.fixed, content)
    np.testing.assert_array_equal(trained.after.fixed, content)
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        vectors = (items + content[:, :3] @ params["content/title"]
                   + content[:, 3:] @ params["content/image"])
        logs = log_softmax(trained.queries(params, vectors, users) @ vectors.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)


def test_matrices_begin_by_seed_and_name() -> None:
    one, other = SOURCE.init_parameters(0, 0.1), SOURCE.init_parameters(1, 0.1)
    assert one.keys() == {"content/title", "content/image"}
    assert one["content/title"].shape == (3, D)
    assert not np.array_equal(one["content/title"], other["content/title"])
    assert not np.array_equal(one["content/title"][:2], one["content/image"])
    assert 0.05 < float(jnp.std(jax.numpy.concatenate(list(one.values())))) < 0.2


def dropped(rate: float) -> RowSource:
    return RowSource(D, tuple(part._replace(drop=rate) for part in SOURCE.content))


@pytest.mark.parametrize(("mode", "mesh"), fast_where(
    alone_or_cut, ["dense", "sparse"], [(1, 1), (2, 4)]), ids=str)
def test_the_step_leaves_out_the_own_values_of_some_items_wherever_it_reads_them(
        mode: str, mesh: tuple[int, int]) -> None:
    content = np.random.default_rng(1).standard_normal((V, 5)).astype(np.float32)
    objective = (sampled_softmax.Config(count=V, backend="xla") if mode == "sparse"
                 else next_item.Config(backend="xla"))
    trained = Trained(objective, history.Config(), mode, mesh, accumulate=1, source=dropped(0.5),
                      fixed=content)
    key = streams.of_step(streams.of_steps(0), jnp.int32(0), streams.ROWS)
    kept = np.array([float(jax.random.uniform(jax.random.fold_in(key, item))) >= 0.5
                     for item in range(V)])
    assert 8 < kept.sum() < V - 8
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        vectors = (items * kept[:, None] + content[:, :3] @ params["content/title"]
                   + content[:, 3:] @ params["content/image"])
        logs = log_softmax(trained.queries(params, vectors, users) @ vectors.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)
    moved = np.abs(trained.after.parts[1] - trained.before.parts[1]).max(axis=1) > 0
    assert not moved[~kept].any() and moved[kept].any()


@pytest.mark.parametrize("mode", ["dense", "streamed", "sparse"])
def test_with_content_alone_nothing_else_is_read_or_trained(mode: str) -> None:
    content = np.random.default_rng(1).standard_normal((V, 5)).astype(np.float32)
    objective = (sampled_softmax.Config(count=V, backend="xla") if mode == "sparse"
                 else next_item.Config(backend="xla"))
    trained = Trained(objective, history.Config(), mode, (1, 1), source=dropped(1.0),
                      fixed=content, init_scale=0.0)
    assert not trained.after.parts[1].any()
    batch = {name: value.reshape(-1, LENGTH) for name, value in trained.batch.items()}
    live = batch["targets"] >= 0

    def loss(params: Any, items: Any, users: Any) -> Any:
        vectors = (0 * items + content[:, :3] @ params["content/title"]
                   + content[:, 3:] @ params["content/image"])
        logs = log_softmax(trained.queries(params, vectors, users) @ vectors.T)
        chosen = jnp.take_along_axis(logs, np.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(live, chosen, 0.0)) / live.sum()

    trained.check(loss)


def test_a_streamed_table_that_cannot_leave_values_out_says_so() -> None:
    with pytest.raises(InputError, match=r"expected content\.drop = 0 or 1, or table\.update"):
        Trained(next_item.Config(backend="xla"), history.Config(), "streamed", (1, 1),
                source=dropped(0.5), fixed=np.zeros((V, 5), np.float32))


def test_entries_with_different_rates_are_refused() -> None:
    with pytest.raises(InputError, match=r"drop is 0 in one entry, 0.5 in another"):
        check_content([ContentConfig("a"), ContentConfig("b", drop=0.5)])
    with pytest.raises(InputError, match=r"content\.drop"):
        ContentConfig("a", drop=1.5)
