"""In-batch negatives: the labels of a step are each other's negatives, corrected for popularity.

No row is drawn that the step does not have anyway. A popular item is a label, and so a negative,
more often; `objectives.negatives` weighs it by the number of times that was to be expected,
N q_j with q_j its share of all labels of the data (the logQ correction: Bengio & Senecal, 2008;
for recommenders Yi et al., RecSys 2019). The label itself is in the sum once, uncorrected: it is
there for certain. Items that are never a label are never a negative: against them nothing is
learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from rec_jax.errors import InputError
from rec_jax.objectives import negatives as drawing
from rec_jax.objectives.base import Batch, Catalogue, Keys, Needs, Task, check_backend
from rec_jax.objectives.sampled import NextItemAgainstDrawn, against
from rec_jax.ranges import above, check


@dataclass(frozen=True)
class Config(NextItemAgainstDrawn):
    """Settings of the objective.

    scale: factor on every score.
    backend: of the kernel: auto, or one of `rec_jax.kernels.dispatch.BACKENDS`.
    """

    kind: str = "in_batch"
    scale: float = 1.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "objective.", scale=above(0, 1e6))
        check_backend(self.backend)

    @property
    def needs(self) -> Needs:
        """The correction is by the frequencies of the data."""
        return Needs(labels=True, log_q=True)

    def drawn(self, positions: int) -> int:
        """One row a position: its label."""
        return positions

    def pairs(self, positions: int, num_items: int) -> int:
        """Every position is scored against every label."""
        del num_items
        return positions**2

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Next items, against the labels of all positions of the step, over all micro-batches and
        devices.

        Raises:
          InputError: the batch has no log_q.
        """
        if "log_q" not in batch:
            raise InputError("objective 'in_batch' needs batches with log_q, the log of each "
                             "target's share of all labels; see rec_jax.data.label_frequency")
        task = super().plan(batch, keys, num_items)
        return against(task, drawing.in_batch(task.targets.reshape(-1), task.weights.reshape(-1),
                                              batch["log_q"].reshape(-1)))

    def loss(self, queries: jax.Array, task: Task, catalogue: Catalogue) -> jax.Array:
        """f32 `[N]` from queries `[N, d]`; see `negatives.sampled_softmax`."""
        return drawing.sampled_softmax(queries, task, catalogue, scale=self.scale,
                                       backend=self.backend)
