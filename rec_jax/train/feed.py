"""What a step is fed: micro-batches side by side, for the training loop and for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rec_jax.data.batches import BatchStream
from rec_jax.data.label_frequency import of_targets
from rec_jax.train.mode import Batch


def whole_batches(stream: BatchStream, accumulate: int,
                  log_share: npt.NDArray[np.float32] | None) -> Iterator[tuple[Batch, int]]:
    """The next `accumulate` batches as one, `[A, B, L]`, and the number of histories in it.

    log_share: f32 `[V]`; if given, a batch has f32 `log_q`, that of its targets.
    """
    while True:
        parts = [next(stream) for _ in range(accumulate)]
        batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        if log_share is not None:
            batch["log_q"] = of_targets(log_share, batch["targets"])
        yield batch, int(batch["segments"].max(axis=-1).sum())
