"""What the command line prints: data as it is, on any terminal, and JSON that is JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.table import Table

from rec_jax.cli import show as cli_show
from rec_jax.cli import summary as cli_summary
from rec_jax.progress import progress_bar


@pytest.mark.parametrize("data", ["[sku1] shoe", "[/x] hat", "b:key:c", "[bold]", "a\\[b]",
                                  "[link=http://x]y[/link]", "@[red]", "  two  spaces "])
def test_a_string_of_data_is_printed_as_it_is(capsys: pytest.CaptureFixture[str],
                                              data: str) -> None:
    cli_show.print_table([data, "n"], [(data, 1)], numbers=("n",))
    cli_show.print_facts(data, [(data, data)])
    cli_show.console().print(data)
    table = Table(data)
    table.add_row(data)
    cli_show.console().print(table)
    assert capsys.readouterr().out.count(data.strip()) == 8


def test_what_a_terminal_would_obey_is_shown_and_not_done() -> None:
    assert cli_show.as_is("a\x1b[31mb\r\nc\x07\u202ed") == "a\\x1b[31mb\\r\\nc\\x07\\u202ed"
    assert cli_show.as_is("Amélie 映画 😀") == "Amélie 映画 😀"


def test_a_terminal_that_lacks_a_character_gets_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli_show.open_streams()
    cli_show.print_table(["title", "n"], [("Amélie", 1), ("映画", 2)], numbers=("n",))
    print("directly: é")
    sys.stdout.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert "Am\\xe9lie" in lines[2] and "\\u6620\\u753b" in lines[3]
    assert len({len(line) for line in lines[:4]}) == 1  # columns stand below each other
    assert lines[4] == "directly: \\xe9"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_shows_every_letter(monkeypatch: pytest.MonkeyPatch, width: int,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "an-id-of-forty-letters-without-any-blank"
    cli_show.print_table(["item", "score"], [(name, "0.1")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert name in "".join(line[:-5].strip() for line in lines[2:]) or name in lines[2]


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    cli_show.print_json({"a": float("nan"), "b": [1.5, float("inf"), {"c": (float("-inf"), 2)}]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [1.5, None, {"c": [None, 2]}]}
    assert "NaN" not in out and "Infinity" not in out


def test_times_and_figures_are_for_people() -> None:
    assert [cli_show.duration(seconds) for seconds in (0.41, 59, 125.4, 12_000)] == [
        "0.4 s", "59.0 s", "2 min 5 s", "3 h 20 min"]
    assert [cli_show.number(value) for value in (1_682, 0.12345, float("nan"))] == [
        "1,682", "0.1235", "-"]


REPORT = {"out": "data/x", "users": 943, "items": 1682, "interactions": 100_000,
          "rows": 100_001, "blank": 0, "bad": 1, "bad_reasons": {"no [user]": 1}, "bad_lines": (),
          "below_min_rating": 0, "duplicates": 0, "outside_core": 0, "valid_users": 943,
          "test_users": 943, "split_hash": "ab12", "seconds": 0.44}


def test_a_dataset_is_told_without_empty_values(capsys: pytest.CaptureFixture[str]) -> None:
    cli_summary.dataset(REPORT)
    out = capsys.readouterr().out
    assert "1,682" in out and "100,000" in out and "no [user] (1)" in out and "0.4 s" in out
    assert "()" not in out and "_" not in out and "blank" not in out and "{" not in out


def test_an_evaluation_fits_a_page_and_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{name}@{k}" for k in (5, 10, 20) for name in ("mrr", "hr", "ndcg")] + ["mrr"]
    result = {"metrics": {**dict.fromkeys(names, 0.2), "coverage@20": 0.5, "new": 1.0},
              "popularity_baseline": {**dict.fromkeys(names, 0.1), "hr@5": 0.0},
              "protocol": {"users": 6040, "split": "test", "candidates": 3706, "ties":
                           "against the target", "seen_items_filtered": True,
                           "split_hash": "0123456789abcdef"}, "step": 1200}
    cli_summary.evaluation(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:14]] == [
        "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@5", "mrr@10", "mrr@20",
        "mrr", "coverage@20", "new"]
    assert lines[3].split()[-3:] == ["0.2000", "0.1000", "2.0x"]
    assert "6,040 test users" in lines[14] and "step 1,200" in lines[-1]
    # Of a stream each interaction is asked, and its data is a file.
    cli_summary.how_measured({**result["protocol"], "split": "stream", "targets": 900,
                              "split_hash": "days/saturday.csv"}, "checkpoint of step 3.")
    out = capsys.readouterr().out
    assert out.startswith("900 interactions of 6,040 users, all 3,706 items ranked")
    assert out.splitlines()[-1] == "Data days/saturday.csv, checkpoint of step 3."


def test_a_bar_is_for_terminals_and_its_words_are_no_markup(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar("prepare", unit="rows") as bar:
        bar.begin(None)
        bar.advance(3, "reading [/x].csv")
        bar.say("[bold] stays")
    assert capsys.readouterr().err == "[bold] stays\n"
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("prepare", unit="rows") as bar:
        bar.begin(10_000)
        bar.begin(None)
        bar.advance(3_000, "reading [/x].csv")
        bar.say("[bold] stays")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold] stays" in captured.err and "reading [/x].csv" in captured.err
    assert "3,000 rows" in captured.err
    with progress_bar("prepare", show=False) as bar:
        bar.begin(1)
        bar.say("nothing")
    assert capsys.readouterr().err == ""


def test_what_a_library_writes_to_stdout_is_not_in_the_output() -> None:
    """As Gloo does when processes join; and an output that nobody reads is still forgotten."""
    code = ("import os, sys\n"
            "from rec_jax.cli.show import drop_stdout, own_stdout, print_json\n"
            "own_stdout(); os.write(1, b'peers\\n'); print_json({'a': 1}); sys.stdout.flush()\n"
            "print('never'); drop_stdout()")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(ended.stdout) == {"a": 1} and ended.stderr == b"peers\n"


def test_a_run_in_an_environment_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """It has neither epochs nor a validation."""
    cli_summary.training({"run": "r", "steps": 2, "episodes": 16, "updates": 2, "best_step": 1,
                          "metric": "return", "best": 30.5, "backends": "xla",
                          "train_seconds": 1.0})
    shown = capsys.readouterr().out
    assert "return 30.5000 after step 1" in shown and "episodes" in shown
    assert "epochs" not in shown
