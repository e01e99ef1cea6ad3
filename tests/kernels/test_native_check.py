"""The folds in C++ are right to the last byte they touch, on every kind of register.

`native_check.cc` compares them with loops over f64 without Python, so that it can be built with
sanitizers, with fewer or wider registers than the CPU has, and for another CPU.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.native import isa as native_isa

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi",
         "-Wall", "-Wextra", "-Werror", "-I", str(native_build.SOURCES), "-I", str(HERE))
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
EMULATED = ('-DREC_JAX_EMULATED_AMX="amx_emulated.h"',)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def check(folder: Path, compiler: str, flags: tuple[str, ...], *run: str) -> str:
    """Builds the program, runs it, and gives its last line."""
    program = folder / "check"
    built = subprocess.run([compiler, *FLAGS, *flags, str(HERE / "native_check.cc"),
                            "-o", str(program)], capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr or "unrecognized" in built.stderr:
        pytest.skip(f"{compiler} has no {' '.join(flags)}")
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run([*run, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture
def compiler() -> str:
    """The compiler of this machine."""
    try:
        return native_build.compiler()[0]
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "extra"), [
    ("native", ADDRESS), ("native", ("-fsanitize=thread",)), ("avx2", ()), ("sse", ADDRESS),
    ("wide", EMULATED), ("avx512", ADDRESS), ("neon", ADDRESS)])
def test_every_fold_is_that_of_a_loop(name: str, extra: tuple[str, ...], tmp_path: Path,
                                      compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_isa.VARIABLE, name)
    try:
        flags = native_isa.chosen()[1].flags
    except OSError as error:
        pytest.skip(str(error))
    lanes = {"sse": "4", "neon": "4", "avx2": "8", "wide": "16", "avx512": "16"}
    said = check(tmp_path, compiler, (*flags, *extra))
    assert said.endswith(" lanes, 0 failures")
    assert name == "native" or said.startswith(lanes[name])


def test_every_fold_is_right_on_an_arm_cpu(tmp_path: Path) -> None:
    cross, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if platform.machine() == "aarch64" or cross is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 on another CPU")
    assert check(tmp_path, cross, ("-static",), emulator) == "4 lanes, 0 failures"


@pytest.mark.parametrize("name", ["avx2", "sse", "wide"])
def test_the_oracles_of_the_folds_hold_with_other_registers(name: str) -> None:
    """The tests beside this one, in a process whose library is built for them."""
    if native_build.problem() or name not in native_isa.known():
        pytest.skip("no such library here")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         *(str(HERE / f"test_{part}.py") for part in (
             "softmax", "rank_topk", "native_attention", "native_feed_forward")),
         "-k", "native or attention or feed_forward"],
        env={**os.environ, native_isa.VARIABLE: name}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
