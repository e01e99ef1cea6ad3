"""A log of repeat consumption, with ids that hold commas and blanks, through the verbs."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rec_jax import api, config
from rec_jax.cli.app import app
from rec_jax.config import to_mapping
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import InputError
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.loop import run_training
from rec_jax.train.resume import _check

ITEMS = ["i0", "i1", "i2", "a", "b", "c", "head, large", " lead"]
DAY = 86_400


class Heard(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def write_log(path: Path) -> None:
    """u0 meets all items and then "a" twice more; the others "a", "b", "c" and "a" twice more."""
    with path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["user_id", "item_id", "time"])
        for user in range(12):
            items = [*ITEMS, "a", "a"] if user == 0 else [f"i{user % 3}", "a", "b", "c", "a", "a"]
            log.writerows([f"u{user}", item, DAY * day] for day, item in enumerate(items))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder of a run whose model reads times, its summary, and what training said."""
    folder = tmp_path_factory.mktemp("repeats")
    write_log(folder / "log.csv")
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                          columns=Columns(time="time")))
    settings = config.build(RunConfig, {
        "data": {"path": str(folder / "made"), "length": 8}, "table": {"dim": 8},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 1},
        "features": [{"kind": "time_gap"}], "train": {"rows": 2, "steps": 2}})
    heard = Heard()
    summary = run_training(Run(folder / "run"), settings, heard)
    return folder / "run", summary, heard.lines


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any], list[str]]) -> Path:
    return trained[0]


def recommend(run: Path, *arguments: object) -> Any:
    return CliRunner().invoke(app, ["recommend", str(run), *map(str, arguments), "--json"])


def items(result: Any) -> list[str]:
    assert result.exit_code == 0, result.output + str(result.exception)
    return [entry["item"] for entry in json.loads(result.stdout)["recommendations"]]


def test_training_says_what_becomes_of_repeats_and_stamps_its_metric(trained: Any) -> None:
    _, summary, lines = trained
    (line,) = [line for line in lines if "repeat" in line]
    assert line.startswith("100.0% of validation and 100.0% of test targets repeat an item")
    assert "evaluate.seen_targets = miss: each is a miss" in line
    assert summary["best"] == 0.0
    assert summary["protocol"]["seen_targets"] == "miss"
    assert summary["protocol"]["users_missed_seen"] == summary["protocol"]["users"] == 12


def test_a_target_that_no_list_holds_is_no_hit(run: Path) -> None:
    found = api.evaluate(run, baseline=True)
    for metrics in (found["metrics"], found["popularity_baseline"]):
        assert {metrics[name] for name in ("hr@5", "ndcg@10", "mrr@20", "mrr")} == {0.0}
    assert found["protocol"]["users_missed_seen"] == found["protocol"]["users"] == 12
    kept = api.evaluate(run, filter_seen=False)
    assert kept["metrics"]["hr@20"] == 1.0  # of eight items
    assert kept["protocol"]["seen_targets"] == "kept" and not kept["protocol"]["users_missed_seen"]


def test_everybody_left_out_is_one_line(run: Path) -> None:
    with pytest.raises(InputError, match="of 12 users 12 are left out"):
        api.evaluate(run, seen_targets="leave_out")
    with pytest.raises(InputError, match="expected one of 'miss', 'leave_out'"):
        api.evaluate(run, seen_targets="drop")
    ended = CliRunner().invoke(app, ["evaluate", str(run), "--seen-targets", "leave_out"])
    assert isinstance(ended.exception, InputError)


def test_people_read_how_many_are_misses(run: Path) -> None:
    ended = CliRunner().invoke(app, ["evaluate", str(run)])
    assert "12 users want a seen item, which is a miss" in " ".join(ended.stdout.split())


def test_who_has_seen_everything_gets_nothing_and_reads_why(run: Path) -> None:
    ended = recommend(run, "--user", "u0", "--k", 5)
    assert items(ended) == []
    (line,) = ended.stderr.splitlines()
    assert line.startswith("0 instead of 5 items: the catalogue has 8, of which 8 are in the hist")
    assert len(items(recommend(run, "--user", "u0", "--k", 5, "--keep-seen"))) == 5
    assert api.recommend(run, user="u0") == []


