"""Where the time before the first step goes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class StartClock:
    """Seconds of each part of a start, in order; compiling is a part of its own.

    A context manager: JAX tells it of what is compiled until it ends.
    """

    def __init__(self, since: float | None = None) -> None:
        """since: `time.perf_counter()` when the program began, where it is one."""
        self.parts: dict[str, float] = {}
        self._last, self._compiled, self._told = time.perf_counter(), 0.0, 0.0
        if since is not None:
            self.parts["imports"] = max(0.0, self._last - since)

    def __enter__(self) -> StartClock:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def mark(self, name: str) -> None:
        """What passed since the last mark was `name`, apart from what compiled."""
        now = time.perf_counter()
        compiled = self._compiled - self._told
        self.parts[name] = self.parts.get(name, 0.0) + max(0.0, now - self._last - compiled)
        self.parts["compiling"] = self.parts.pop("compiling", 0.0) + compiled
        self._last, self._told = now, self._compiled

    def line(self) -> str:
        """`first step after 5.1 s: imports 1.9, ...`"""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"first step after {sum(self.parts.values()):.1f} s: {parts}"

    def figures(self) -> dict[str, float]:
        """The parts in milliseconds' precision."""
        return {name: round(seconds, 3) for name, seconds in self.parts.items()}

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self._compiled += duration_secs


def process_began() -> float:
    """When this process began, on the clock of `time.perf_counter`; as far as the system tells."""
    age = time.process_time()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        found = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        age = found if 0 <= found < 3600 else age
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return time.perf_counter() - age
