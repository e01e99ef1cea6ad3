"""How long a run is, when it validates, and that its settings reach its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax import config
from rec_jax.data.label_frequency import label_counts, log_shares
from rec_jax.errors import InputError
from rec_jax.inference.protocol import choose_users
from rec_jax.run import Run, RunConfig
from rec_jax.run_sections import DataConfig, TrainConfig
from rec_jax.train.build import Built, build, steps_of
from rec_jax.train.feed import whole_batches
from rec_jax.train.loop import run_training
from rec_jax.train.step import place_batch

Mapping = Callable[..., dict[str, Any]]


def horizon(rows_per_epoch: int, **train: float):
    return steps_of(RunConfig(data=DataConfig(path="none"), train=TrainConfig(**train)),  # type: ignore[arg-type]
                    rows_per_epoch)


def test_a_run_has_the_steps_of_its_epochs_unless_steps_are_given() -> None:
    assert horizon(640, rows=8, epochs=1.5).total == 120
    assert horizon(640, rows=8, epochs=1.5, steps=7).total == 7
    assert horizon(1, rows=8, epochs=0.01).total == 1


@pytest.mark.parametrize(("rows", "every"), [(641, 3.0), (669, 3.0), (8000, 2.0), (77, 0.9)])
def test_validations_are_regular_and_the_last_is_at_the_end(rows: int, every: float) -> None:
    found = horizon(rows, rows=8, epochs=30, evaluate_every=every)
    steps = [done for done in range(1, found.total + 1) if found.validates(done)]
    assert steps[-1] == found.total
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert set(gaps[:-1]) == {round(every * rows / 8)}
    assert gaps[0] / 2 <= gaps[-1] < 1.5 * gaps[0]


def test_a_run_shorter_than_an_interval_validates_once() -> None:
    found = horizon(800, rows=8, epochs=1, steps=3, evaluate_every=5)
    assert [done for done in (1, 2, 3) if found.validates(done)] == [3]


def built_of(mapping: dict[str, Any]) -> tuple[Built, dict[str, jax.Array]]:
    """The parts of a run and its first batch."""
    built = build(config.build(RunConfig, mapping))
    batch, _ = next(whole_batches(built.stream, 1, built.log_share))
    return built, place_batch(batch, built.mesh)


def test_rows_with_their_own_optimizer_follow_the_schedule_of_the_run(
        tiny_mapping: Mapping) -> None:
    """Without a rate of their own: in the warm-up as well, and to the end of the cosine."""
    built, batch = built_of(tiny_mapping(
        "table.update=streamed", "table.optimizer.kind=sgd", "objective.backend=xla",
        "encoder.dropout=0", "optimizer.rate=1", "optimizer.warmup=4",
        "optimizer.schedule=cosine", "optimizer.final=0.5", "train.steps=40"))
    before, moved = np.array(built.state.items.rows), []
    for number in (0, 3, 40):  # the first step, the peak, the end
        state = jax.tree.map(jnp.copy, built.state)._replace(step=jnp.int32(number))
        state, _ = built.step(state, batch)
        moved.append(np.array(state.items.rows) - before)
    first, peak, last = moved
    assert np.abs(peak).max() > 1e-3
    np.testing.assert_allclose(first, 0.25 * peak, atol=1e-6)
    np.testing.assert_allclose(last, 0.5 * peak, atol=1e-6)


def test_the_average_of_a_run_has_its_decay(tiny_mapping: Mapping) -> None:
    built, batch = built_of(tiny_mapping(
        "table.update=dense", "objective.backend=xla", "train.ema=0.75", "optimizer.warmup=0"))
    before = np.array(built.state.items.rows)
    state, _ = built.step(built.state, batch)
    after = np.array(state.items.rows)
    assert state.average is not None and np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(state.average.tables["items"], 0.75 * before + 0.25 * after,
                               atol=1e-6)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_step_scores_in_the_precision_of_the_run(tiny_mapping: Mapping, precision: str) -> None:
    built, batch = built_of(tiny_mapping(
        "table.update=dense", "objective.backend=xla", f"train.precision={precision}"))
    rows = ",".join(map(str, built.state.items.rows.shape))
    program = str(jax.make_jaxpr(built.step)(built.state, batch))
    assert f"f32[{rows}]" in program and (f"bf16[{rows}]" in program) == (precision == "bf16")


@pytest.mark.parametrize("window", ["last", "chunks"])
def test_in_batch_negatives_know_the_labels_of_the_stream(
        tiny_mapping: Mapping, window: str) -> None:
    built, batch = built_of(tiny_mapping(
        "objective.kind=in_batch", "data.length=3", f"data.window={window}", "train.rows=1"))
    stream = built.stream
    seen = np.concatenate([stream.batch(step)["targets"].ravel()
                           for step in range(stream.rows_per_epoch)])
    expected = log_shares(np.bincount(seen[seen >= 0], minlength=built.dataset.num_items))
    np.testing.assert_array_equal(built.log_share, expected)
    there = np.asarray(batch["targets"]) >= 0
    np.testing.assert_array_equal(np.asarray(batch["log_q"])[there],
                                  expected[np.asarray(batch["targets"])[there]])


def test_validation_asks_as_many_users_as_the_run_says_chosen_by_its_seed(
        tiny_mapping: Mapping) -> None:
    asked = []
    for seed in (3, 4):
        built = build(config.build(RunConfig, tiny_mapping("evaluate.users=7", f"seed={seed}")))
        asked.append(built.validator.panel.users.tolist())
        assert asked[-1] == choose_users(built.dataset, "valid", 7, seed)[0].tolist()
    assert len(asked[0]) == 7 and asked[0] != asked[1]


def test_the_seed_of_a_run_decides_all_that_is_drawn_in_it(tiny_mapping: Mapping) -> None:
    def drawn(seed: int) -> dict[str, np.ndarray]:
        built, batch = built_of(tiny_mapping(f"seed={seed}", "table.tied=false"))
        state = built.state
        parameters = [np.ravel(leaf) for leaf in jax.tree.leaves(state.encoder)]
        return {"rows": np.array(state.items.rows), "inputs": np.array(state.tables["inputs"].rows),
                "parameters": np.concatenate(parameters), "key": np.array(state.key),
                "batch": np.array(batch["items"])}

    one, again, other = drawn(3), drawn(3), drawn(4)
    for name, value in one.items():
        assert np.array_equal(value, again[name]), name
        assert not np.array_equal(value, other[name]), name


@pytest.mark.parametrize("pack", [True, False])
def test_users_share_a_row_where_the_run_packs_them(tiny_mapping: Mapping, pack: bool) -> None:
    _, batch = built_of(tiny_mapping("data.length=64", f"data.pack={str(pack).lower()}"))
    assert (np.max(batch["segments"]) > 1) == pack


MODES = {"dense": ("train.ema=0.9",), "streamed": ("table.update='streamed'",),
         "sparse": ("table.update='sparse'", "objective.kind='sampled_softmax'",
                    "objective.count=8")}


@pytest.mark.parametrize(("mode", "mesh"), [
    ("dense", ()), ("streamed", ("mesh.data=2", "mesh.items=2")), ("sparse", ("mesh.data=4",)),
    pytest.param("sparse", (), marks=pytest.mark.slow),
    pytest.param("streamed", (), marks=pytest.mark.slow)])
def test_a_step_is_compiled_once(mode: str, mesh: tuple[str, ...], tiny_mapping: Mapping) -> None:
    """The first state is placed as every later one is."""
    built, batch = built_of(tiny_mapping("train.steps=10", *MODES[mode], *mesh))
    state = built.state
    for _ in range(3):
        state, _ = built.step(state, batch)
    assert built.step._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("lines", "message"), [
    (('objective.kind="sampled_softmax"', "objective.count=999"), "999 different negatives of 50"),
    (('objective.kind="hard_negatives"', "objective.uniform=61"), "61 different negatives of 50"),
    (('objective.kind="random_walk"', "objective.count=99"), "99 different negatives of 50")],
    ids=["drawn", "mined", "walks"])
def test_an_objective_that_does_not_fit_the_catalogue_leaves_no_run(
        lines: tuple[str, ...], message: str, tiny_mapping: Mapping, tmp_path: Path) -> None:
    mapping = tiny_mapping(*lines)
    if "random_walk" in lines[0]:
        mapping["encoder"] = {"kind": "graphsage"}
    settings = config.build(RunConfig, mapping)
    with pytest.raises(InputError, match=f"objective '{settings.objective.kind}': {message} items"):
        run_training(Run(tmp_path / "run"), settings, new=True)
    assert not (tmp_path / "run").exists()


def test_a_clipped_gradient_needs_all_tables_dense(tiny_mapping: Mapping) -> None:
    """Its norm would lack the rows of a sparse one."""
    settings = ("table.tied=false", "table.update='dense'", "optimizer.clip=1.0", "inputs.dim=16")
    build(config.build(RunConfig, tiny_mapping(*settings, "inputs.update='dense'")))
    with pytest.raises(InputError, match=r"sparse table 'inputs'.*inputs.update = 'dense'"):
        build(config.build(RunConfig, tiny_mapping(*settings, "inputs.update='sparse'")))


def test_labels_are_counted_once_for_all_validations(tiny_mapping: Mapping,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(*args: Any, **settings: Any) -> Any:
        counted.append(settings)
        return label_counts(*args, **settings)

    monkeypatch.setattr("rec_jax.inference.served.label_counts", count)
    built = build(config.build(RunConfig, tiny_mapping("bias.serve_strength=0.5")))
    assert built.validator(built.state) == built.validator(built.state)
    assert len(counted) == 1
