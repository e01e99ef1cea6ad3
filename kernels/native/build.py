"""Builds the C++ of the `native` backend for this machine, once, and hands it to XLA.

The library is compiled with this CPU's instructions (or those of `isa.py`) and XLA's
headers (they come with jaxlib) into the user's cache folder (`cache.py`). Its name is a
hash of all that it depends on. That takes about ten seconds on two cores, at the first use on a
machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib

from ..primitives import Array
from . import cache, isa

SOURCES = Path(__file__).parent / "cpp"
TARGETS = ("softmax_forward", "softmax_item_grad", "attention_forward", "attention_backward",
           "feed_forward", "label_scores", "rank_count", "best_item", "sorted_pairs")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-pthread",
         "-ffp-contract=fast", "-Wno-psabi")
LONGEST = 300.0
"""Seconds that the compiler gets, at most."""
_TELLING = 10.0
"""Seconds that it gets to tell its version."""

log = logging.getLogger("rec_jax.kernels")


@functools.cache
def problem() -> str | None:
    """Why there is no library on this machine, or None. Builds it if it has not been built."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None


def usable() -> bool:
    """Whether the default device is a CPU for which the library is there or can be built."""
    return jax.default_backend() == "cpu" and problem() is None


@functools.cache
def library() -> ctypes.CDLL:
    """The library, built or found.

    Raises:
      OSError: no compiler, or one that fails; the message is one line.
    """
    return ctypes.CDLL(str(build()))


def has_amx() -> bool:
    """Whether this CPU and system let us use AMX."""
    return bool(library().rec_jax_has_amx())


def peak_scratch() -> int:
    """Most bytes that the folds held at once, beyond arguments and results, since last asked."""
    ask = library().rec_jax_peak_scratch
    ask.restype = ctypes.c_int64
    return int(ask())


def function(name: str, results: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., list[Array]]:
    """One of `TARGETS` as a function of arrays (and attributes, by name) for a JAX program."""
    _register()
    call = jax.ffi.ffi_call(f"rec_jax_{name}", results, vmap_method="sequential")
    return lambda *arguments, **attributes: list(call(*arguments, **attributes))


@functools.cache
def _register() -> None:
    """Makes the library's functions known to XLA."""
    for name in TARGETS:
        jax.ffi.register_ffi_target(
            f"rec_jax_{name}", jax.ffi.pycapsule(getattr(library(), f"rec_jax_{name}")),
            platform="cpu")


def build(folder: Path | None = None) -> Path:
    """Path of the library in `folder` (the cache by default), compiled if it is not there.

    One process compiles, and the others wait for it.

    Raises:
      OSError: no compiler, or one that fails; the message is one line.
    """
    command, wanted = planned(folder)
    if cache.holds(wanted):
        return wanted
    target = cache.writable(wanted.parent) / wanted.name
    if cache.holds(target):
        return target
    with cache.locked(target.parent, 2 * LONGEST):
        if not cache.holds(target):
            _compile(command, target)
    return target


def planned(folder: Path | None = None) -> tuple[list[str], Path]:
    """The command that compiles the library, and where in `folder` (the cache) it belongs.

    Raises:
      OSError: no compiler, or none that answers; the message is one line.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OSError(f"its C++ is not built on {sys.platform}")
    command = compiler()
    name, chosen = isa.chosen()
    folder = cache.folder() if folder is None else folder
    return ([*command, *FLAGS, *chosen.flags],
            folder / f"native-{name}-{fingerprint(command, chosen.flags)}.so")


def compiler() -> list[str]:
    """`$CXX`, or the first C++ compiler on the path.

    Raises:
      OSError: there is none.
    """
    wanted = os.environ.get("CXX", "")
    try:
        if command := shlex.split(wanted):
            return command
    except ValueError as error:
        raise OSError(f"$CXX is {wanted!r}, which is no command: {error}") from None
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise OSError("no C++ compiler was found (c++, g++, clang++ or $CXX)")


def fingerprint(command: list[str], flags: Sequence[str] = ()) -> str:
    """A hash of sources, compiler, flags, XLA's headers and this CPU.

    Raises:
      OSError: the compiler does not tell its version.
    """
    code, version, _ = _run([*command, "--version"], _TELLING)
    if code != 0:
        raise OSError(f"{command[0]} --version failed")
    parts = [version, *command, *FLAGS, *flags, jaxlib.__version__, platform.machine(),
             isa.cpu()]
    parts += [source.read_text() for source in sorted(SOURCES.iterdir())
              if source.suffix in (".h", ".cc")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(command: list[str], target: Path) -> None:
    """The sources side by side, each to an object of its own, and then the library of them."""
    log.info("compiling %s with %s", target, command[0])
    sources = sorted(SOURCES.glob("*.cc"))
    with cache.scratch(target.parent) as scratch:
        objects = [scratch / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda pair: _made(
                    [*command, "-c", "-isystem", jax.ffi.include_dir(), str(pair[0]), "-o"],
                    pair[1]), zip(sources, objects, strict=True)):
                pass
        unfinished = scratch / target.name
        _made([*command, "-shared", *map(str, objects), "-o"], unfinished)
        cache.keep(unfinished, target)


def _made(command: list[str], result: Path) -> None:
    """Run a command that ends with the name of its result.

    Raises:
      OSError: it fails; the message is one line.
    """
    code, _, errors = _run([*command, str(result)], LONGEST)
    if code != 0:
        lines = [line for line in errors.splitlines() if "error" in line]
        last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        raise OSError(f"{command[0]} failed: {(lines or last)[0][-200:]}")
    if not result.is_file() or result.stat().st_size == 0:
        raise OSError(f"{command[0]} failed: it made no library")


def _run(command: list[str], seconds: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a command; past its time it ends with all its children.

    Raises:
      OSError: it cannot be run, or does not end; the message is one line.
    """
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL, text=True, errors="replace",
                                   start_new_session=True)
    except OSError as error:
        raise OSError(f"{command[0]} cannot be run: {error.strerror}") from None
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not end within {seconds:.0f} seconds") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, out, errors
