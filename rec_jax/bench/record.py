"""Write a benchmark's JSON with everything that is needed to run it again."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rec_jax.errors import InputError
from rec_jax.files import check_path, write_atomic
from rec_jax.jsons import dumps

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "polars", "torch")


_CAPS = ("REC_JAX_NATIVE_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
         "MKL_ENABLE_INSTRUCTIONS")


def about_machine() -> dict[str, Any]:
    """Processor, its instructions and what holds programs to lesser ones, cores, memory in bytes,
    accelerators; no host names."""
    import jax

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        cpu = names[0] if names else cpu
    flags = _flags(info)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = [device.device_kind for device in jax.devices()]
    return {"cpu": cpu, "isa": _isa(flags), **_caps(), "cores": os.cpu_count(),
            "memory_bytes": memory, "devices": devices}


def _flags(info: Path) -> set[str]:
    """What the system says of the processor's instructions; empty where it says nothing."""
    if not info.exists():
        return set()
    lines = [line for line in info.read_text().splitlines()
             if line.startswith(("flags", "Features"))]
    return set(lines[0].split(":", 1)[1].split()) if lines else set()


def _isa(flags: set[str]) -> str:
    """The widest vector instructions, which a speed on a CPU depends on most."""
    named = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "asimd": "neon"}
    return next((name for flag, name in named.items() if flag in flags), platform.machine())


def _caps() -> dict[str, dict[str, str]]:
    """Settings that hold programs to lesser instructions than the processor has."""
    found = {name: os.environ[name] for name in _CAPS if name in os.environ}
    xla = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "max_isa" in flag]
    if xla:
        found["XLA_FLAGS"] = " ".join(xla)
    return {"held_to": found} if found else {}


def versions() -> dict[str, str]:
    """Python and the installed packages that decide speed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command as a user would type it: no interpreter, absolute paths by their last part."""
    first = Path(sys.argv[0])
    script = first.name if first.suffix != ".py" else os.path.relpath(first)
    name = f"python {script}" if script.endswith(".py") else script
    return shlex.join([*name.split(), *map(without_folders, sys.argv[1:])])


def without_folders(argument: str) -> str:
    """`argument` with absolute paths cut to their last part: a record names no machine."""
    return re.sub(r"(^|=|=['\"])/(?:[^/\s='\"]+/)+", r"\1", argument)


def json_path(out: Path | str) -> Path:
    """Where a record goes, asked before it is measured; a table and a plot may go beside it.

    Raises:
      InputError: the name is that of the table or of the plot, which would replace it.
    """
    path = check_path(out)
    if path.is_dir():
        raise InputError(f"--out is {path}, which is a folder; expected the name of a JSON file")
    if path.suffix in (".md", ".png"):
        raise InputError(f"--out is {path}; expected a name such as {path.with_suffix('.json')}, "
                         "beside which a table (.md) and a plot (.png) go")
    return path


def record(path: Path | str, payload: Mapping[str, Any], *,
           machine: Mapping[str, Any] | None = None) -> Path:
    """Stamp `payload` with machine, versions, command and date; write it whole or not at all.

    machine: where the figures were taken, if not by this process; asking opens the device.
    """
    path = Path(path)
    stamped = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": about_machine() if machine is None else dict(machine),
        "versions": versions(),
        **payload,
    }
    write_atomic(path, dumps(stamped, indent=1) + "\n")
    return path
