"""Compiled programs of the command line, kept for its next start.

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

from rec_jax.compat import PROGRAMS_MAY_BE_KEPT, is_whole_program
from rec_jax.devices import cores_allowed
from rec_jax.kernels.native import cache as native_cache
from rec_jax.kernels.native import isa as native_isa

VARIABLE = "REC_JAX_PROGRAMS"
MOST_BYTES = 1 << 30
"""What the folder may hold; one that holds more is emptied."""
_ENDING, _LOOKED = "-cache", "looked"


def keep_programs() -> Path | None:
    """Keep what this process compiles, and use what others kept; gives the folder, or None.

    For programs alone: it is a setting of the whole process. Nothing is kept where the
    environment has JAX's own setting, where `$REC_JAX_PROGRAMS` is off, where there is no folder
    of ours, and with versions of JAX for which that is not known to be safe.
    """
    if not allowed():
        return None
    try:
        found = native_cache.private(folder())
        _look_after(found)
    except OSError:  # such as a disk that is read-only
        return None
    jax.config.update("jax_compilation_cache_dir", str(found))
    # Most programs of a start are small, and all together take as long as the step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What cannot be read is compiled, and what cannot be written is not kept: nobody need act.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    return found


def allowed() -> bool:
    """Whether this version of JAX and the environment let programs be kept."""
    told = any(os.environ.get(name) for name in (
        "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"))
    return PROGRAMS_MAY_BE_KEPT and not told and os.environ.get(VARIABLE, "on") != "off"


def folder() -> Path:
    """Where programs of this CPU, its cores (XLA cuts the work by them), JAX and XLA are kept."""
    about = "\0".join([native_isa.cpu(), str(cores_allowed()), jax.__version__, jaxlib.__version__])
    return native_cache.folder() / f"programs-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def _look_after(folder: Path) -> None:
    """Take away what was cut while it was written, and everything where that is too much.

    JAX writes an entry in place, and never again where its name is taken. What is newer than the
    last look is read once.
    """
    entries = [path for path in folder.iterdir() if path.name.endswith(_ENDING)]
    if sum(path.stat().st_size for path in entries) > MOST_BYTES:
        for path in entries:
            path.unlink(missing_ok=True)
        return
    looked = folder / _LOOKED
    since = looked.stat().st_mtime if looked.exists() else 0.0
    now = time.time()
    for path in entries:
        if path.stat().st_mtime >= since and not is_whole_program(path.read_bytes()):
            path.unlink(missing_ok=True)
    looked.touch()
    os.utime(looked, (now, now))
