"""Compiled programs are kept in a folder of ours, whole, and give the bits that compiling gives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from rec_jax import compat, compilation_cache

CODE = """
import sys, jax, jax.numpy as jnp, numpy as np
from rec_jax import compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
kept = compilation_cache.enable()
x = jnp.linspace(0, 1, 1000)
found = jax.jit(lambda x: jnp.sin(x) @ jnp.exp(x))(x)
print(kept is not None, events.count("cache_hits"), np.asarray(found).tobytes().hex())
"""

safe = pytest.mark.skipif(not compat.CACHE_IS_SAFE, reason="not with this JAX")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder, and settings of JAX that are put back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
             "jax_persistent_cache_min_entry_size_bytes")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("REC_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE",
                 compilation_cache.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilation_cache, "CACHE_IS_SAFE", True)
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def start(cache: Path, **more: str) -> list[str]:
    others = {name: value for name, value in os.environ.items()
              if name != compilation_cache.VARIABLE}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True,
                          env={**others, "REC_JAX_CACHE": str(cache),
                               "PYTHONPATH": os.pathsep.join(sys.path), **more})
    assert "Error" not in done.stderr
    return done.stdout.split()


@safe
def test_the_next_start_reads_what_was_compiled_and_heals_what_was_cut(tmp_path: Path) -> None:
    plain = start(tmp_path, REC_JAX_PROGRAMS="off")
    first = start(tmp_path)
    second = start(tmp_path)
    assert plain[:2] == ["False", "0"] and first[:2] == ["True", "0"] and second[0] == "True"
    assert int(second[1]) >= 2
    assert plain[2] == first[2] == second[2]
    kept = list(tmp_path.glob("programs-*/*-cache"))
    for path in kept:
        path.write_bytes(path.read_bytes()[:-9])
    assert start(tmp_path) == first
    assert start(tmp_path) == second


@pytest.mark.parametrize("open_one", ["programs", "cache"])
def test_a_folder_that_others_may_write_is_not_used(here: Path, open_one: str) -> None:
    assert compilation_cache.enable() == compilation_cache.folder()
    assert compilation_cache.folder().stat().st_mode & 0o777 == 0o700
    (compilation_cache.folder() if open_one == "programs" else here).chmod(0o777)
    assert compilation_cache.enable() is None


def test_settings_and_versions_decide(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compilation_cache.VARIABLE, "off")
    assert compilation_cache.enable() is None
    monkeypatch.delenv(compilation_cache.VARIABLE)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert compilation_cache.enable() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(compilation_cache, "CACHE_IS_SAFE", False)
    assert compilation_cache.enable() is None and not here.exists()


def test_another_cpu_has_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = compilation_cache.folder()
    monkeypatch.setattr(compilation_cache.native_isa, "cpu", lambda: "another")
    assert compilation_cache.folder() != own


def test_a_folder_that_cannot_be_made_costs_nothing(here: Path) -> None:
    here.write_text("a file")
    assert compilation_cache.enable() is None


def test_what_is_too_much_goes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compilation_cache.enable()
    assert folder is not None
    monkeypatch.setattr(compilation_cache, "is_complete_entry", lambda data: data == b"whole")
    old = time.time() - 1000
    for name, data in (("a", b"whole"), ("b", b"who"), ("c", b"old and looked at")):
        (folder / f"{name}-cache").write_bytes(data)
    os.utime(folder / "c-cache", (old, old))
    compilation_cache.enable()
    assert sorted(path.name for path in folder.glob("*-cache")) == ["a-cache", "c-cache"]
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 10)
    compilation_cache.enable()
    assert not list(folder.glob("*-cache"))
