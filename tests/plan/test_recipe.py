"""The recipe: a whole config from a dataset's statistics, whatever these are."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, one_object, refused

from rec_jax import api, config
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.plan.recipe import RULES, Machine, Recipe, recipe_of, to_toml
from rec_jax.plan.statistics import LENGTH_QUANTILES, Statistics, statistics_of
from rec_jax.plan.suggest import suggest
from rec_jax.run import RunConfig, modes_of, update_of
from rec_jax.train.build import steps_of

LAPTOP = Machine(24 * 2**30, 120e9)
ML1M = Statistics(6040, 3416, 987_531, 981_491, (94, 205, 398, 554, 904), 6040, 0.0)
SPARSE = dataclasses.replace(ML1M, users=22_363, items=12_101, interactions=153_776,
                             targets=131_413, lengths=(4, 7, 12, 19, 41), validated=22_363)


def settings(found: Statistics, machine: Machine = LAPTOP) -> RunConfig:
    return recipe_of(found, machine, "d").config()


def test_statistics_are_those_of_the_training_part(tiny_dataset: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    found = statistics_of(dataset)
    histories = [dataset.items[dataset.offsets[user]:dataset.train_end[user]]
                 for user in range(dataset.num_users)]
    lengths = [len(one) for one in histories if len(one)]
    users, targets, ends = dataset.targets("valid")
    seen = [target in dataset.items[dataset.offsets[user]:end]
            for user, target, end in zip(users, targets, ends, strict=True)]
    assert found == Statistics(
        users=dataset.num_users, items=dataset.num_items, interactions=sum(lengths),
        targets=sum(length - 1 for length in lengths),
        lengths=tuple(np.quantile(lengths, LENGTH_QUANTILES)), validated=len(users),
        repeats=float(np.mean(seen)))


def test_statistics_do_not_see_the_test_part(tiny_dataset: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    items = np.array(dataset.items)
    for start, stop in zip(dataset.valid_end, dataset.offsets[1:], strict=True):
        items[start:stop] = 0
    assert statistics_of(dataclasses.replace(dataset, items=items)) == statistics_of(dataset)


def test_every_recipe_is_a_config_that_its_toml_gives_back(tmp_path: Path) -> None:
    random = np.random.default_rng()
    for _ in range(60):
        items, users = (int(10 ** random.uniform(0.5, 8)) for _ in range(2))
        targets = int(10 ** random.uniform(0, 9))
        found = Statistics(
            users, items, targets + users, targets,
            tuple(np.sort(10 ** random.uniform(0, 4, len(LENGTH_QUANTILES)))),
            int(random.integers(10, users + 11)), float(random.uniform()))
        made = recipe_of(found, Machine(10 ** random.uniform(8, 12), 10 ** random.uniform(9, 15)),
                         'a "dataset"\n# [x]')
        text = to_toml(made)
        (tmp_path / "c.toml").write_text(text)
        assert config.load(RunConfig, tmp_path / "c.toml") == made.config(), found
        assert tomllib.loads(text) == made.mapping()
        keys = [one.key for one in made.settings]
        assert len(set(keys)) == len(keys)
        assert all(one.reason and one.reason.isprintable() for one in made.settings)
        lines = text.splitlines()
        for one in made.settings:
            assert f"# {one.reason}" in lines
        update = update_of(made.config(), items)
        modes_of(made.config(), update.mode)
        # What an average of all rows would refuse, the recipe does not ask for.
        assert made.config().train.ema is None or update.mode == "dense", found


@pytest.mark.parametrize(("change", "key", "expected"), [
    ({}, "data.length", 200),
    ({"lengths": (1, 1, 2, 3, 9)}, "data.length", 50),
    ({"lengths": (9, 20, 40, 101, 900)}, "data.length", 150),
    ({}, "encoder.dropout", 0.3),
    ({"interactions": 16 * 3416}, "encoder.dropout", 0.5),
    ({"interactions": 10**8}, "encoder.dropout", 0.2),
    ({}, "objective.label_smoothing", 0.0),
    ({"interactions": 15 * 3416}, "objective.label_smoothing", 0.1),
    ({"repeats": 0.004}, "evaluate.filter_seen", True),
    ({"repeats": 0.006}, "evaluate.filter_seen", False),
    ({"interactions": 2 * 10**7}, "table.dim", 128),
    ({"validated": 30_000}, "evaluate.users", 20_000),
])
def test_a_setting_follows_from_its_statistic(change: dict[str, Any], key: str,
                                              expected: Any) -> None:
    made = recipe_of(dataclasses.replace(ML1M, **change), LAPTOP, "d")
    assert {one.key: one.value for one in made.settings}[key] == expected


def test_steps_of_an_epoch_and_between_validations_stay_in_their_bounds() -> None:
    for targets in (1, 100, 10**4, 10**6, 10**8, 10**9):
        made = settings(dataclasses.replace(ML1M, targets=targets, interactions=targets + 6040))
        positions = made.train.rows * made.data.length
        steps = targets / positions
        assert 900 <= positions <= 16_500
        assert 250 <= made.train.evaluate_every * steps <= 16_384
        assert made.train.epochs >= 20 * made.train.evaluate_every  # so patience can end a run
        assert made.optimizer.schedule == "constant" and made.train.patience


def test_a_small_dataset_is_validated_after_as_many_steps_as_a_large_one(
        tiny_dataset: Path) -> None:
    """An epoch of it is a part of a step, which has more rows than there are."""
    small = suggest(tiny_dataset).config()
    stream = BatchStream(Dataset.open(tiny_dataset), length=small.data.length,
                         rows=small.train.rows, window=small.data.window)
    horizon = steps_of(small, stream.rows_per_epoch)
    assert horizon.per_epoch < 1 and 256 <= horizon.validate_every <= 400
    assert horizon.total >= 20 * horizon.validate_every
    assert small.train.ema == pytest.approx(1 - 1 / horizon.validate_every, abs=1e-2)


def test_the_loss_is_exact_where_it_can_be_paid_for() -> None:
    million = dataclasses.replace(SPARSE, items=10**6)
    assert settings(million).objective.kind == "next_item"
    assert settings(million).train.ema is None  # streamed
    assert settings(dataclasses.replace(million, targets=10**8)
                    ).objective.kind == "sampled_softmax"  # 2 cores
    chip = Machine(80e9, 67e12)
    assert settings(dataclasses.replace(million, targets=10**8), chip).objective.kind == "next_item"
    huge = settings(dataclasses.replace(million, items=10**9), chip)
    assert (huge.objective.kind, update_of(huge, 10**9).mode) == ("sampled_softmax", "sparse")


@pytest.mark.parametrize("change", [{"items": 1}, {"targets": 0}, {"validated": 9}])
def test_a_dataset_that_is_too_small_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"d (has|validates) .*; expected at least"):
        settings(dataclasses.replace(ML1M, **change))


def test_suggest_prints_what_train_uses(
        rec_jax: Command, tiny_dataset: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "config.toml"
    shown = rec_jax("config", "suggest", str(tiny_dataset))
    written = one_object(rec_jax("config", "suggest", str(tiny_dataset), "--out", str(out),
                                 "--json"))
    assert out.read_text() == written["text"] == shown.out
    assert "exists" in refused(rec_jax("config", "suggest", str(tiny_dataset), "--out", str(out)))
    trained = []

    def run_training(run: Any, resolved: RunConfig, *rest: Any, **named: Any) -> dict[str, Any]:
        trained.append(resolved)
        run.create(resolved)
        return {}

    monkeypatch.setattr(api, "run_training", run_training)
    monkeypatch.setattr(api, "write_report", lambda *_: None)
    api.train(data=tiny_dataset, run=tmp_path / "a", progress=True)
    assert "rec-jax config suggest" in capsys.readouterr().err
    api.train(data=tiny_dataset, run=tmp_path / "b", overrides=["train.rows=3", "seed=5"])
    plain, changed = trained
    assert plain == config.load(RunConfig, out)
    assert plain == config.load(RunConfig, tmp_path / "a" / "config.toml")
    assert changed == dataclasses.replace(
        plain, seed=5, train=dataclasses.replace(plain.train, rows=3))
    with pytest.raises(InputError, match=r"train\.rowz|rowz"):
        api.train(data=tiny_dataset, run=tmp_path / "c", overrides=["train.rowz=3"])
    for given in ({"config": out}, {"resume": tmp_path / "a"}):
        with pytest.raises(InputError, match="data is the dataset of a run without a config"):
            api.train(data=tiny_dataset, **given)
    with pytest.raises(InputError, match="is not a dataset folder"):
        api.train(data=tmp_path)


def test_another_rule_makes_another_recipe() -> None:
    made: Recipe = recipe_of(ML1M, LAPTOP, "d", dataclasses.replace(RULES, dropout_fall=0.0))
    assert made.config().encoder.dropout == RULES.dropout