def test_k_may_be_larger_than_the_catalogue(run: Path) -> None:
    ended = recommend(run, "--user", "u1")  # ten, of eight of which four are seen
    assert sorted(items(ended)) == sorted(set(ITEMS) - {"i1", "a", "b", "c"})
    assert "4 instead of 10 items" in ended.stderr
    assert len(api.recommend(run, user="u1", k=1000, filter_seen=False)) == 8
    assert recommend(run, "--user", "u1", "--k", 4).stderr == ""


def test_the_runs_protocol_decides_unless_somebody_asks(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "checkpoints").symlink_to(run / "checkpoints")
    text = (run / "config.toml").read_text()
    assert "filter_seen = true" in text
    (kept / "config.toml").write_text(text.replace("filter_seen = true", "filter_seen = false"))
    assert len(items(recommend(kept, "--user", "u0", "--k", 8))) == 8
    assert items(recommend(kept, "--user", "u0", "--k", 8, "--filter-seen")) == []


@pytest.mark.parametrize("given", [
    ["--history", "head, large", "--history", " lead"],
    ["--history", '"head, large", " lead"'],
    ["--history", "head, large, lead"],
])
def test_any_id_can_be_asked_for(run: Path, given: list[str]) -> None:
    asked = ["head, large", " lead"]
    expected = [entry.item for entry in api.recommend(run, history=asked, times=[0, 60], k=4)]
    assert items(recommend(run, *given, "--times", "0,60", "--k", 4)) == expected
    assert not set(asked) & set(expected)


def test_ids_and_times_come_from_files_as_well(run: Path, tmp_path: Path) -> None:
    ids, times = tmp_path / "ids.txt", tmp_path / "times.txt"
    ids.write_bytes(b"\xef\xbb\xbfhead, large\r\n lead\n\n")
    times.write_text("1970-01-01\n1970-01-01T00:01:00Z\n")
    expected = [entry.item for entry in
                api.recommend(run, history=["head, large", " lead"], times=[0, 60], k=4)]
    assert items(recommend(run, "--history-file", ids, "--times-file", times, "--k", 4)
                 ) == expected


@pytest.mark.parametrize(("given", "message"), [
    (("--history", "a,b", "--times", "5"), "1 times for 2 items; expected one for each"),
    (("--history", "a,b"), "the model reads times: no times for 2 items"),
    (("--history", "a,b", "--times", "6,5"), "times fall from 6 to 5 at item 2"),
    (("--history", "a", "--times", "noon"), "time 'noon' is neither seconds"),
    (("--user", "u1", "--times", "5"), "times belong to a history"),
    (("--user", "u1", "--history", "a"), "exactly one of a user and a history"),
    (("--history", "a", "--history-file", "x"), "not from both"),
    (("--history-file", "nowhere.txt"), "nowhere.txt cannot be read: No such file"),
    (("--history", "head, large,lead"), "item id 'lead' is not in the vocabulary"),
    (("--history", "z"), "item id 'z' is not in the vocabulary"),
    (("--user", "9"), "user id '9' is not in the vocabulary"),
    (("--user", ""), "user id '' is not in the vocabulary"),
    (("--history", ""), "--history is empty"),
])
def test_wrong_histories_are_one_line(run: Path, given: tuple[str, ...], message: str) -> None:
    ended = recommend(run, *given)
    assert isinstance(ended.exception, InputError) and message in str(ended.exception)
    assert "\n" not in str(ended.exception) and ended.stdout == ""


def test_configs_from_before_the_choice_have_its_default(run: Path, tmp_path: Path) -> None:
    text = (run / "config.toml").read_text()
    line = 'seen_targets = "miss"\n'
    assert line in text
    (tmp_path / "config.toml").write_text(text.replace(line, ""))
    assert Run(tmp_path).config() == Run(run).config()


def test_a_best_metric_of_before_the_choice_is_not_compared(run: Path) -> None:
    settings = Run(run).config()
    built, heard = build(settings), Heard()
    dataset = Dataset.open(settings.data.path)
    extra = {"config": to_mapping(settings), "dataset": dataset.split_hash}
    _check(extra, built, settings, heard, force=False)
    del extra["config"]["evaluate"]["seen_targets"]
    with pytest.raises(InputError, match=r"12 of them are misses \(evaluate\.seen_targets\)"):
        _check(extra, built, settings, heard, force=False)
    _check(extra, built, settings, heard, force=True)
    assert heard.lines[0].startswith("forced: ")
    kept = dataclasses.replace(settings, evaluate=dataclasses.replace(
        settings.evaluate, filter_seen=False))
    _check({**extra, "config": to_mapping(kept)}, build(kept), kept, heard, force=False)
