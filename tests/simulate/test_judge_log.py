"""From a log's file to the judgement, and wrong logs, each of which is one line."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from simulated_logs import World, draw
from typer.testing import CliRunner

from rec_jax import JudgeConfig, LogColumns, off_policy
from rec_jax.cli.app import app
from rec_jax.errors import InputError
from rec_jax.simulate.feedback import Feedback
from rec_jax.simulate.judge import judge
from rec_jax.simulate.off_policy import estimators

MODEL = LogColumns(expected_logged="q", expected_policy="q_policy")


def frame_of(feedback: Feedback) -> pl.DataFrame:
    return pl.DataFrame({
        "reward": feedback.reward, "propensity": feedback.propensity,
        "probability": feedback.probability, "q": feedback.expected_logged,
        "q_policy": feedback.expected_policy})


@pytest.fixture(scope="module")
def feedback() -> Feedback:
    return World.log(np.random.default_rng(1), 300)


Write = Callable[[pl.DataFrame, Path], None]


def write_gzip(frame: pl.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(frame.write_csv().encode()))


def write_parts(frame: pl.DataFrame, path: Path) -> None:
    path.mkdir()
    frame[:100].write_csv(path / "part-2.csv")
    frame[100:].write_csv(path / "part-10.csv")


@pytest.mark.parametrize(("name", "write"), [
    ("log.csv", pl.DataFrame.write_csv), ("log.parquet", pl.DataFrame.write_parquet),
    ("log.csv.gz", write_gzip), ("parts", write_parts),
    ("log.tsv", lambda frame, path: frame.write_csv(path, separator="\t"))])
def test_every_kind_of_file_gives_what_the_columns_give(
        name: str, write: Write, feedback: Feedback, tmp_path: Path) -> None:
    write(frame_of(feedback), tmp_path / name)
    settings = JudgeConfig(resamples=50)
    found = off_policy(tmp_path / name, MODEL, settings=settings)
    expected = judge(feedback, settings)
    assert {key: found[key] for key in expected} == expected
    assert len(found["log_hash"]) == 64
    memory = off_policy(frame_of(feedback), MODEL, settings=settings)
    assert memory["estimates"] == expected["estimates"] and memory["log_hash"] is None


def test_a_judgement_is_made_of_the_parts(feedback: Feedback) -> None:
    found = judge(feedback, JudgeConfig(cap=2.0, switch=1.5, shrinkage=4, resamples=100))
    parts = estimators(feedback, cap=2.0, switch=1.5, shrinkage=4)
    mean = feedback.reward.mean()
    assert list(found["estimates"]) == ["logged", *parts]
    assert found["estimates"]["logged"]["value"] == pytest.approx(mean)
    for name, part in parts.items():
        one = found["estimates"][name]
        assert one["value"] == pytest.approx(part.value)
        assert one["relative"] == pytest.approx(part.value / mean)
        assert one["gain"] == pytest.approx(part.value - mean)
        assert one["bootstrap"][0] < one["value"] < one["bootstrap"][1]
        assert one["gain_bootstrap"][0] < one["gain"] < one["gain_bootstrap"][1]
    assert found["bounds"]["cap"] == 2.0 and found["settings"]["cap"] == 2.0
    assert judge(feedback)["bounds"]["cap"] == math.sqrt(300)
    assert judge(feedback, JudgeConfig(cap=2.0, bound_cap=5.0))["bounds"]["cap"] == 5.0


def test_the_gain_over_the_same_policy_is_nothing() -> None:
    log = draw(4, rows=200)
    found = judge(log._replace(policy=log.behaviour).feedback(), JudgeConfig(resamples=50))
    assert found["estimates"]["ips"]["gain_bootstrap"] == pytest.approx([0, 0], abs=1e-12)


def test_bounds_need_a_range_of_rewards() -> None:
    feedback = draw(5).feedback()
    found = judge(feedback)
    assert found["bounds"] == {}
    assert any("no bounds for any sample: rewards are" in note for note in found["notes"])
    found = judge(feedback, JudgeConfig(reward_low=-20, reward_high=20))
    low, high = found["bounds"]["empirical_bernstein"]
    assert -20 <= low < high <= 20
    with pytest.raises(InputError, match="expected none outside of reward_low = 0"):
        judge(feedback, JudgeConfig(reward_low=0, reward_high=1))


def test_groups_widen_intervals_and_are_counted(feedback: Feedback) -> None:
    often = pl.concat([frame_of(feedback)] * 4).with_columns(
        user=pl.Series([f"u{row}" for row in range(300)] * 4))
    settings = JudgeConfig(resamples=200)
    alone = off_policy(frame_of(feedback), settings=settings)
    grouped = off_policy(often, LogColumns(group="user"), settings=settings)
    wrong = off_policy(often, settings=settings)
    assert grouped["groups"] == 300 and grouped["rows"] == 1200

    def width(found: dict[str, Any], kind: str) -> float:
        low, high = found["estimates"]["ips"][kind]
        return float(high - low)

    assert width(grouped, "normal") == pytest.approx(width(alone, "normal"))
    assert width(grouped, "bootstrap") == pytest.approx(width(alone, "bootstrap"), rel=0.25)
    assert width(wrong, "normal") < 0.6 * width(alone, "normal")
    assert grouped["bounds"]["hoeffding"] == pytest.approx(alone["bounds"]["hoeffding"])


HEAD = "reward,propensity,probability"


@pytest.mark.parametrize(("rows", "said"), [
    ("1,0.5,0.5\n0,0,0.5", "log.csv line 3: propensity is 0; expected more than 0 and at most 1"),
    ("1,0.5,0.5\n\n0,1.2,0.5", "log.csv line 4: propensity is 1.2; expected more than 0"),
    ("1,-0.5,0.5\n0,-0.1,0.5", "log.csv line 2: propensity is -0.5; expected more than 0 and at "
                               "most 1 (and 1 more)"),
    ("1,nan,0.5", "log.csv line 2: propensity is nan; expected a finite number"),
    ("1,0.5,NaN", "log.csv line 2: probability is nan; expected a finite number"),
    ("1,0.5,-0.5", "log.csv line 2: probability is -0.5; expected 0 to 1"),
    ("1,0.5,0.5\n,0.5,0.5", "log.csv line 3: reward is missing; expected a number"),
    ("1,0.5,0.5\nmuch,0.5,0.5", "log.csv line 3: reward is 'much'; expected a number"),
    ("1,0.5", "log.csv line 2: probability is missing; expected a number"),
    ("1,1e-300,0.5", "log.csv line 2: propensity is 1e-300; expected more, as probability / prop"),
    ("1,5e-324,1", "log.csv line 2: propensity is 4.94066e-324; expected more"),
    ("0,1,1\n-1e99,1,1", "log.csv line 3: reward is -1e+99; expected at most 1e+60 in size"),
    ("1,0.5,0.5,7", "log.csv line 2: too many fields"),
    ("", "log.csv has no rows; expected at least one"),
])
def test_a_wrong_row_is_one_line(rows: str, said: str, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(f"{HEAD}\n{rows}\n")
    with pytest.raises(InputError) as caught:
        off_policy("log.csv")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_row_of_several_files_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEAD}\n1,0.5,0.5\n")
    (tmp_path / "b.csv").write_text(f"{HEAD}\n1,0.5,0.5\n1,2,0.5\n")
    with pytest.raises(InputError, match=r"^b\.csv line 3: propensity is 2"):
        off_policy(tmp_path)


def test_wrong_columns_are_named(tmp_path: Path, feedback: Feedback) -> None:
    with pytest.raises(InputError, match=r"no column 'rewart'.*did you mean 'reward'"):
        off_policy(frame_of(feedback), LogColumns(reward="rewart"))
    with pytest.raises(InputError, match="no column 'probability'"):
        off_policy(frame_of(feedback).drop("probability"))
    with pytest.raises(InputError, match="does not exist"):
        off_policy(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="without expected_policy"):
        off_policy(frame_of(feedback), LogColumns(expected_logged="q"))
    with pytest.raises(InputError, match="belong to a run's policy"):
        off_policy(frame_of(feedback), LogColumns(history="q"))
    with pytest.raises(InputError, match="group is missing"):
        off_policy({"reward": [1], "propensity": [1], "probability": [1], "user": [None]},
                   LogColumns(group="user"))
    with pytest.raises(InputError, match=r"reward is a column of List.*; expected numbers"):
        off_policy({"reward": [[1]], "propensity": [1], "probability": [1]})


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ope", *map(str, arguments)])


def test_the_verb_prints_a_table_or_one_object(tmp_path: Path, feedback: Feedback) -> None:
    path = tmp_path / "log.csv"
    frame_of(feedback).with_columns(place=pl.Series([1, 2, 3] * 100)).write_csv(path)
    asked = (path, "--expected-logged", "q", "--expected-policy", "q_policy", "--position",
             "place", "--resamples", 50)
    told = invoke(*asked, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["log"] == str(path) and found["rows"] == 300
    assert [row["position"] for row in found["positions"]] == [1, 2, 3]
    shown = invoke(*asked)
    assert shown.exit_code == 0, shown.output
    for name in ("logged", "ips", "snips", "dm", "dr", "sndr", "switch_dr", "dros"):
        assert name in shown.stdout
    assert f"{found['estimates']['ips']['value']:.4g}" in shown.stdout
    assert "effective sample" in shown.stdout and "empirical Bernstein" in shown.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (("--confidence", 1), "--confidence is 1.0; expected more than 0 and less than 1"),
    (("--resamples", 1), "--resamples is 1; expected at least 2"),
    (("--cap", 0), "--cap is 0.0; expected more than 0"),
    (("--reward-low", 0), "--reward-low and --reward-high belong together"),
    (("--reward-low", 2, "--reward-high", 1), "expected the lower one first"),
    (("--time", "q"), "expected --run"),
    (("--item", "q"), "columns of items, users, histories and times belong to a run's policy"),
    (("--temperature", 2), "--temperature, --step and --data are of a run's policy"),
    (("--step", 3), "are of a run's policy; expected --run"),
    (("--propensity", "nothing"), "no column 'nothing'"),
])
def test_wrong_options_are_named(arguments: tuple[object, ...], said: str, tmp_path: Path,
                                 feedback: Feedback) -> None:
    frame_of(feedback).write_csv(tmp_path / "log.csv")
    told = invoke(tmp_path / "log.csv", *arguments)
    assert isinstance(told.exception, InputError) and said in str(told.exception)
