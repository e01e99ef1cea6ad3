"""Accelerators by name: what a plan may assume of them.

Figures are those of the makers' public data sheets, per chip, at peak; a plan multiplies them by
the stated efficiencies. Exponentials a second are estimates: 16 a clock and multiprocessor on
NVIDIA, one vector register (8 x 128) a clock and core on TPU.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rec_jax.errors import InputError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device.

    memory: bytes; bf16, f32: matrix operations a second; bandwidth: bytes a second to memory;
    link: bytes a second in each direction to other devices; exps: exponentials a second.
    """

    name: str
    memory: float
    bf16: float
    f32: float
    bandwidth: float
    link: float
    exps: float


CHIPS: dict[str, Chip] = {
    chip.name: chip for chip in (
        Chip("v4", 32 * GIB, 275e12, 46e12, 1.2e12, 150e9, 2.1e12),
        Chip("v5e", 16 * GIB, 197e12, 33e12, 0.82e12, 100e9, 1.5e12),
        Chip("v5p", 95 * GIB, 459e12, 77e12, 2.77e12, 300e9, 3.6e12),
        Chip("v6e", 32 * GIB, 918e12, 153e12, 1.64e12, 224e9, 1.7e12),
        Chip("a100", 80e9, 312e12, 19.5e12, 2.0e12, 300e9, 2.4e12),
        Chip("h100", 80e9, 989e12, 67e12, 3.35e12, 450e9, 3.9e12),
        Chip("h200", 141e9, 989e12, 67e12, 4.8e12, 450e9, 3.9e12),
    )
}

MATMUL_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.7
USABLE_MEMORY = 0.92


@dataclass(frozen=True)
class Devices:
    """Some devices of one kind. topology: as TPUs are cut, such as `4x4x4`, else empty."""

    chip: Chip
    count: int
    topology: str = ""

    def __str__(self) -> str:
        if self.chip.name == "cpu":
            return "cpu"
        return (f"{self.chip.name}:{self.topology}" if self.topology
                else f"{self.chip.name}x{self.count}")


def parse_devices(text: str) -> Devices:
    """`v5p:4x4x4` (a TPU slice), `h100x8` or `h100` (so many devices), `cpu` (this machine).

    Raises:
      InputError: no such device.
    """
    text = text.strip().lower()
    if text == "cpu":
        return Devices(this_machine(), 1)
    found = re.fullmatch(r"(?P<name>[a-z]\w*?)(:(?P<grid>\d+(x\d+)*)|x(?P<count>\d+))?", text)
    name = found["name"] if found else text
    if found is None or name not in CHIPS:
        hint = did_you_mean(name, CHIPS, cutoff=0.3)
        raise InputError(f"devices {text!r} are unknown{hint}; expected such as v5p:4x4x4, h100x8 "
                         f"or cpu, with one of {', '.join(CHIPS)}")
    grid = found["grid"] or ""
    count = math.prod(map(int, grid.split("x"))) if grid else int(found["count"] or 1)
    if count < 1:
        raise InputError(f"devices {text!r} are {count} devices; expected at least 1")
    return Devices(CHIPS[name], count, grid)


def this_machine() -> Chip:
    """The CPU here: its memory, and rates that an AVX2 core reaches in XLA's matrix products."""
    cores = os.cpu_count() or 1
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    rate = cores * 60e9
    return Chip("cpu", memory, rate, rate, 20e9, 20e9, cores * 0.4e9)


def cores_allowed() -> int:
    """Cores that this process may use."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1


def free_host_memory() -> int | None:
    """Bytes that the host, and a control group around this process, can still give; None where
    the system does not say."""
    memory, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not memory.exists():
        return None
    free = _entries(memory)["MemAvailable:"] * 1024
    limit = group / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        used = int((group / "memory.current").read_text())
        free = min(free, int(most) - used + _entries(group / "memory.stat")["inactive_file"])
    return max(0, free)


def _entries(path: Path) -> dict[str, int]:
    """A file of lines such as `MemAvailable: 123 kB`."""
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}
