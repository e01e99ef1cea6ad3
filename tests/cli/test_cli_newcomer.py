"""What a newcomer gets wrong in the first minutes is one line that says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

from rec_jax.train.log import read_metrics


@pytest.mark.parametrize(("separator", "hint"), [
    (";", "it has a comma (',') between its fields?"), ("\\t", "it has a comma"),
    ("|", "no --separator '|' is in the first line, which is 'user_id,item_id,time'")])
def test_a_wrong_separator_says_what_the_line_is(
        rec_jax: Command, tiny_csv: Path, tmp_path: Path,
        separator: str, hint: str) -> None:
    ended = rec_jax("prepare", tiny_csv, "--separator", separator, "--time", "time", "--out",
                    tmp_path / "x")
    assert ended.code == 2 and hint in ended.err and len(ended.err.splitlines()) == 1


def test_a_file_of_one_word_asks_for_the_right_one(rec_jax: Command,
                                                   tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("hello\nworld\n")
    ended = rec_jax("prepare", tmp_path / "x.csv", "--out", tmp_path / "x")
    assert ended.code == 2 and "is this the right file?" in ended.err


def test_no_users_is_said_of_the_option(rec_jax: Command, tmp_path: Path) -> None:
    ended = rec_jax("synth", tmp_path / "x.parquet", "--users", "0")
    assert (ended.code, ended.err) == (
        2, "rec-jax: --users is 0; expected at least 1 and at most 1099511627776\n")


def test_an_empty_folder_is_overwritten_and_another_is_not(
        rec_jax: Command, tiny_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").touch()
    assert rec_jax("prepare", tiny_csv, "--out", out, "--overwrite").code == 2
    (out / "notes").unlink()
    assert rec_jax("prepare", tiny_csv, "--out", out).code == 2
    ended = rec_jax("prepare", tiny_csv, "--out", out, "--overwrite")
    assert ended.code == 0 and (out / "meta.json").is_file(), ended.err


def test_a_dataset_is_no_folder_for_a_run(rec_jax: Command, tiny_dataset: Path,
                                          tmp_path: Path) -> None:
    before = sorted(path.name for path in tiny_dataset.iterdir())
    ended = rec_jax("train", "ml100k", "--set", f"data.path={tiny_dataset}", "--run", tiny_dataset)
    assert ended.code == 2 and f"{tiny_dataset} is a dataset folder" in ended.err
    assert sorted(path.name for path in tiny_dataset.iterdir()) == before


def test_lines_of_validations_say_how_they_were_measured(tiny_run: Path) -> None:
    lines = read_metrics(tiny_run / "metrics.jsonl")
    assert {line["kind"] for line in lines if "protocol" in line} == {"valid"}
    for line in lines:
        if line["kind"] == "valid":
            assert line["protocol"]["ties"] and len(line["protocol"]["split_hash"]) > 12
    assert json.dumps(lines[-1])
