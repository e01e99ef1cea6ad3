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

from rec_jax.files import write_whole
from rec_jax.jsons import dumps

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "polars", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes, accelerators; no host names."""
    import jax

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = [device.device_kind for device in jax.devices()]
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": memory, "devices": devices}


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


def record(path: Path | str, payload: Mapping[str, Any]) -> Path:
    """Stamp `payload` with machine, versions, command and date; write it whole or not at all."""
    path = Path(path)
    stamped = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": machine(),
        "versions": versions(),
        **payload,
    }
    write_whole(path, dumps(stamped, indent=1) + "\n")
    return path
