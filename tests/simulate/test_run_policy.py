"""A run's policy is the dense softmax of its scores, whatever way its histories come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from rec_jax import JudgeConfig, LogColumns, off_policy
from rec_jax.cli.app import app
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.served import Served, load_served
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.run import Run
from rec_jax.simulate.log_files import read_log
from rec_jax.simulate.run_policy import given_histories, probabilities, user_histories

QUICK = JudgeConfig(resamples=20)


Dense = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def served(tiny_run: Path) -> Served:
    return load_served(Run(tiny_run))


@pytest.fixture(scope="module")
def dense(served: Served) -> Dense:
    """`dense(history, temperature)`: all probabilities f64 `[V]` after a history of indices."""
    length = served.config.data.length
    rows = np.asarray(served.rows, np.float64)[:served.dataset.num_items]

    @jax.jit
    def queries(items: jax.Array, segments: jax.Array) -> jax.Array:
        return encode(served.encoder, served.params, served.rows, items,
                      Inputs(segments, jnp.arange(length)[None]))

    def probabilities(history: np.ndarray, temperature: float) -> np.ndarray:
        recent = history[-length:]
        items = np.zeros((1, length), np.int32)
        items[0, :len(recent)] = recent
        segments = (np.arange(length) < len(recent)).astype(np.int32)[None]
        logits = rows @ np.asarray(queries(items, segments), np.float64)[0, len(recent) - 1]
        exps = np.exp((logits - logits.max()) / temperature)
        return np.asarray(exps / exps.sum())

    return probabilities


@pytest.fixture(scope="module")
def log(served: Served) -> pl.DataFrame:
    """Uniformly drawn items for all users of two or more, each at a time within the history."""
    random = np.random.default_rng(3)
    dataset = served.dataset
    users = [f"u{number}" for number in range(1, 40)] * 2
    index = dataset.user_index(users)
    lengths = np.diff(np.asarray(dataset.offsets))[index]
    cut = np.maximum(1, (lengths * random.random(len(users))).astype(int))
    when = [int(dataset.times[dataset.offsets[user] + place])  # type: ignore[index]
            for user, place in zip(index.tolist(), cut.tolist(), strict=True)]
    items = random.integers(0, dataset.num_items, len(users))
    ids = dataset.item_ids()
    return pl.DataFrame({
        "user_id": users, "item_id": ids.gather(items), "time": when, "cut": cut,
        "propensity": np.full(len(users), 1 / dataset.num_items),
        "reward": (random.random(len(users)) < 0.3).astype(float),
        "history": [ids.gather(dataset.history(user)[:place]).to_list()
                    for user, place in zip(index.tolist(), cut.tolist(), strict=True)]})


@pytest.mark.parametrize(("kind", "temperature"), [("whole", 1.0), ("before", 0.25),
                                                   ("given", 3.0)])
def test_probabilities_are_the_dense_softmax(served: Served, log: pl.DataFrame, dense: Dense,
                                             kind: str, temperature: float) -> None:
    dataset = served.dataset
    items = dataset.item_index(log["item_id"]).astype(np.int64)
    when = log["time"].to_numpy() if kind == "before" else None
    histories = (given_histories(dataset, log["history"]) if kind == "given"
                 else user_histories(dataset, log["user_id"], when))
    found = probabilities(served, histories, items, temperature=temperature)
    for row, user in enumerate(dataset.user_index(log["user_id"]).tolist()):
        cut = None if kind == "whole" else log["cut"][row]
        expected = dense(np.asarray(dataset.history(user))[:cut], temperature)
        np.testing.assert_allclose(found.logged[row], expected[items[row]], rtol=2e-5)
        np.testing.assert_allclose(found.supported[row], expected[np.unique(items)].sum(),
                                   rtol=2e-5)


def test_histories_as_text_are_those_of_lists(served: Served, log: pl.DataFrame) -> None:
    lists = given_histories(served.dataset, log["history"])
    for text in (log["history"].list.join(" "), log["history"].list.join("  ") + " "):
        found = given_histories(served.dataset, text)
        assert np.array_equal(found.dataset.items, lists.dataset.items)
        assert np.array_equal(found.ends, lists.ends)


def test_types_of_a_given_history_are_unknown(served: Served, log: pl.DataFrame) -> None:
    """They were those of the dataset's first interactions."""
    own = served.dataset
    typed = dataclasses.replace(own, events=np.ones(own.num_interactions, np.uint8))
    found = given_histories(typed, log["history"]).dataset
    assert found.events is not None and len(found.events) == len(found.items)
    assert not found.events.any() and found.queries is None
    assert given_histories(own, log["history"]).dataset.events is None


