"""How the command ends: an exit code and one line, whatever becomes of its output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command

from rec_jax import shipped

ROOT = Path(__file__).resolve().parents[2]


def program(*arguments: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    """`python -m rec_jax ...` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})}  # type: ignore
    return subprocess.run([sys.executable, "-m", "rec_jax", *arguments], env=environment,
                          check=False, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                          **more})  # type: ignore[call-overload]


def test_a_pipe_that_nobody_reads_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    for arguments in (("config", "list"), ("fetch",), ("config", "list", "--json")):
        ended = program(*arguments, stdout=write)
        assert (ended.returncode, ended.stderr) == (141, b"")
    os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        ended = program("config", "list", stdout=full)
    assert ended.returncode == 1
    assert re.fullmatch(rb"rec-jax: No space left on device.*\n", ended.stderr), ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="a shell closes streams")
def test_a_closed_stdout_is_one_line_and_its_number_is_no_file(tmp_path: Path) -> None:
    command = f"{sys.executable} -m rec_jax config list >&-"
    ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    command = f"{sys.executable} -m rec_jax evaluate nowhere 2>&-"
    ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 2 and ended.stdout == b""


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1"},
                                         {"COLUMNS": "40"}])
def test_help_works_on_every_terminal(environment: dict[str, str]) -> None:
    ended = program("prepare", "--help", env=environment)
    assert ended.returncode == 0 and ended.stderr == b""
    assert b"--time" in ended.stdout and b"\x1b" not in ended.stdout


def test_the_module_is_the_program_and_says_its_version() -> None:
    from importlib.metadata import version

    ended = program("--version")
    assert (ended.returncode, ended.stdout) == (0, f"rec-jax {version('rec-jax')}\n".encode())


def test_help_imports_neither_arrays_nor_frames() -> None:
    code = ("import sys, rec_jax.cli.app\nsys.argv = ['rec-jax', '--help']\n"
            "try:\n    rec_jax.cli.app.main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "heavy = {'jax', 'numpy', 'polars', 'pyarrow', 'matplotlib', 'flax', 'rec_jax.api',\n"
            "         'rich', 'filelock'}\n"
            "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_shells_can_complete() -> None:
    ended = program("--show-completion", "bash")
    if b"Shell" in ended.stdout + ended.stderr and ended.returncode:
        pytest.skip("no shell is found around this process")
    assert b"rec-jax" in ended.stdout and b"_REC_JAX_COMPLETE" in ended.stdout
    ended = program(env={"_REC_JAX_COMPLETE": "complete_bash", "COMP_WORDS": "rec-jax check",
                         "COMP_CWORD": "1"})
    assert ended.stdout.split() == [b"checkpoint"]


def test_ctrl_c_is_one_line(rec_jax: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped, "names", interrupted)
    ended = rec_jax("config", "list")
    assert (ended.code, ended.out, ended.err) == (130, "", "rec-jax: interrupted\n")
