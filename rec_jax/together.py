"""What the processes of a job decide together, so that none goes on where another was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec_jax.errors import InputError

_MOST_BYTES = 4096

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """`work()`, which every process calls; where one of them is refused, all are.

    Raises:
      InputError: its own, or in one line that of the first process that was refused.
    """
    if not several():
        return work()
    try:
        found, said = work(), ""
    except InputError as error:
        problem, said = error, str(error) or type(error).__name__
    others = of_all(said)
    if said:
        raise problem
    for number, line in enumerate(others):
        if line:
            raise InputError(f"process {number} of the run was refused: {line}")
    return found


def of_first(text: str) -> str:
    """What process 0 calls it with, in every process."""
    if not several():
        return text
    return _text(np.asarray(multihost_utils.broadcast_one_to_all(_bytes(text))))


def of_all(text: str) -> list[str]:
    """What each process calls it with, in order."""
    if not several():
        return [text]
    return [_text(row) for row in np.asarray(multihost_utils.process_allgather(_bytes(text)))]


def wait_for_all(name: str) -> None:
    """Returns when every process has come here, each with the same `name`."""
    if several():
        multihost_utils.sync_global_devices(name)


def several() -> bool:
    """Whether there are other processes; no device is opened for a run that has none."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _bytes(text: str) -> np.ndarray:
    data = np.frombuffer(text.encode()[:_MOST_BYTES], np.uint8)
    return np.pad(data, (0, _MOST_BYTES - len(data)))


def _text(data: np.ndarray) -> str:
    return data.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")
