"""Generated sessions: reproducible however they are cut, and worth learning from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax.data import synth as synth_module
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.data.synth import SynthConfig, interactions, synth
from rec_jax.errors import InputError

SMALL = SynthConfig(users=400, items=300, mean_length=30, seed=3)


def rows(files: tuple[str, ...]) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in files]).sort("user_id", "timestamp")


def test_rows_do_not_depend_on_blocks_or_slices(tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synth(SMALL, tmp_path / "whole.parquet")
    sliced = synth(SynthConfig(**{**vars(SMALL), "slices": 5}), tmp_path / "sliced")
    monkeypatch.setattr(synth_module, "_BLOCK_ROWS", 500)
    cut = synth(SMALL, tmp_path / "cut.parquet")
    assert rows(whole.files).equals(rows(cut.files))
    assert rows(whole.files).equals(rows(sliced.files))
    assert whole.interactions == cut.interactions == sliced.interactions == rows(cut.files).height


def test_slices_are_in_order_of_time(tmp_path: Path) -> None:
    files = synth(SynthConfig(users=300, slices=4), tmp_path / "log").files
    times = [pl.read_parquet(file)["timestamp"] for file in files]
    assert all(len(part) for part in times)
    for before, after in itertools.pairwise(times):
        assert before.max() < after.min()  # type: ignore[operator]


def test_another_seed_gives_other_rows() -> None:
    first, second = (interactions(SynthConfig(users=50, seed=seed), 0, 50) for seed in (0, 1))
    assert first["item"].shape != second["item"].shape or (first["item"] != second["item"]).any()


def test_lengths_items_and_times_keep_their_bounds() -> None:
    config = SynthConfig(users=3_000, items=500, mean_length=20, min_length=4, max_length=90)
    made = interactions(config, 0, 3_000)
    lengths = np.bincount(made["user"], minlength=3_000)
    assert lengths.min() == 4
    assert lengths.max() == 90
    assert 18 < lengths.mean() < 22
    assert made["item"].min() >= 0
    assert made["item"].max() < 500
    same_user = np.diff(made["user"]) == 0
    assert (np.diff(made["time"])[same_user] > 0).all()


@pytest.mark.parametrize("items", [1, 7, 50, 101, 1_000])
def test_any_number_of_items_is_possible(items: int) -> None:
    made = interactions(SynthConfig(users=200, items=items), 0, 200)
    assert set(np.unique(made["item"])) <= set(range(items))
    assert len(np.unique(made["item"])) > 0.8 * items


def test_a_billion_items_and_users_cost_no_more_than_their_rows() -> None:
    config = SynthConfig(users=10**9, items=10**9)
    made = interactions(config, 10**9 - 50, 10**9)
    assert made["user"].min() == 10**9 - 50
    assert made["item"].max() < 10**9
    assert len(np.unique(made["item"])) > 500


def test_popularity_falls_like_a_power_law() -> None:
    made = interactions(SynthConfig(users=4_000, items=2_000), 0, 4_000)
    counts = np.sort(np.bincount(made["item"], minlength=2_000))[::-1]
    assert counts[:200].sum() > 0.4 * counts.sum()
    assert counts[0] > 20 * np.median(counts)
    ids = np.argsort(-np.bincount(made["item"], minlength=2_000))[:200]
    assert abs(ids.mean() - 1_000) < 150  # an id says nothing about popularity


def test_the_order_of_items_says_much_more_than_popularity(tmp_path: Path) -> None:
    """Next item by first-order counts of the first half against the second half's truth."""
    made = interactions(SynthConfig(users=4_000, items=500), 0, 4_000)
    here, following = made["item"][:-1], made["item"][1:]
    pairs = np.diff(made["user"]) == 0
    train = pairs & (made["user"][:-1] < 2_000)
    test = pairs & (made["user"][:-1] >= 2_000)
    counts = np.zeros((500, 500))
    np.add.at(counts, (here[train], following[train]), 1)
    popular = np.argsort(-counts.sum(0))[:10]
    by_popularity = np.isin(following[test], popular).mean()
    likely = np.argsort(-counts, axis=1)[:, :10]
    by_order = (likely[here[test]] == following[test][:, None]).any(1).mean()
    assert by_order > 0.5
    assert by_order > 3 * by_popularity


def test_interests_drift() -> None:
    """Two sessions in a row share their cluster far more often than distant ones."""
    config = SynthConfig(users=500, items=2_000, mean_length=200, noise=0, clusters=40)
    users = np.repeat(np.arange(500), 30)
    sessions = np.tile(np.arange(30), 500)
    clusters = synth_module._interest(config, users, sessions).reshape(500, 30)
    near = (clusters[:, 1:] == clusters[:, :-1]).mean()
    far = (clusters[:, 25:] == clusters[:, :5]).mean()
    assert near > 0.3
    assert near > 3 * far


@pytest.mark.parametrize(("settings", "message"), [
    ({"users": 0}, r"synth\.users is 0"), ({"mean_length": 2}, "expected min <= mean <= max"),
    ({"follow": 1.5}, "follow and noise 0 to 1"), ({"clusters": 9_999}, "1 to `items` clusters")])
def test_impossible_settings_are_named(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SynthConfig(**settings)


def test_nothing_is_overwritten_and_nothing_left_half_written(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_text("")
    with pytest.raises(InputError, match="there exists"):
        synth(SMALL, tmp_path / "there")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synth_module, "_write_block", fail)
    with pytest.raises(OSError, match="disk full"):
        synth(SMALL, tmp_path / "new.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_generated_can_be_prepared(tmp_path: Path) -> None:
    made = synth(SynthConfig(users=200, slices=3), tmp_path / "log")
    report = prepare(PrepareConfig(source=made.files, out=str(tmp_path / "dataset"),
                                   columns=Columns(time="timestamp")))
    assert (report.users, report.interactions) == (200, made.interactions)
    assert report.test_users == 200
