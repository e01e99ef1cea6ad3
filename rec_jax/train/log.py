"""What a run writes while it trains: `metrics.jsonl` and TensorBoard events.

A line of `metrics.jsonl` is one JSON object with `kind` ("train" or "valid"), `step`, `epoch`,
`seconds` (of training so far, over all starts of the run) and the figures; "valid" lines, and the
"new" one of a run that goes on from another (`rec_jax.train.continuing`), have the `protocol` that
they were measured under, too. A resumed run drops
the lines past the checkpoint that it goes on from, so the file reads as if it never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from rec_jax.files import write_atomic
from rec_jax.jsons import dumps
from rec_jax.run import Run


class MetricsLog:
    """Appends lines; a context manager."""

    def __init__(self, run: Run, *, first_step: int, primary: bool = True) -> None:
        """first_step: updates done before this start; later lines of an earlier start go.
        primary: whether this process is the one that writes."""
        self._primary = primary
        self.path = run.metrics_path
        if primary:
            keep_until(run.metrics_path, first_step)
            self._file = run.metrics_path.open("a")
            self._events = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._primary:
            self._file.close()
            self._events.close()

    def write(self, kind: str, step: int, figures: Mapping[str, Any],
              about: Mapping[str, Any] | None = None) -> None:
        """One line, flushed, and one scalar event a figure.

        about: what stands in the line beside the figures.
        """
        if not self._primary:
            return
        self._file.write(dumps({"kind": kind, "step": step, **figures, **(about or {})}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a line that was cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line:
            lines.append(line)
    return lines


def keep_until(path: Path, step: int) -> None:
    """Rewrite a metrics file without the lines past `step`."""
    lines = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomic(path, "".join(dumps(line) + "\n" for line in lines))
