"""Errors name the option that a value came from, and the key where it came from a config."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Command, refused

from rec_jax.cli.options import translate

LOG = "who,what,when,stars\na,1,1,5\na,2,2,5\nb,1,3,4\n"
USUAL = ("prepare", "log.csv", "--out", "d", "--user", "who", "--item", "what")


@pytest.fixture
def log(rec_jax: Command) -> Command:
    Path("log.csv").write_text(LOG)
    return rec_jax


@pytest.mark.parametrize(("arguments", "expected"), [
    ((*USUAL, "--split", "time"), "--split 'time' needs --time"),
    ((*USUAL, "--split", "tme"), "--split: 'tme' is not one of"),
    ((*USUAL, "--min-rating", "3"), "--min-rating needs --rating"),
    ((*USUAL, "--core", "0"), "--core is 0; expected at least 1"),
    ((*USUAL, "--duplicates", "x"), "--duplicates: 'x' is not one of"),
    ((*USUAL, "--format", "x"), "--format: 'x' is not one of"),
    ((*USUAL, "--format", "lists", "--time", "when"),
     "--format 'lists' has neither times nor ratings nor types of events nor queries; --time, "
     "--rating, --event and --query must be left out"),
    (("search", "r", "--text", "x", "--lexical", "-1"), "--lexical is -1.0"),
    ((*USUAL, "--time", "wen"), "no column 'wen' (--time)"),
    ((*USUAL, "--item-feature", "zz"), "no column 'zz' (--item-feature)"),
    (("prepare", "log.csv", "--out", "d"), "no column 'user_id' (--user)"),
    ((*USUAL, "--item", "who"), "--user and --item are both 'who'; expected two columns"),
    (("prepare", "log.csv"), "--out is missing"),
    (("prepare", "--out", "d"), "SOURCE is missing"),
    (("synth", "s.parquet", "--users", "0"), "--users is 0; expected at least 1"),
    (("synth", "s.parquet", "--seed", "-1"), "--seed is -1"),
    (("bench", "softmax", "--rounds", "0"), "--rounds is 0; expected at least 1"),
    (("simulate", "r", "--turns", "-1"), "--turns is -1; expected at least 0"),
    (("simulate", "r", "--users", "1"), "--users is 1; expected at least 2"),
    (("recommend", "r", "--cold", "both", "--cold-bias", "nan"), "--cold-bias is nan"),
    ((*USUAL, "--withhold", "1"), "--withhold is 1.0; expected at least 0 and less than 1"),
    (("train",), "train needs CONFIG, --data DATASET or --resume RUN"),
])
def test_an_option_is_named(log: Command, arguments: tuple[str, ...], expected: str) -> None:
    line = refused(log(*arguments))
    assert expected in line
    for key in ("columns.", "filters", "split.kind", "item_features", "synth.", "settings:"):
        assert key not in line
    assert [path.name for path in Path().iterdir()] == ["log.csv"]


def test_a_key_of_a_config_file_or_of_set_keeps_its_name(log: Command) -> None:
    Path("p.toml").write_text('source = "log.csv"\nout = "d"\nsplit.kind = "time"\n'
                              'columns.user = "who"\ncolumns.item = "what"\n')
    line = refused(log("prepare", "--config", "p.toml"))
    assert "split.kind = 'time' needs columns.time" in line
    line = refused(log("prepare", "--config", "p.toml", "--split", "time"))
    assert "--split 'time' needs columns.time" in line
    line = refused(log(*USUAL, "--split", "time", "--set", "split.kind=time"))
    assert "split.kind = 'time' needs --time" in line


def test_a_quote_that_is_open_is_told_with_the_options_that_help(log: Command) -> None:
    Path("log.csv").write_text('who,what\na,"x\nb,y\n')
    line = refused(log(*USUAL))
    assert "log.csv:2: a quote is not closed, or not doubled; set --no-quote if quotes" in line
    assert "or --escape '\\' if a backslash stands" in line


def test_a_tab_is_given_as_shells_pass_it(log: Command) -> None:
    Path("log.csv").write_text(LOG.replace(",", "\t"))
    assert log(*USUAL, "--separator", "\\t").code == 0


def test_an_existing_output_names_the_option(log: Command) -> None:
    assert log(*USUAL).code == 0
    assert "d exists; give another output folder, or --overwrite" in refused(log(*USUAL))


def test_a_word_that_is_no_key_stays() -> None:
    keys = {"format": "--format", "out": "--out", "k": "--k", "columns.time": "--time"}
    for message in ("the suffix does not name a format", "dir/out: no interactions",
                    "out of memory", "step k of n", "columns.time_unit is 'x'",
                    "the format is unknown", "a format is missing",
                    "my.columns.time is it"):
        assert translate(message, keys) == message


@pytest.mark.parametrize(("arguments", "expected"), [
    (("evaluate",), "missing argument 'RUN'; see rec-jax evaluate --help"),
    (("evalute",), "no such command 'evalute'"),
    (("evaluate", "r", "--stp", "3"), "no such option: --stp"),
    (("evaluate", "r", "--step", "x"), "invalid value for '--step'"),
    (("config", "show", "ml100kk"), "did you mean 'ml100k'?"),
    (("config", "keys", "x"), "expected one of run, prepare, synth"),
])
def test_a_misused_command_is_one_line(rec_jax: Command, arguments: tuple[str, ...],
                                       expected: str) -> None:
    assert expected in refused(rec_jax(*arguments))
