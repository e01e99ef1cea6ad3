"""The command line: a wrong input is one line and exit code 2; programs get one JSON object."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command import Command, one_object, refused


def files(folder: Path = Path()) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture
def config_file(tmp_path: Path, tiny_mapping: Callable[..., dict[str, Any]]) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(tiny_mapping("train.steps=8")))
    return path


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


# Every wrong input that the command line must turn into one line.


def test_an_unknown_config_key_names_the_nearest(rec_jax: Command, config_file: Path) -> None:
    before = files()
    line = refused(rec_jax("train", config_file, "--set", "encoder.layer=2", "--run", "r"))
    assert "unknown key 'layer'" in line and "did you mean 'layers'" in line
    assert files() == before


def test_a_missing_column_is_named(rec_jax: Command, tiny_csv: Path) -> None:
    line = refused(rec_jax("prepare", tiny_csv, "--out", "d", "--user", "person"))
    assert "person" in line and "user_id" in line
    assert files() == []


def test_attributes_of_items_are_kept_by_name(rec_jax: Command, tiny_csv: Path,
                                              config_file: Path) -> None:
    asked = ("prepare", tiny_csv, "--set", f"item_file.path='{tiny_csv.with_name('items.csv')}'")
    line = refused(rec_jax(*asked, "--out", "d", "--item-feature", "titel"))
    assert "has no column 'titel'" in line and "did you mean 'title'" in line
    assert rec_jax(*asked, "--out", "kept", "--item-feature", "title").code == 0
    assert Path("kept/item_features/title.npy").is_file()
    line = refused(rec_jax("train", config_file, "--run", "r", "--set", "data.path=kept", "--set",
                           "features=[{kind='item_category', name='brand'}]"))
    assert "'brand': kept keeps no such attribute of its items; it has 'title'" in line
    line = refused(rec_jax("train", config_file, "--run", "r",
                           "--set", "features=[{kind='rating'}]"))
    assert "no ratings" in line and "columns.rating" in line


@pytest.mark.parametrize("content", ["user_id,item_id\n", ""])
def test_an_empty_dataset_is_refused(rec_jax: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    refused(rec_jax("prepare", "a.csv", "--out", "d"))
    assert files() == ["a.csv"]


def test_filters_that_leave_nothing_are_refused(rec_jax: Command, tiny_csv: Path) -> None:
    assert "core" in refused(rec_jax("prepare", tiny_csv, "--out", "d", "--core", 1000))
    assert files() == []


def test_users_with_one_item_each_cannot_train(rec_jax: Command, config_file: Path) -> None:
    Path("a.csv").write_text("user_id,item_id\n" + "".join(f"u{n},i{n}\n" for n in range(5)))
    assert rec_jax("prepare", "a.csv", "--out", "single", "--json").code == 0
    before = files()
    line = refused(rec_jax("train", config_file, "--set", "data.path=single", "--run", "r"))
    assert "no user with two items" in line
    assert files() == before


def test_one_user_with_one_item_does_not_stop_the_others(rec_jax: Command,
                                                         tiny_run: Path) -> None:
    ended = rec_jax("recommend", tiny_run, "--user", "u0", "--k", 3, "--json")
    assert ended.code == 0 and len(json.loads(ended.out)["recommendations"]) == 3


def test_an_item_that_is_not_in_the_vocabulary_names_the_nearest(rec_jax: Command,
                                                                 tiny_run: Path) -> None:
    line = refused(rec_jax("recommend", tiny_run, "--history", "0001,003x"))
    assert "item id '003x' is not in the vocabulary" in line and "nearest: '00" in line


def test_heads_that_do_not_divide_the_width_are_refused(rec_jax: Command,
                                                        config_file: Path) -> None:
    before = files()
    line = refused(rec_jax("train", config_file, "--set", "encoder.heads=3", "--run", "r"))
    assert "encoder.heads = 3 does not divide table.dim = 16" in line
    assert files() == before


def test_resume_with_a_changed_config_names_the_change(rec_jax: Command, config_file: Path,
                                                       copied_run: Path) -> None:
    before = files()
    line = refused(rec_jax("train", config_file, "--resume", copied_run))
    assert "train.steps: 36 -> 8" in line
    line = refused(rec_jax("train", "--resume", copied_run, "--set", "seed=5"))
    assert "seed: 3 -> 5" in line
    assert files() == before


def test_a_truncated_checkpoint_is_one_line(rec_jax: Command, copied_run: Path) -> None:
    for path in (copied_run / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])
    before = files()
    for command in (("evaluate", copied_run), ("export", copied_run, "--out", "e"),
                    ("recommend", copied_run, "--user", "u5")):
        assert "checkpoint" in refused(rec_jax(*command, "--step", 36))
    assert files() == before


@pytest.mark.parametrize(("command", "expected"), [
    (("train", "no.toml"), "no.toml does not exist"),
    (("train", "--resume", "nowhere"), "nowhere is not a run"),
    (("evaluate", "nowhere"), "nowhere is not a run"),
    (("export", "nowhere", "--out", "e"), "nowhere is not a run"),
    (("recommend", "nowhere", "--user", "u1"), "nowhere is not a run"),
    (("prepare", "no.csv", "--out", "d"), "no.csv does not exist"),
])
def test_what_is_not_there_is_named(rec_jax: Command, command: tuple[str, ...],
                                    expected: str) -> None:
    assert expected in refused(rec_jax(*command))
    assert files() == []


def test_a_run_folder_is_not_used_twice(rec_jax: Command, config_file: Path,
                                        copied_run: Path) -> None:
    before = {path: Path(path).read_bytes() for path in files() if Path(path).is_file()}
    assert "holds a run already" in refused(rec_jax("train", config_file, "--run", copied_run))
    assert before == {path: Path(path).read_bytes() for path in before}


@pytest.mark.parametrize(("arguments", "expected"), [
    (("evaluate", "--split", "train"), "expected valid or test"),
    (("evaluate", "--step", "3"), "no checkpoint of step 3; it has"),
    (("evaluate", "--data", "elsewhere"), "elsewhere is not a dataset folder"),
    (("evaluate", "--batch", "0"), "expected at least 1"),
    (("export", "--out", "e", "--what", "user"), "expected items, users or inputs"),
    (("export", "--out", "e", "--format", "csv"), "expected one of"),
    (("recommend",), "exactly one of a user and a history"),
    (("recommend", "--user", "u5", "--k", "0"), "expected 1 to 50"),
])
def test_wrong_requests_to_a_run_are_refused(rec_jax: Command, tiny_run: Path,
                                             arguments: tuple[str, ...], expected: str) -> None:
    verb, *rest = arguments
    assert expected in refused(rec_jax(verb, tiny_run, *rest))
    assert files() == []


def test_a_damaged_dataset_is_one_line(rec_jax: Command, config_file: Path,
                                       tiny_dataset: Path) -> None:
    shutil.copytree(tiny_dataset, "d")
    items = Path("d/items.npy")
    items.write_bytes(items.read_bytes()[:-10])
    before = files()
    line = refused(rec_jax("train", config_file, "--set", "data.path=d", "--run", "r"))
    assert "items.npy" in line
    assert files() == before


def test_a_diverging_run_is_one_line_and_exit_code_1(rec_jax: Command,
                                                     config_file: Path) -> None:
    ended = rec_jax("train", config_file, "--set", "optimizer.rate=1e30", "--run", "r", "--json")
    assert ended.code == 1 and ended.out == "" and len(ended.err.splitlines()) == 1
    assert "rec-jax: the " in ended.err and "at step" in ended.err


# What works.


def test_prepare_says_what_should_be_looked_at(rec_jax: Command) -> None:
    Path("log.tsv").write_text('user\titem\ttime\n"u"\t"say \\"x\\""\t1700000000000\n')
    ended = rec_jax("prepare", "log.tsv", "--out", "d", "--user", "user", "--item", "item",
                    "--quote", "--escape", "\\", "--json")
    assert json.loads(ended.out)["interactions"] == 1
    assert ended.err.startswith("note: no time column was given") and "'time'" in ended.err
    report = one_object(rec_jax("prepare", "log.tsv", "--out", "e", "--user", "user", "--item",
                                "item", "--time", "time", "--time-unit", "ms", "--quote",
                                "--json"))
    assert report["first_time"] == report["last_time"] == "2023-11-14T22:13:20Z"
    assert (report["time_unit"], report["repeat_share"]) == ("ms", 0.0)
    assert "expected a backslash" in refused(rec_jax("prepare", "log.tsv", "--out", "f",
                                                     "--escape", "x"))


def test_every_verb_prints_one_json_object(rec_jax: Command, tiny_csv: Path,
                                           config_file: Path) -> None:
    dataset = one_object(rec_jax("prepare", tiny_csv, "--out", "d", "--time", "time", "--json"))
    assert dataset["users"] == 40
    summary = one_object(rec_jax("train", config_file, "--set", "data.path=d", "--run", "r",
                                 "--json"))
    assert summary["steps"] == 8 and summary["run"] == "r" and Path("r/report.html").exists()
    again = one_object(rec_jax("train", "--resume", "r", "--json"))
    assert again["best"] == summary["best"]
    result = one_object(rec_jax("evaluate", "r", "--baseline", "--json"))
    assert 0 < result["metrics"]["hr@10"] <= 1 and result["popularity_baseline"]
    about = one_object(rec_jax("export", "r", "--what", "users", "--out", "e", "--json"))
    assert about["count"] == 40 and Path(about["folder"]) == Path("e")
    found = one_object(rec_jax("recommend", "r", "--history", "0001, 0002", "--k", 2, "--json"))
    assert [entry["rank"] for entry in found["recommendations"]] == [1, 2]


def test_people_read_tables_with_titles_and_the_protocol(rec_jax: Command,
                                                         tiny_run: Path) -> None:
    ended = rec_jax("recommend", tiny_run, "--user", "u5", "--k", 2)
    assert ended.code == 0 and "the film" in ended.out
    ended = rec_jax("evaluate", tiny_run, "--baseline", "--no-filter-seen")
    assert ended.code == 0 and "seen items kept" in " ".join(ended.out.split())
    assert "popularity" in ended.out and "ndcg@10" in ended.out


def test_a_popularity_bias_moves_lists_and_is_said(rec_jax: Command, tiny_run: Path) -> None:
    plain, popular = (one_object(rec_jax("recommend", tiny_run, "--user", "u5", "--json", *more))
                      for more in ((), ("--popularity-bias", "20")))
    assert plain["recommendations"] != popular["recommendations"]
    ended = rec_jax("evaluate", tiny_run, "--popularity-bias", "-0.5")
    assert "-0.5 x log popularity added" in " ".join(ended.out.split())
    found = one_object(rec_jax("evaluate", tiny_run, "--popularity-bias=-0.5", "--json"))
    assert found["protocol"]["item_bias"] == {"kind": "popularity", "strength": -0.5, "prior": 1.0}
    for verb in (("evaluate",), ("recommend", "--user", "u5")):
        line = refused(rec_jax(*verb, tiny_run, "--popularity-bias", "1e9"))
        assert "--popularity-bias: strength is 1e+09; expected at least -100" in line


def test_help_names_every_verb(rec_jax: Command) -> None:
    ended = rec_jax("--help")
    assert ended.code == 0
    for verb in ("fetch", "synth", "prepare", "train", "evaluate", "export", "recommend"):
        assert verb in ended.out


def test_a_plan_is_one_json_object_and_unknown_devices_are_one_line(
        rec_jax: Command, config_file: Path) -> None:
    done = rec_jax("plan", config_file, "--items", "1e9", "--devices", "h100x8", "--json")
    plan = json.loads(done.out)
    assert done.code == 0 and plan["rows"] >= 10**9 and plan["needed_bytes"] > 0
    assert "did you mean 'h100'" in refused(
        rec_jax("plan", config_file, "--items", "1e9", "--devices", "h1000"))
    assert "a config with [environment] has no plan" in refused(
        rec_jax("plan", "choc_kale_dqn", "--items", "1000"))
    assert "a config with [stream] has no plan" in refused(
        rec_jax("plan", "stream_ml100k", "--items", "1000"))


@pytest.mark.parametrize("option", ["keep-state", "encoder-only"])
def test_what_is_of_another_run_is_refused_where_there_is_none(rec_jax: Command, config_file: Path,
                                                               option: str) -> None:
    for name in (config_file, "choc_kale_dqn"):
        assert f"--{option} is of a run that starts from another; expected --start-from" in refused(
            rec_jax("train", name, f"--{option}"))
    assert f"--{option} is not of a stream" in refused(
        rec_jax("train", "stream_ml100k", f"--{option}"))
