"""The native library is built once, leaves nothing half-built, and says why where it cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.native import isa as native_isa

REAL = shutil.which("c++")


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a small library and a line to the file that this gives."""
    calls = tmp_path / "calls"
    calls.touch()
    compiler = script(tmp_path / "fast", "\n".join([
        "[ $# = 1 ] && echo 'fast 1.0' && exit 0", f'echo "$*" >> {calls}',
        'while [ "$1" != -o ]; do shift; done', 'echo library > "$2"']))
    monkeypatch.setenv("CXX", str(compiler))
    return calls


def remains(folder: Path) -> set[str]:
    """What lies in the folder beside the lock."""
    return {path.name for path in folder.iterdir()} - {"native.lock"}


def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"^no C\+\+ compiler was found"):
        native_build.build(tmp_path)


@pytest.mark.parametrize(("wanted", "message"), [
    ('g++ "', r"^\$CXX is 'g\+\+ \"', which is no command: No closing quotation$"),
    ("/none/such", r"^/none/such cannot be run: No such file or directory$"),
    ("false", r"^false --version failed$"),
])
def test_a_command_that_is_none_is_one_line(wanted: str, message: str, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", wanted)
    with pytest.raises(OSError, match=message):
        native_build.build(tmp_path)


def test_a_compiler_that_fails_is_named_and_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(tmp_path / "broken",
                    "[ $# = 1 ] && exit 0\necho 'x.cc:1: error: no' >&2; exit 1")
    monkeypatch.setenv("CXX", str(broken))
    folder = tmp_path / "cache"
    with pytest.raises(OSError, match=r"broken failed: x.cc:1: error: no$"):
        native_build.build(folder)
    assert remains(folder) == set()


def test_a_compiler_that_makes_nothing_has_failed(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(OSError, match=r"^true failed: it made no library$"):
        native_build.build(tmp_path / "cache")


def test_a_compiler_that_does_not_end_is_ended(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    slow = script(tmp_path / "slow", "[ $# = 1 ] && exit 0\nsleep 60")
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(native_build, "LONGEST", 0.2)
    start = time.monotonic()
    with pytest.raises(OSError, match="slow did not end within 0 seconds"):
        native_build.build(tmp_path / "cache")
    assert time.monotonic() - start < 50
    assert remains(tmp_path / "cache") == set()


def test_it_is_compiled_once(tmp_path: Path, fast: Path) -> None:
    folder = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(native_build.build, [folder] * 4))
    assert len(found) == 1
    first = found.pop()
    assert native_build.build(folder) == first
    assert remains(folder) == {first.name, first.with_suffix(".sha256").name}
    sources = sorted(native_build.SOURCES.glob("*.cc"))
    lines = fast.read_text().splitlines()
    assert len(lines) == len(sources) + 1 and "-shared" in lines[-1]
    assert all(sum(str(source) in line for line in lines) == 1 for source in sources)


def test_what_a_killed_build_left_is_removed(tmp_path: Path, fast: Path) -> None:
    folder = tmp_path / "cache"
    (folder / "building-x").mkdir(parents=True)
    (folder / "building-x" / "half.so").touch()
    folder.chmod(0o700)
    built = native_build.build(folder)
    assert remains(folder) == {built.name, built.with_suffix(".sha256").name}


def test_another_source_is_another_library(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    if REAL is None:
        pytest.skip("no C++ compiler")
    before = native_build.fingerprint(["c++"])
    copy = tmp_path / "cpp"
    shutil.copytree(native_build.SOURCES, copy)
    monkeypatch.setattr(native_build, "SOURCES", copy)
    assert native_build.fingerprint(["c++"]) == before
    (copy / "fold.h").write_text("// other")
    assert native_build.fingerprint(["c++"]) != before


def test_instructions_that_are_asked_for_are_those_of_the_library(
        tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native_isa.VARIABLE, raising=False)
    own = native_build.build(tmp_path / "cache")
    monkeypatch.setenv(native_isa.VARIABLE, "wide")
    wide = native_build.build(tmp_path / "cache")
    assert own != wide and wide.name.startswith("native-wide-")
    assert "-DREC_JAX_WIDE" in fast.read_text().splitlines()[-1]


def test_unknown_instructions_are_one_line(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_isa.VARIABLE, "avx3")
    with pytest.raises(OSError, match=r"^\$REC_JAX_NATIVE_ISA is 'avx3'; expected one of native"):
        native_build.build(tmp_path)


def test_instructions_that_the_cpu_lacks_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_isa.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native_isa, "features", lambda: {"sse4_2", "avx2", "fma"})
    for name, message in {"avx512": "this CPU has no avx512f$",
                          "amx": "this CPU has no amx_bf16 and no avx512f$"}.items():
        monkeypatch.setenv(native_isa.VARIABLE, name)
        with pytest.raises(OSError, match=message):
            native_isa.chosen()
    monkeypatch.setenv(native_isa.VARIABLE, "avx2")
    assert native_isa.chosen()[0] == "avx2"


def test_what_cannot_be_built_is_said_once_and_xla_runs(tmp_path: Path) -> None:
    """In a process of its own, which has no library yet."""
    program = ("import jax.numpy as jnp; from rec_jax.kernels import softmax_loss;"
               "from rec_jax.kernels.native import build;"
               "arrays = jnp.ones((2, 4)), jnp.ones((9, 4)), jnp.zeros(2, int);"
               "[softmax_loss(*arrays) for _ in 'ab'];"
               "assert build.problem()")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True,
        env={"CXX": "false", "PATH": "/usr/bin:/bin", "REC_JAX_CACHE": str(tmp_path),
             "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)})
    said = [line for line in done.stderr.splitlines() if "native" in line]
    assert said == ["the native backend cannot be used, and xla is taken: "
                    "false --version failed"]
