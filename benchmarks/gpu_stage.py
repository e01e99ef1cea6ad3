"""One stage of `gpu_softmax.py` in a process of its own, so that a hang costs no other stage.

    python benchmarks/gpu_stage.py KIND '{"name": ..., "shape": [N, V, d], ...}'

Each finding is one line on stdout as soon as it is known: `FOUND {"key": ..., "value": ...}`. A
part that fails is found with its error, and the next part runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

MARK = "FOUND "

Parts = Iterator[tuple[str, Callable[[], Any]]]


def device(_: dict[str, Any]) -> Parts:
    """What the machine is; the driver itself never opens the device."""
    import jax

    from rec_jax.bench import record as bench_record

    def look() -> dict[str, Any]:
        found = jax.devices()[0]
        return {"platform": found.platform, "machine": bench_record.about_machine(),
                "memory": (found.memory_stats() or {}).get("bytes_limit", 16e9)}

    yield "", look


def oracle(given: dict[str, Any]) -> Parts:
    import gpu_checks

    yield from gpu_checks.oracle(given["name"], given["d"], given["seed"])


def scale(given: dict[str, Any]) -> Parts:
    import gpu_checks
    from gpu_times import Shape

    yield "", lambda: gpu_checks.at_scale(given["name"], Shape(*given["shape"]))


def ceilings(given: dict[str, Any]) -> Parts:
    import gpu_times

    yield "", lambda: gpu_times.measure_ceilings(given["toy"])._asdict()


def time(given: dict[str, Any]) -> Parts:
    import gpu_times

    shape = gpu_times.Shape(*given["shape"])
    measure = gpu_times.time_torch if given.get("torch") else gpu_times.time_jax
    for op in given["ops"]:
        yield op, lambda op=op: measure(given["name"], op, shape)


def tune(given: dict[str, Any]) -> Parts:
    import gpu_times

    yield from gpu_times.tunings(gpu_times.Shape(*given["shape"]))


STAGES = {"device": device, "oracle": oracle, "scale": scale, "ceilings": ceilings,
          "time": time, "tune": tune}


def guarded(part: Callable[[], Any]) -> Any:
    """The result, or one line that says why there is none."""
    try:
        return part()
    except Exception as error:
        line = (str(error).strip() or "no message").splitlines()[0][:200]
        return {"error": f"{type(error).__name__}: {line}"}


def main() -> None:
    kind, given = sys.argv[1], json.loads(sys.argv[2])
    for key, part in STAGES[kind](given):
        print(MARK + json.dumps({"key": key, "value": guarded(part)}), flush=True)


if __name__ == "__main__":
    main()
