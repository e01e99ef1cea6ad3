"""The native backend is built once, leaves nothing half-built, and says why where it cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rec_jax.kernels import native_build


def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"^no C\+\+ compiler was found"):
        native_build.build(tmp_path)


def test_a_compiler_that_fails_is_named_and_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ $# = 1 ] && exit 0\necho 'x.cc:1: error: no' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    folder = tmp_path / "cache"
    with pytest.raises(OSError, match=r"broken failed: x.cc:1: error: no$"):
        native_build.build(folder)
    assert list(folder.iterdir()) == []


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("c++")
    if real is None:
        pytest.skip("no C++ compiler")
    calls = tmp_path / "calls"
    counting = tmp_path / "counting"
    counting.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {real} "$@"\n')
    counting.chmod(0o755)
    monkeypatch.setenv("CXX", str(counting))
    folder = tmp_path / "cache"
    first = native_build.build(folder)
    assert native_build.build(folder) == first
    assert list(folder.iterdir()) == [first]
    assert calls.read_text().count("module.cc") == 1


def test_another_source_is_another_library(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    before = native_build.fingerprint(["c++"])
    copy = tmp_path / "cpp"
    shutil.copytree(native_build.SOURCES, copy)
    monkeypatch.setattr(native_build, "SOURCES", copy)
    assert native_build.fingerprint(["c++"]) == before
    (copy / "fold.h").write_text("// other")
    assert native_build.fingerprint(["c++"]) != before
