"""Which parameters train, by rules over paths, and the thin products of LoRA."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.model.encoder import Encoder, build_encoder
from rec_jax.model.encoders import Inputs, hstu, transformer
from rec_jax.model.lora import Adapted, LoraConfig, adapted_in, find_adapted, init_lora, merged
from rec_jax.model.optimizer import OptimizerConfig, dense_optimizer
from rec_jax.model.tuning import EVERYTHING, TuneConfig, Tuning, find_tuning

PATHS = ["blocks/0/up/kernel", "blocks/0/up/bias", "blocks/1/up/kernel", "content/text",
         "lora/blocks/1/up/kernel/a"]
NAN = float("nan")


def test_the_last_rule_that_matches_counts_and_what_none_matches_trains_as_ever() -> None:
    found = find_tuning([TuneConfig("*", 0.0), TuneConfig("blocks/*", 0.5),
                         TuneConfig("blocks/1/*", 1.0), TuneConfig("lora/*", 1.0)],
                        PATHS, ["items", "users"])
    assert {path: found.rate(path) for path in PATHS} == {
        "blocks/0/up/kernel": 0.5, "blocks/0/up/bias": 0.5, "blocks/1/up/kernel": 1.0,
        "content/text": 0.0, "lora/blocks/1/up/kernel/a": 1.0}
    assert found.freezes_table("items") and found.freezes_table("users")
    assert find_tuning([], PATHS, ["items"]) == EVERYTHING
    only = find_tuning([TuneConfig("tables/items", 2.0)], PATHS, ["items", "users"])
    assert (only.table_rate("items"), only.table_rate("users")) == (2.0, 1.0)


def test_a_matrix_beneath_lora_is_frozen_whatever_the_rules_say() -> None:
    found = find_tuning([TuneConfig("*", 2.0)], PATHS, [], adapted_in(PATHS))
    assert found.frozen("blocks/1/up/kernel") and not found.frozen("blocks/0/up/kernel")


@pytest.mark.parametrize(("pattern", "near"), [
    ("blocks/2/up/kernel", "blocks/1/up/kernel"), ("tables.items", "tables/items"),
    ("Content/text", "content/text")])
def test_a_pattern_without_a_match_is_one_line_with_paths_that_are_near(
        pattern: str, near: str) -> None:
    with pytest.raises(InputError) as error:
        find_tuning([TuneConfig("*"), TuneConfig(pattern)], PATHS, ["items"])
    assert f"tune.match {pattern!r} matches no parameter" in str(error.value)
    assert near in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [NAN, -0.1, float("inf"), 1e7])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"^tune.rate is .*; expected at least 0"):
        TuneConfig("*", rate)


@pytest.mark.parametrize(("name", "value"), [
    ("rank", 0), ("rank", 2**17), ("alpha", 0.0), ("alpha", NAN), ("alpha", -1.0)])
def test_settings_of_lora_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^lora.{name} is "):
        LoraConfig("*", **{name: value})  # type: ignore[arg-type]


def test_the_last_entry_of_lora_counts_and_only_matrices_are_adapted() -> None:
    shapes = {"a/kernel": (6, 4), "a/bias": (4,), "b/kernel": (4, 12)}
    assert find_adapted([LoraConfig("*", 4, 8.0), LoraConfig("b/*", 2, 1.0)], shapes) == (
        Adapted("a/kernel", 4, 2.0), Adapted("b/kernel", 2, 0.5))
    with pytest.raises(InputError, match=r"'a/bias' matches no matrix of the encoder .*a/kernel"):
        find_adapted([LoraConfig("a/bias")], shapes)
    with pytest.raises(InputError, match=r"rank is 5, and a/kernel is \[6, 4\]; .* at most 4"):
        find_adapted([LoraConfig("a/*", 5)], shapes)


def test_merged_is_the_matrix_plus_the_scaled_product() -> None:
    random = np.random.default_rng(0)
    one = Adapted("w", 3, 0.25)
    params = {name: random.standard_normal(shape).astype(np.float32) for name, shape in {
        "w": (5, 7), "other": (2,), one.left: (5, 3), one.right: (3, 7)}.items()}
    found = merged([one], {name: jnp.asarray(value) for name, value in params.items()})
    assert sorted(found) == ["other", "w"]
    exact = {name: value.astype(np.float64) for name, value in params.items()}
    np.testing.assert_allclose(found["w"], exact["w"] + 0.25 * exact[one.left] @ exact[one.right],
                               atol=1e-6)
    np.testing.assert_array_equal(found["other"], params["other"])


def test_first_values_of_a_matrix_do_not_depend_on_what_else_is_adapted() -> None:
    shapes = {"a": (64, 64), "b": (64, 64)}
    alone = init_lora([Adapted("b", 64, 1.0)], shapes, 3)
    both = init_lora([Adapted("a", 64, 1.0), Adapted("b", 64, 1.0)], shapes, 3)
    for path, leaf in alone.items():
        np.testing.assert_array_equal(leaf, both[path])
    assert not np.array_equal(both["lora/a/a"], both["lora/b/a"])
    assert not np.any(both["lora/a/b"])
    assert float(jnp.std(both["lora/a/a"])) == pytest.approx(1 / 8, rel=0.1)


DIM, LENGTH = 8, 5


def queries_of(encoder: Encoder) -> Callable[[dict[str, jax.Array]], np.ndarray]:
    """From parameters to queries, compiled once."""
    random = np.random.default_rng(1)
    inputs = Inputs(jnp.asarray([[1, 1, 2, 2, 0], [1] * 5], jnp.int32),
                    jnp.asarray([[0, 1, 0, 1, 2], range(5)], jnp.int32))
    vectors = jnp.asarray(random.standard_normal((2, LENGTH, DIM)), jnp.float32)
    compiled = jax.jit(lambda params: encoder(params, vectors, inputs))
    return lambda params: np.asarray(compiled(params))


@pytest.mark.parametrize("precision", ["f32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [
    pytest.param(transformer.Config(layers=1, heads=2, hidden=2), id="transformer"),
    pytest.param(hstu.Config(layers=1, heads=2), id="hstu", marks=pytest.mark.slow)])
def test_lora_begins_as_the_encoder_itself_and_merged_is_what_it_becomes(
        config: transformer.Config | hstu.Config, precision: str) -> None:
    settings = {"dim": DIM, "length": LENGTH, "causal": True, "precision": precision, "seed": 4}
    base, params = build_encoder(config, **settings)  # type: ignore[arg-type]
    encoder, adapted = build_encoder(
        config, lora=[LoraConfig("*kernel", 4), LoraConfig("*project*", 2, 1.0)],
        **settings)  # type: ignore[arg-type]
    assert len(encoder.lora) >= 2 and adapted.keys() - params.keys() == {
        path for each in encoder.lora for path in (each.left, each.right)}
    plain, tuned = queries_of(base), queries_of(encoder)
    before = plain(params)
    assert tuned(adapted).tobytes() == before.tobytes()
    random = np.random.default_rng(2)
    moved = {path: leaf if path in params else jnp.asarray(
        0.1 * random.standard_normal(leaf.shape), jnp.float32) for path, leaf in adapted.items()}
    after = tuned(moved)
    assert np.abs(after.astype(np.float32) - before.astype(np.float32)).max() > 1e-2
    np.testing.assert_allclose(plain(merged(encoder.lora, moved)).astype(np.float32),
                               after.astype(np.float32), atol=1e-6)


def test_a_factor_is_one_of_the_update_with_its_weight_decay() -> None:
    params = {"encoder": {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3)), "c": jnp.ones(3)},
              "tables": {"items": {"rows": jnp.ones((4, 3)), "bias": jnp.ones(4)}}}
    random = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(
        random.standard_normal(leaf.shape), jnp.float32), params)
    settings = OptimizerConfig(rate=0.1, warmup=0, weight_decay=0.2, clip=1.0)
    plain = dense_optimizer(settings, 10)
    tuned = dense_optimizer(settings, 10, Tuning({"b": 0.5, "c": 3.0, "tables/items": 0.5}))
    expected, _ = plain.update(gradient, plain.init(params), params)
    found, _ = tuned.update(gradient, tuned.init(params), params)
    for part, factor in (("a", 1.0), ("b", 0.5), ("c", 3.0)):
        np.testing.assert_array_equal(found["encoder"][part], factor * expected["encoder"][part])
    for part in ("rows", "bias"):
        np.testing.assert_array_equal(found["tables"]["items"][part],
                                      0.5 * expected["tables"]["items"][part])