@pytest.mark.parametrize("kind", [pl.List(pl.Float64), pl.List(pl.Int8), pl.List(pl.String),
                                  pl.Array(pl.Float32, 2)])
def test_ids_of_a_log_are_those_of_the_dataset(kind: pl.DataType, tmp_path: Path) -> None:
    """Pandas keeps whole numbers with gaps as floats: 7.0 is the item "7"."""
    (tmp_path / "log.csv").write_text("user,item\n1,7\n1,9\n1,8\n")
    dataset = Dataset.open(prepare(PrepareConfig(
        str(tmp_path / "log.csv"), str(tmp_path / "d"), columns=Columns("user", "item"))).out)
    found = given_histories(dataset, pl.Series([[7, 9], None, [9, 5]]).cast(kind))
    assert [dataset.item_ids()[int(item)] for item in found.dataset.items] == ["7", "9", "9"]
    assert (found.ends.tolist(), found.unknown) == ([2, 2, 3], 1)
    log = read_log({"reward": [1, 1], "propensity": [1, 1], "i": [7.0, None], "u": [1.0, 2.0]},
                   LogColumns(item="i", user="u"))
    assert (log.ids("item").to_list(), log.ids("user").to_list()) == (["7", None], ["1", "2"])
    half = read_log({"reward": [1], "propensity": [1], "i": [7.5]}, LogColumns(item="i"))
    with pytest.raises(InputError, match="item ids are fractions"):
        half.ids("item")


def test_the_estimate_is_that_of_the_dense_probabilities(
        served: Served, log: pl.DataFrame, dense: Dense, tiny_run: Path, tmp_path: Path) -> None:
    dataset = served.dataset
    chance = [dense(np.asarray(dataset.history(int(user)))[:cut], 2.0)[item]
              for user, cut, item in zip(dataset.user_index(log["user_id"]), log["cut"],
                                         dataset.item_index(log["item_id"]), strict=True)]
    value = float(np.mean(np.array(chance) * dataset.num_items * log["reward"].to_numpy()))
    log.drop("history").write_csv(tmp_path / "log.csv")
    log.write_parquet(tmp_path / "log.parquet")
    by_time = off_policy(tmp_path / "log.csv", LogColumns(time="time"), run=tiny_run,
                         temperature=2.0, settings=QUICK)
    by_list = off_policy(tmp_path / "log.parquet", LogColumns(history="history"), run=tiny_run,
                         temperature=2.0, settings=QUICK)
    for found in (by_time, by_list):
        assert found["estimates"]["ips"]["value"] == pytest.approx(value, rel=1e-4)
        assert found["rows"] == log.height and found["left_out"] == 0
        assert found["temperature"] == 2.0 and found["step"] == served.step
        assert found["items_shown"] == log["item_id"].n_unique()
        assert 0 < found["probability_of_items_shown"] <= 1


def test_what_is_unknown_is_counted_and_said(log: pl.DataFrame, tiny_run: Path) -> None:
    odd = log.with_row_index().with_columns(
        item_id=pl.when(pl.col("index") < 3).then(pl.lit("new")).otherwise("item_id"),
        user_id=pl.when(pl.col("index").is_between(5, 8)).then(pl.lit("nobody"))
        .otherwise("user_id"))
    found = off_policy(odd, run=tiny_run, settings=QUICK)
    assert (found["unknown_items"], found["left_out"]) == (3, 4)
    assert found["rows"] == log.height - 4
    assert found["notes"][:2] == [
        "3 rows show items that the catalogue lacks: the run never takes them",
        "4 rows are left out, which have no history to read (4 of users that the dataset lacks)"]
    assert found["support"]["never_taken"] == pytest.approx(3 / (log.height - 4))
    # An unknown item has probability 0, so its row counts, and counts nothing.
    without = off_policy(odd.filter(pl.col("item_id") != "new"), run=tiny_run, settings=QUICK)
    assert found["estimates"]["ips"]["value"] == pytest.approx(
        without["estimates"]["ips"]["value"] * (log.height - 7) / (log.height - 4))
    with pytest.raises(InputError, match=r"none of the .* rows has a history"):
        off_policy(odd.with_columns(user_id=pl.lit("nobody")), run=tiny_run)


