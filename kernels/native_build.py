"""Builds the C++ of the `native` backend for this machine, once, and hands it to XLA.

The library is compiled with this CPU's instructions and XLA's headers (they come with jaxlib)
into the user's cache folder: `$REC_JAX_CACHE`, else `$XDG_CACHE_HOME/rec_jax`, else
`~/.cache/rec_jax`. Its name is a hash of all that it depends on. That takes about ten seconds,
at the first use on a machine.
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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jaxlib

from .primitives import Array

SOURCES = Path(__file__).parent / "cpp"
TARGETS = ("softmax_forward", "softmax_item_grad", "attention_forward", "attention_backward",
           "feed_forward", "label_scores", "rank_count", "sorted_pairs")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-pthread",
         "-Wno-psabi")

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
    try:
        return ctypes.CDLL(str(build()))
    except subprocess.SubprocessError as error:
        raise OSError(f"the C++ compiler did not end: {error}") from error


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

    Raises:
      OSError: no compiler, or one that fails; the message is one line.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OSError(f"its C++ is not built on {sys.platform}")
    command = compiler()
    if folder is None:
        folder = cache_folder()
    target = folder / f"native-{fingerprint(command)}.so"
    if target.exists():
        return target
    log.info("compiling %s with %s", target, command[0])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / target.name
        done = subprocess.run(
            [*command, *FLAGS, *_for_this_cpu(), "-isystem", jax.ffi.include_dir(),
             str(SOURCES / "module.cc"), "-o", str(unfinished)],
            capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise OSError(f"{command[0]} failed: {(lines or [done.stderr.strip()[-200:]])[0]}")
        unfinished.rename(target)  # two processes may build it: the last one stands
    return target


def compiler() -> list[str]:
    """`$CXX`, or the first C++ compiler on the path.

    Raises:
      OSError: there is none.
    """
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise OSError("no C++ compiler was found (c++, g++, clang++ or $CXX)")


def cache_folder() -> Path:
    """Where built libraries are kept."""
    if os.environ.get("REC_JAX_CACHE"):
        return Path(os.environ["REC_JAX_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rec_jax"


def fingerprint(command: list[str]) -> str:
    """A hash of sources, compiler, flags, XLA's headers and this CPU."""
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True,
                                 timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]} --version failed") from error
    parts = [version, *command, *FLAGS, jaxlib.__version__, platform.machine(), _cpu()]
    parts += [source.read_text() for source in sorted(SOURCES.iterdir())
              if source.suffix in (".h", ".cc")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _for_this_cpu() -> list[str]:
    return ["-mcpu=native"] if platform.machine() in ("arm64", "aarch64") else ["-march=native"]


def _cpu() -> str:
    """Model and instructions of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(sorted(set(kept)))
