"""The command line in the process of a test: what ended, and with which lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rec_jax.cli import app as cli


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def rec_jax(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
            tmp_path: Path) -> Command:
    """`rec_jax("evaluate", "runs/x")` runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main sets its own

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["rec-jax", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def refused(ended: Ended) -> str:
    """The one line of a refusal."""
    assert ended.code == 2, ended
    assert ended.out == "", ended.out
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rec-jax: "), ended.err
    return lines[0]


def one_object(ended: Ended) -> dict[str, Any]:
    """The one JSON object of stdout."""
    assert ended.code == 0, ended
    assert len(ended.out.splitlines()) == 1
    found = json.loads(ended.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    return found