def test_groups_of_rows_that_are_left_out_do_not_count(log: pl.DataFrame, tiny_run: Path) -> None:
    odd = log.with_row_index().with_columns(
        user_id=pl.when(pl.col("index") % 39 < 5).then(pl.lit("nobody")).otherwise("user_id"),
        slate=pl.col("index") % 39)
    found = off_policy(odd, LogColumns(group="slate"), run=tiny_run, settings=QUICK)
    assert found["groups"] == 34 and found["rows"] == 68
    assert found["bounds"]["hoeffding"] is not None


def test_the_verb_evaluates_a_run(log: pl.DataFrame, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log.drop("history").write_csv(path)
    asked = ["ope", str(path), "--run", str(tiny_run), "--time", "time", "--temperature", "2"]
    told = CliRunner().invoke(app, [*asked, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    expected = off_policy(path, LogColumns(time="time"), run=tiny_run, temperature=2.0)
    assert found["estimates"]["ips"]["value"] == expected["estimates"]["ips"]["value"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "items that the log shows" in shown.stdout and "temperature" in shown.stdout
    assert "may take seen items again" in shown.stderr
    told = CliRunner().invoke(app, [*asked, "--temperature", "0"])
    assert "--temperature is 0" in str(told.exception)


def test_unknown_items_of_histories_are_passed_over(served: Served, log: pl.DataFrame,
                                                    tiny_run: Path) -> None:
    more = log.with_columns(history=pl.col("history").list.concat(pl.lit(["new"])))
    found = off_policy(more, LogColumns(history="history"), run=tiny_run, settings=QUICK)
    plain = off_policy(log, LogColumns(history="history"), run=tiny_run, settings=QUICK)
    assert found["unknown_history_items"] == log.height
    assert found["estimates"] == plain["estimates"]
    nothing = given_histories(served.dataset, pl.Series(["", "new", None, "0001 new"]))
    assert nothing.readable.tolist() == [False, False, False, True] and nothing.unknown == 2
    assert not given_histories(served.dataset, pl.Series(["", None], dtype=pl.String)
                               ).readable.any()


def test_cold_items_are_never_taken_where_they_do_not_compete(served: Served,
                                                              log: pl.DataFrame) -> None:
    popularity = served.dataset.popularity()
    cold = popularity <= np.sort(popularity)[12]
    dataset = dataclasses.replace(served.dataset)
    vars(dataset)["popularity"] = lambda: np.where(cold, 0, popularity)
    strict = dataclasses.replace(served, dataset=dataset, config=dataclasses.replace(
        served.config, evaluate=dataclasses.replace(served.config.evaluate, filter_cold=True)))
    items = dataset.item_index(log["item_id"]).astype(np.int64)
    histories = given_histories(dataset, log["history"])
    free = probabilities(served, histories, items)
    found = probabilities(strict, histories, items)
    assert np.all(found.logged[cold[items]] == 0) and cold[items].any()
    assert np.all(found.logged[~cold[items]] > free.logged[~cold[items]])


def test_the_objectives_scale_is_part_of_the_policy(served: Served, log: pl.DataFrame) -> None:
    scaled = dataclasses.replace(served, config=dataclasses.replace(
        served.config, objective=dataclasses.replace(
            served.config.objective, scale=4.0)))  # type: ignore[call-arg]
    items = served.dataset.item_index(log["item_id"]).astype(np.int64)
    histories = given_histories(served.dataset, log["history"])
    np.testing.assert_allclose(
        probabilities(scaled, histories, items, temperature=2.0).logged,
        probabilities(served, histories, items, temperature=0.5).logged, rtol=1e-5)


def test_what_a_run_cannot_do_is_one_line(served: Served, log: pl.DataFrame,
                                          tiny_run: Path) -> None:
    for columns, said in (
            (LogColumns(probability="propensity"), "a run's probabilities are computed"),
            (LogColumns(history="history", user="user_id"), "histories and users"),
            (LogColumns(item="article"), "no column 'article'"),
            (LogColumns(history="cut"), "none of the 78 rows has a history"),
            (LogColumns(history="reward"), "history is a column of Float64")):
        with pytest.raises(InputError, match=said):
            off_policy(log, columns, run=tiny_run)
    with pytest.raises(InputError, match="temperature is 0; expected more than 0"):
        off_policy(log, run=tiny_run, temperature=0)
    with pytest.raises(InputError, match="has no times"):
        user_histories(dataclasses.replace(served.dataset, times=None), log["user_id"],
                       log["time"].to_numpy())
