"""The compilation cache of the command line: compiled programs, for its next start.

XLA compiles for longer than most of what a short command does. JAX keeps what it compiled in a
folder, and reads it again where program, options and versions are the same. What is read there
runs as us, so the folder is one that only we may write (`kernels/native/cache.py`), and it is that
of this CPU, since a compiled program may use all of its instructions.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from pathlib import Path

import jax
import jaxlib

from rec_jax.compat import CACHE_IS_SAFE, is_complete_entry
from rec_jax.devices import cores_allowed
from rec_jax.kernels.native import cache as native_cache
from rec_jax.kernels.native import isa as native_isa

VARIABLE = "REC_JAX_PROGRAMS"
MOST_BYTES = 1 << 30
"""Most bytes of the folder; a larger one is emptied."""
_SUFFIX, _CHECKED = "-cache", "looked"


def enable() -> Path | None:
    """Store what this process compiles and use what others stored; returns the folder, or None.

    Only a program may call it: it is a setting of the whole process. Nothing is stored where the
    environment has JAX's own setting, where `$REC_JAX_PROGRAMS` is off, where there is no private
    folder, and with versions of JAX for which that is not known to be safe.
    """
    if not is_allowed():
        return None
    try:
        found = native_cache.private(folder())
        _clean(found)
    except OSError:  # such as a disk that is read-only
        return None
    jax.config.update("jax_compilation_cache_dir", str(found))
    # Most programs of a start are small, and all together take as long as the step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What cannot be read is compiled, and what cannot be written is not stored: no user need act.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    return found


def is_allowed() -> bool:
    """Whether this version of JAX and the environment allow the cache."""
    told = any(os.environ.get(name) for name in (
        "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"))
    return CACHE_IS_SAFE and not told and os.environ.get(VARIABLE, "on") != "off"


def folder() -> Path:
    """The folder of this CPU, its cores (XLA divides work by them), JAX and XLA."""
    about = "\0".join([native_isa.cpu(), str(cores_allowed()), jax.__version__, jaxlib.__version__])
    return native_cache.folder() / f"programs-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def _clean(folder: Path) -> None:
    """Delete entries that are incomplete, and all entries where they are too many.

    JAX writes an entry in place, and never again where its name exists. Entries that are newer
    than the last check are read once.
    """
    entries = [path for path in folder.iterdir() if path.name.endswith(_SUFFIX)]
    if sum(path.stat().st_size for path in entries) > MOST_BYTES:
        for path in entries:
            path.unlink(missing_ok=True)
        return
    checked = folder / _CHECKED
    since = checked.stat().st_mtime if checked.exists() else 0.0
    now = time.time()
    for path in entries:
        if path.stat().st_mtime >= since and not is_complete_entry(path.read_bytes()):
            path.unlink(missing_ok=True)
    checked.touch()
    os.utime(checked, (now, now))
