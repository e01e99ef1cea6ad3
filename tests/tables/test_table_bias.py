"""What a table's bias is, and that it lies beside the rows whatever their order and mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import config
from rec_jax.errors import InputError
from rec_jax.mesh import BOTH, ITEMS, MeshConfig, make_mesh, row_sharding
from rec_jax.tables import Hyper, RowMap, RowOptimizerConfig, row_optimizer
from rec_jax.tables.bias import (
    BiasConfig,
    bias_state,
    first_bias,
    log_popularity,
    place_bias,
    served_bias,
    serving_part,
    update_bias,
)
from rec_jax.tables.row_map import spread

COUNTS = np.array([0, 1, 7, 2, 0, 90])
MESHES = [(1, 1, (ITEMS,)), (2, 4, (ITEMS,)), (1, 8, (ITEMS,)), (2, 4, BOTH)]


def test_log_popularity_is_that_of_smoothed_shares():
    found = log_popularity(COUNTS, 0.5)
    np.testing.assert_allclose(np.exp(found.astype(np.float64)), (COUNTS + 0.5) / 103, rtol=1e-6)
    assert found.dtype == np.float32 and np.exp(found).sum() == pytest.approx(1, rel=1e-6)
    assert np.isfinite(log_popularity(np.zeros(3, np.int64), 1e-9)).all()
    # int64 counts that f32 cannot tell apart from their neighbours
    many = log_popularity(np.array([10**17, 1]), 1.0)
    assert many[1] == pytest.approx(np.log(2 / 1e17), rel=1e-6)


def test_without_a_bias_there_is_no_array():
    assert first_bias(BiasConfig(), COUNTS) is None
    assert serving_part(BiasConfig(), COUNTS) is None
    assert served_bias(None, None, 2.0) is None
    assert not BiasConfig().in_loss


@pytest.mark.parametrize(("trained", "strength", "serve", "first", "part"), [
    (False, 1.0, None, 1.0, 1.0),  # as in training
    (False, 1.0, 0.5, 1.0, 0.5),  # less popularity in the lists
    (False, 1.0, 0.0, 1.0, None),  # logit adjustment
    (False, 0.0, 0.5, None, 0.5),  # at serving alone
    (True, 0.0, None, 0.0, None), (True, 1.0, None, 1.0, None),
    (True, 1.0, 0.25, 1.0, -0.75), (True, 0.0, -0.5, 0.0, -0.5)])
def test_training_and_serving_have_their_own_strength(trained, strength, serve, first, part):
    settings = BiasConfig(trained, strength, serve, prior=2.0)
    popular = log_popularity(COUNTS, 2.0)
    for found, times in ((first_bias(settings, COUNTS), first),
                         (serving_part(settings, COUNTS), part)):
        if times is None:
            assert found is None
        else:
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, times * popular, rtol=1e-6)


def test_what_is_served_belongs_to_scores_without_scale():
    """scale * (h . w) + b ranks as h . w + b / scale."""
    trained, part = jnp.arange(3.0), jnp.array([1.0, -jnp.inf, 0.5])
    np.testing.assert_array_equal(served_bias(trained, part, 2.0), [0.5, -np.inf, 1.25])
    np.testing.assert_array_equal(served_bias(trained, None, 2.0), [0, 0.5, 1])
    np.testing.assert_array_equal(served_bias(None, part, 0.5), [2, -np.inf, 1])


@pytest.mark.parametrize("wrong", [
    {"strength": 1e9}, {"strength": float("nan")}, {"serve_strength": float("inf")},
    {"prior": 0.0}, {"prior": -1.0}, {"strenght": 1.0}, {"strength": "much"}])
def test_a_config_that_says_nothing_usable_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as refusal:
        config.build(BiasConfig, wrong)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("order", [None, RowMap(90), spread(90)], ids=["none", "same", "stripes"])
@pytest.mark.parametrize("placement", MESHES, ids=str)
def test_a_bias_is_cut_and_ordered_as_the_rows_are(placement, order):
    data, items, over = placement
    mesh, total = make_mesh(MeshConfig(data, items)), 96
    values = np.random.default_rng(0).normal(size=90).astype(np.float32)
    barred = np.arange(90) % 3 == 0
    rows = np.arange(90) if order is None else order.rows(np.arange(90))
    for given in ({"values": values}, {"barred": barred}, {"values": values, "barred": barred}):
        found = place_bias(total, mesh, over=over, row_map=order, **given)
        assert found.sharding.is_equivalent_to(row_sharding(mesh, over), 1)
        expected = given.get("values", np.zeros(90, np.float32)).copy()
        if "barred" in given:
            expected[barred] = -np.inf
        np.testing.assert_array_equal(np.asarray(found)[rows], expected)
        np.testing.assert_array_equal(np.asarray(found)[90:], 0)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam", "row_adam"])
def test_a_step_of_the_bias_is_that_of_rows_one_wide(kind):
    optimizer = row_optimizer(RowOptimizerConfig(kind=kind, clip=0.5, weight_decay=0.1))
    hyper, rng = Hyper(jnp.float32(0.1)), np.random.default_rng(0)
    bias = jnp.asarray(rng.normal(size=8), jnp.float32).at[3].set(-jnp.inf).at[6:].set(0)
    rows, state, row_state = bias[:, None], bias_state(optimizer, 8), optimizer.init((8, 1))
    for _ in range(3):
        grads = jnp.asarray(rng.normal(size=8), jnp.float32).at[3].set(0).at[6:].set(0)
        bias, state = jax.jit(lambda *args: update_bias(*args, optimizer.update, hyper))(
            bias, grads, state)
        rows, row_state = jax.jit(lambda *args: optimizer.update(*args, hyper))(
            rows, grads[:, None], row_state)
    kept = np.arange(8) != 3
    np.testing.assert_array_equal(np.asarray(bias)[kept], np.asarray(rows)[kept, 0])
    assert bias[3] == -np.inf and not np.asarray(bias)[6:].any()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == {
        "sgd": 0, "adagrad": 32, "adam": 96, "row_adam": 96}[kind]
