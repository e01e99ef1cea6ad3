"""The report is one page that stands alone."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rec_jax.run import Run
from rec_jax.train.log import read_metrics
from rec_jax.train.report import write_report


class Resources(HTMLParser):
    """Every address that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_training_leaves_a_page_with_curves_figures_and_config(
        tiny_run: Path, tiny_training: dict[str, Any]) -> None:
    page = (tiny_run / "report.html").read_text()
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert picture and base64.b64decode(picture[1])[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"{tiny_training['best']:.4f}" in page
    assert "ndcg@10" in page and "[encoder]" in page


def test_the_page_needs_no_other_file(tiny_run: Path) -> None:
    resources = Resources()
    resources.feed((tiny_run / "report.html").read_text())
    assert resources.found and all(entry.startswith("data:") for entry in resources.found)


def copy_of(tiny_run: Path, folder: Path) -> Run:
    folder.mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (folder / name).write_bytes((tiny_run / name).read_bytes())
    return Run(folder)


def test_the_best_validation_is_the_one_shown(
        tiny_run: Path, tiny_training: dict[str, Any], tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "again")
    write_report(run, tiny_training)
    page = run.report_path.read_text()
    assert f"best step, {tiny_training['best_step']}<" in page
    assert not run.report_path.with_name("report.html.tmp").exists()


def test_the_best_validation_of_an_error_is_the_smallest(
        tiny_run: Path, tiny_training: dict[str, Any], tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "rated")
    run.metrics_path.write_text("".join(json.dumps(
        {"kind": "valid", "step": step, "epoch": 1.0, "rmse": rmse}) + "\n"
        for step, rmse in ((7, 1.2), (14, 0.9), (21, 1.1))))
    write_report(run, {**tiny_training, "metric": "rmse", "best_step": 14})
    assert "best step, 14<" in run.report_path.read_text()


def test_text_of_the_user_is_escaped(
        tiny_run: Path, tiny_training: dict[str, Any], tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "a<b>&c")
    write_report(run, {**tiny_training, "run": "<script>"})
    page = run.report_path.read_text()
    assert "a&lt;b&gt;&amp;c" in page and "<script>" not in page and "<b>" not in page


def test_a_run_without_any_line_still_has_a_page(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "short")
    run.metrics_path.unlink()
    assert read_metrics(run.metrics_path) == []
    write_report(run, {"steps": 0, "metric": "ndcg@10"})
    assert "[encoder]" in run.report_path.read_text()
