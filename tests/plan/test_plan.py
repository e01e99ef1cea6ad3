"""A plan's bytes are those of the arrays, and what it proposes fits."""

from __future__ import annotations

import jax
import optax
import pytest
from steps import new_state

from rec_jax import config
from rec_jax.devices import CHIPS, parse_devices
from rec_jax.errors import InputError
from rec_jax.plan.estimate import Plan, make_plan, nearest_fit
from rec_jax.run import RunConfig
from rec_jax.tables import TableConfig, init_table, row_optimizer
from rec_jax.tables.row_optimizers import RowOptimizerConfig

BASE = {"data": {"path": "anywhere", "length": 64}, "train": {"rows": 64}}


def run_config(*lines: str) -> RunConfig:
    return config.build(RunConfig, config.override(BASE, lines))


@pytest.mark.parametrize(("text", "name", "count"), [
    ("v5p:4x4x4", "v5p", 64), ("H100x8", "h100", 8), ("h100", "h100", 1), ("v5e:2x2", "v5e", 4),
    ("cpu", "cpu", 1)])
def test_devices_have_names(text: str, name: str, count: int) -> None:
    devices = parse_devices(text)
    assert (devices.chip.name, devices.count) == (name, count)


@pytest.mark.parametrize("text", ["", "h1000x8", "v5p:", "v5p:4x", "x8", "h100x0"])
def test_unknown_devices_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        parse_devices(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam", "row_adam"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_bytes_of_rows_and_state_are_those_of_the_table(kind: str, dtype: str) -> None:
    settings = TableConfig(dim=16, dtype=dtype, optimizer=RowOptimizerConfig(kind=kind))  # type: ignore[arg-type]
    table = init_table(settings, 5000, 0, optimizer=row_optimizer(settings.optimizer))
    plan = make_plan(run_config("table.dim=16", f"table.dtype={dtype}", "table.update=streamed",
                                f"table.optimizer.kind={kind}"), 5000, parse_devices("cpu"))
    assert plan.memory["rows"] == table.rows.nbytes
    assert plan.memory["row optimizer"] == sum(
        leaf.nbytes for leaf in jax.tree.leaves(table.state))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_dense_table_plans_for_f32_moments_and_averages(dtype: str) -> None:
    settings = TableConfig(dim=16, dtype=dtype)  # type: ignore[arg-type]
    state = new_state({}, optax.adam(1.0), settings, "dense", 5000, average=True)
    table = state.items
    lines = ("table.dim=16", f"table.dtype={dtype}", "table.update=dense")
    plan = make_plan(run_config(*lines, "train.ema=0.9"), 5000, parse_devices("cpu"))
    kept = (table.rows, state.average, state.rest)
    assert plan.memory["rows"] == sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert plan.memory["row optimizer"] == sum(leaf.nbytes for leaf in moments)
    # The gradient is f32, and so are the rows as long as a step lasts.
    values = table.rows.size
    assert plan.memory["row gradient"] == values * (8 if dtype == "bf16" else 4)
    assert "its rows train by optimizer (adam)" in plan.reason
    without = make_plan(run_config(*lines), 5000, parse_devices("cpu"))
    assert without.memory["rows"] == table.rows.nbytes


@pytest.mark.parametrize("mode", ["dense", "streamed"])
def test_a_second_table_doubles_rows_and_state_and_what_is_sent_does_not_grow(mode: str) -> None:
    def plans(*lines: str) -> list[Plan]:
        return [make_plan(run_config(f"table.update={mode}", *lines), items,
                          parse_devices("v5p:4x4x4")) for items in (2**24, 2**28)]

    tied, untied = plans(), plans("table.tied=false")
    for one, two in zip(tied, untied, strict=True):
        for part in ("rows", "row optimizer", "row gradient"):
            assert two.memory[part] == 2 * one.memory[part]
        assert two.traffic > one.traffic
        assert {name: size for name, size in two.memory.items() if not name.startswith("row")} == {
            name: size for name, size in one.memory.items() if not name.startswith("row")}
    assert mode == "dense" or untied[0].communication == untied[1].communication
    assert "table.tied = true" in " ".join(nearest_fit(
        run_config("table.update=streamed", "table.tied=false"), 2**30, parse_devices("h100x8")))


def test_rows_are_cut_over_the_devices_and_nothing_sent_grows_with_them() -> None:
    settings = run_config("table.update=streamed")
    small, large = (make_plan(settings, items, parse_devices("v5p:4x4x4"))
                    for items in (2**24, 2**30))
    assert small.mesh == large.mesh == (1, 64)
    assert large.memory["rows"] == large.rows * 64 * 4 / 64
    assert small.communication == large.communication
    assert large.step_seconds > 30 * small.step_seconds


def test_a_sampled_step_costs_the_same_at_any_size() -> None:
    settings = run_config("table.update=sparse", "objective.kind=sampled_softmax")
    small, large = (make_plan(settings, items, parse_devices("h100x8")) for items in (10**6, 10**9))
    assert small.step_seconds == large.step_seconds


@pytest.mark.parametrize(("kind", "searches"), [
    ("in_batch", False), ("bce", False), ("gbce", False), ("sce", True), ("hard_negatives", True)])
def test_only_objectives_that_search_the_table_cost_more_for_a_larger_one(
        kind: str, searches: bool) -> None:
    settings = run_config("table.update=sparse", f"objective.kind={kind}")
    small, large = (make_plan(settings, items, parse_devices("h100x8")) for items in (10**6, 10**9))
    assert small.operations["softmax"] == large.operations["softmax"] > 0
    assert (large.step_seconds > small.step_seconds) is searches
    assert (large.operations["search"] > 0) is searches


def test_what_a_plan_proposes_fits() -> None:
    settings = run_config("table.dim=256", "table.update=streamed", "table.optimizer.kind=adam")
    devices = parse_devices("h100x2")
    assert not make_plan(settings, 10**9, devices).fits
    lines = nearest_fit(settings, 10**9, devices)
    assert lines
    for line in lines:
        change = line.split(": ")[0]
        if " devices of kind " in change:
            count = int(change.split()[0])
            assert make_plan(settings, 10**9, parse_devices(f"h100x{count}")).fits
        else:
            key, value = change.split(" = ")
            changed = run_config("table.dim=256", "table.update=streamed",
                                 "table.optimizer.kind=adam", f"{key}={value}")
            assert make_plan(changed, 10**9, devices).fits


def test_a_plan_that_fits_proposes_nothing() -> None:
    assert nearest_fit(run_config(), 1000, parse_devices("h100")) == []


def test_chips_are_named_by_their_key() -> None:
    assert all(name == chip.name and chip.memory > 2**33 for name, chip in CHIPS.items())


def test_masked_items_score_hidden_places_only() -> None:
    plain, masked = (make_plan(run_config("table.update=streamed", *lines), 10**6,
                               parse_devices("v5p:4x4x4"))
                     for lines in ([], ["objective.kind=masked_item", "objective.share=0.25"]))
    for name in ("softmax", "encoder"):
        share = masked.operations[name] / plain.operations[name]
        assert 0.25 < share < 0.3 if name == "softmax" else share == pytest.approx(1, rel=0.01)
    assert masked.exps < 0.3 * plain.exps and masked.needed < plain.needed


def test_a_row_in_pieces_needs_less_memory_for_its_scores() -> None:
    for kind in ("transformer", "hstu"):
        whole, pieces = (make_plan(run_config(
            "data.length=2048", f"encoder={{kind='{kind}', query_chunk={chunk}}}"), 1000,
            parse_devices("h100")).memory["activations"] for chunk in (2048, 256))
        scores = 64 * 2048 * 2 * 2048 * (4 + 2 * 4)  # a layer: rows, queries, heads, keys
        assert whole - pieces == pytest.approx(scores * (2 - 256 / 2048))


def test_tables_of_side_features_are_counted() -> None:
    plain, featured = (make_plan(run_config(line), 5000, parse_devices("cpu")) for line in (
        "seed=0", "features=[{kind='item_category', name='genre'}, {kind='time_gap'}]"))
    assert featured.needed > plain.needed
