"""The instructions that the `native` library is built for: this CPU's, or fewer of them.

`$REC_JAX_NATIVE_ISA` names them, so that a newer machine can test and time what an older one
runs. `cpp/machine.h` turns them into a width and a block of registers.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "REC_JAX_NATIVE_ISA"


@dataclass(frozen=True)
class Isa:
    """flags: of the compiler; needs: what the CPU's list of features must hold."""

    flags: tuple[str, ...]
    needs: tuple[str, ...] = ()


_X86 = {
    "native": Isa(("-march=native",)),
    "amx": Isa(("-march=native",), ("amx_bf16", "avx512f")),
    "avx512": Isa(("-march=native", "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
                  ("avx512f",)),
    "avx2": Isa(("-march=x86-64-v3", "-mtune=native"), ("avx2", "fma")),
    "sse": Isa(("-march=x86-64-v2", "-mtune=native"), ("sse4_2",)),
    # The code of AVX-512 on any CPU: as exact, and slow. For tests.
    "wide": Isa(("-march=native", "-DREC_JAX_WIDE")),
}
_ARM = {
    "native": Isa(("-mcpu=native",)),
    "neon": Isa(("-mcpu=native",)),
    "wide": Isa(("-mcpu=native", "-DREC_JAX_WIDE")),
}


def known() -> dict[str, Isa]:
    """What can be asked for on this kind of CPU, by name."""
    return _ARM if platform.machine() in ("arm64", "aarch64") else _X86


def chosen() -> tuple[str, Isa]:
    """The name and flags that `$REC_JAX_NATIVE_ISA` asks for, by default this CPU's own.

    Raises:
      OSError: no such name, or a CPU that lacks the instructions; the message is one line.
    """
    name = os.environ.get(VARIABLE) or "native"
    if name not in known():
        raise OSError(f"${VARIABLE} is {name!r}; expected one of {', '.join(known())}")
    isa, here = known()[name], features()
    missing = [need for need in isa.needs if here and need not in here]
    if missing:
        raise OSError(f"${VARIABLE} is {name!r}, and this CPU has no {' and no '.join(missing)}")
    return name, isa


def features() -> set[str]:
    """The CPU's features by the names of Linux; empty where the system does not tell."""
    return {word for line in _cpuinfo() if line.startswith(("flags", "Features"))
            for word in line.partition(":")[2].split()}


def cpu() -> str:
    """Model and features of the CPU, as far as the system tells."""
    kept = [line for line in _cpuinfo() if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(sorted(set(kept))) or platform.processor()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
