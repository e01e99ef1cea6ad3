"""What the processes of a run do in agreement: either all go on, or all are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec_jax.errors import InputError

_MOST_BYTES = 4096

T = TypeVar("T")


def run_on_all(work: Callable[[], T]) -> T:
    """`work()`, which every process calls; where one of them raises InputError, all do.

    Raises:
      InputError: its own, or in one line that of the first process that was refused.
    """
    if not is_distributed():
        return work()
    try:
        found, said = work(), ""
    except InputError as error:
        problem, said = error, str(error) or type(error).__name__
    others = gather_texts(said)
    if said:
        raise problem
    for number, line in enumerate(others):
        if line:
            raise InputError(f"process {number} of the run was refused: {line}")
    return found


def broadcast_text(text: str) -> str:
    """The text of process 0, in every process."""
    if not is_distributed():
        return text
    return _text(np.asarray(multihost_utils.broadcast_one_to_all(_bytes(text))))


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in order."""
    if not is_distributed():
        return [text]
    return [_text(row) for row in np.asarray(multihost_utils.process_allgather(_bytes(text)))]


def barrier(name: str) -> None:
    """Return when every process has called this, each with the same `name`."""
    if is_distributed():
        multihost_utils.sync_global_devices(name)


def is_distributed() -> bool:
    """Whether there are other processes; it opens no device where there are none."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _bytes(text: str) -> np.ndarray:
    data = np.frombuffer(text.encode()[:_MOST_BYTES], np.uint8)
    return np.pad(data, (0, _MOST_BYTES - len(data)))


def _text(data: np.ndarray) -> str:
    return data.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")
