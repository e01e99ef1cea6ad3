"""Every verb that writes: whole or absent, one line where it cannot, and nothing else touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, Ended

from rec_jax.data.arrays import read_flat
from rec_jax.inference.export import WRITERS


def one_line(ended: Ended, code: int) -> str:
    assert ended.code == code, ended
    assert ended.out == "", ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rec-jax: "), ended.err
    return lines[0]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITING = ["prepare", "synth", "synth slices", *(f"export {form}" for form in sorted(WRITERS))]


def arguments_of(verb: str, out: Path | str, csv: Path, run: Path) -> list[object]:
    name, _, form = verb.partition(" ")
    return {
        "prepare": ["prepare", csv, "--time", "time", "--out", out],
        "synth": ["synth", out, "--users", 500, "--items", 50,
                  *(["--set", "slices=3"] if form else [])],
        "export": ["export", run, "--out", out, "--format", form]}[name]


@pytest.mark.parametrize("verb", WRITING)
def test_a_full_disk_is_one_line_that_names_the_output(
        rec_jax: Command, tiny_csv: Path, tiny_run: Path, tmp_path: Path, verb: str) -> None:
    arguments = arguments_of(verb, "full/out", tiny_csv, tiny_run)
    for size in (0, 60, 200, 700, 1000, 2000, 3000):
        with largest_file(size):
            ended = rec_jax(*arguments, "--json")
        if ended.code == 0:  # the last file was as small as that
            break
        assert one_line(ended, 1) == f"rec-jax: full/out: {os.strerror(errno.EFBIG)}"
        assert list(tmp_path.iterdir()) == []
    assert size > 60


def test_a_full_disk_while_training_is_one_line(rec_jax: Command, tiny_run: Path,
                                                tmp_path: Path) -> None:
    with largest_file(100):
        ended = rec_jax("train", tiny_run / "config.toml", "--run", "full/run",
                        "--json")
    assert "full/run/config.toml: " in one_line(ended, 1)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert set(left) <= {".lock"}


@pytest.mark.parametrize("verb", [*WRITING, "train"])
@pytest.mark.parametrize("place", ["a file/out", "x" * 300])
def test_an_output_that_cannot_be_is_one_line_and_exit_code_2(
        rec_jax: Command, tiny_csv: Path, tiny_run: Path, tmp_path: Path, verb: str,
        place: str) -> None:
    (tmp_path / "a file").write_text("mine")
    arguments = (["train", tiny_run / "config.toml", "--run", place] if verb == "train"
                 else arguments_of(verb, place, tiny_csv, tiny_run))
    assert place in one_line(rec_jax(*arguments, "--json"), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("verb", WRITING)
def test_a_folder_without_the_right_to_write_is_one_line(
        rec_jax: Command, tiny_csv: Path, tiny_run: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    line = one_line(
        rec_jax(*arguments_of(verb, "closed/out", tiny_csv, tiny_run), "--json"), 2)
    assert "closed/out: Permission denied" in line


@pytest.mark.parametrize("arguments", [
    ["evaluate", "a folder"], ["recommend", "a folder", "--user", "x"],
    ["checkpoint", "list", "missing"], ["data", "verify", "missing"],
    ["prepare", "a folder", "--out", "d"], ["plan", "a folder", "--items", "10"],
    ["prepare", "--config", "a folder", "--out", "d"], ["train", "missing.toml"],
    ["train", "a file/config.toml"], ["prepare", "--config", "a file/x"]])
def test_an_input_of_another_kind_is_one_line(rec_jax: Command, tmp_path: Path,
                                              arguments: list[str]) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").write_text("")
    one_line(rec_jax(*arguments), 2)
    assert sorted(os.listdir(tmp_path)) == ["a file", "a folder"]


def test_any_error_of_the_system_is_one_line(rec_jax: Command,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from rec_jax import api

    for error, code in ((OSError(errno.EIO, "Input/output error", "x/items.npy"), 1),
                        (OSError(errno.EACCES, "Permission denied", "x"), 2),
                        (OSError("no number"), 1), (TimeoutError(), 1)):
        def fail(*_: Any, error: OSError = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(api, "evaluate", fail)
        line = one_line(rec_jax("evaluate", "r"), code)
        assert error.filename is None or f"{error.filename}: {error.strerror}" in line


def test_a_flat_file_that_lacks_values_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(40))
    assert len(read_flat(tmp_path / "x", np.int32, 2, 10)) == 8
    with pytest.raises(OSError, match="fewer values"):
        read_flat(tmp_path / "x", np.int32, 2, 11)


# What is not ours stays.


def test_what_looks_like_a_temporary_of_an_export_stays(
        rec_jax: Command, tiny_run: Path, tmp_path: Path) -> None:
    for name in ("out.tmp", ".out.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    assert rec_jax("export", tiny_run, "--out", "out", "--json").code == 0
    for name in ("out.tmp", ".out.tmp"):
        assert (tmp_path / name / "mine").read_text() == "x"


def write_meta(folder: Path) -> None:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"format_version": 1, "title": "my site"}))


def with_a_note(folder: Path, dataset: Path, place: str) -> None:
    shutil.copytree(dataset, folder)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("mine")


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "a meta.json of another program": lambda out, _: write_meta(out),
    "a note beside": lambda out, dataset: with_a_note(out, dataset, "notes.txt"),
    "a note below": lambda out, dataset: with_a_note(out, dataset, "item_features/mine.npy"),
    "a hidden note": lambda out, dataset: with_a_note(out, dataset, ".git"),
    "a folder": lambda out, dataset: with_a_note(out, dataset, "sub/mine"),
    "a file": lambda out, _: out.write_text("mine"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_overwriting_leaves_a_folder_that_holds_more_than_a_dataset(
        rec_jax: Command, tiny_csv: Path, tiny_dataset: Path, tmp_path: Path, what: str) -> None:
    FOREIGN[what](tmp_path / "out", tiny_dataset)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    line = one_line(rec_jax("prepare", tiny_csv, "--out", "out", "--overwrite"), 2)
    assert "will not be overwritten" in line
    assert {path: path.is_file() and path.read_bytes()
            for path in tmp_path.rglob("*")} == before


def test_a_dataset_is_overwritten_at_once_also_a_damaged_one(
        rec_jax: Command, tiny_csv: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "out")
    (tmp_path / "out" / "items.npy").write_bytes(b"damaged")
    (tmp_path / "out" / "times.npy").unlink()
    assert rec_jax("prepare", tiny_csv, "--out", "out", "--overwrite", "--json").code == 0
    assert rec_jax("data", "verify", "out", "--json").code == 0
    assert os.listdir(tmp_path) == ["out"]


def test_verify_names_what_is_damaged(rec_jax: Command, tiny_dataset: Path,
                                      tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "d")
    ended = rec_jax("data", "verify", "d")
    assert ended.code == 0 and "as they were written" in ended.err
    array = np.load(tmp_path / "d" / "items.npy", mmap_mode="r+")
    array[0] += 1
    array.flush()
    assert "items.npy" in one_line(rec_jax("data", "verify", "d"), 2)
    ended = rec_jax("data", "verify", "d", "--json")
    assert ended.code == 2
    entries = json.loads(ended.out)["files"]
    assert [entry["name"] for entry in entries if entry["problem"]] == ["items.npy"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 200 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)],
        capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("verb", WRITING)
def test_a_real_disk_that_gets_full_at_any_place(
        rec_jax: Command, tiny_csv: Path, tiny_run: Path, small_disk: Path, verb: str) -> None:
    out = small_disk / "out"
    for free in range(0, 200, 4):
        (small_disk / "fill").write_bytes(bytes((200 - free) * 1024))
        ended = rec_jax(*arguments_of(verb, out, tiny_csv, tiny_run), "--json")
        if ended.code == 0:
            break
        assert one_line(ended, 1) == f"rec-jax: {out}: {os.strerror(errno.ENOSPC)}"
        assert os.listdir(small_disk) == ["fill"]
    assert ended.code == 0 and free > 0


def test_make_clean_removes_what_make_made(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    shutil.copy(Path(__file__).resolve().parents[2] / "Makefile", tmp_path / "Makefile")
    mine = ["runs/mine/config.toml", "data/ml-100k/dataset/items.npy", "data/log.csv",
            "dist/rec.whl", ".venv/bin/python"]
    made = ["runs/quickstart/config.toml", "data/quickstart/dataset/items.npy", "build/x"]
    for name in mine + made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    # The tests may run under a make with variables of its own.
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("MAKE") and name not in ("VENV", "PYTHON", "TESTS")}

    def clean() -> None:
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True,
                       env=environment)

    clean()
    assert [name for name in mine if not (tmp_path / name).exists()] == []
    assert [name for name in made if (tmp_path / name).exists()] == []
    (tmp_path / ".venv" / ".made-by-make").write_text("")
    clean()
    assert not (tmp_path / ".venv").exists()
