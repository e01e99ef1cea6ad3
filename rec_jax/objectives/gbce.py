"""Generalised binary cross-entropy: the label's probability is raised to a power (gSASRec).

    loss_i = (-log sigmoid(s_iy)^b - sum over drawn j of log(1 - sigmoid(s_ij))) / (k + 1)
    a = k / (V - 1),   b = a (t (1 - 1 / a) + 1 / a) = 1 - t (1 - a)

A negative is met with probability a only, so a model trained by `bce` sees too few of them and
puts all its probabilities near 1. With t = 1 that is made up for exactly; t = 0 is `bce`; the
authors take t = 0.75 and hundreds of negatives (Petrov & Macdonald, RecSys 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from rec_jax.objectives import bce
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config(bce.Config):
    """Settings of the objective: those of `bce`, and

    t: calibration, from 0 (`bce`) to 1 (the share of negatives is made up for).
    """

    kind: str = "gbce"
    count: int = 256
    t: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "objective.", t=at_least(0, 1))

    def positive_weight(self, num_items: int) -> float:
        """The power b, which a logarithm turns into a factor."""
        share = min(1.0, self.count / max(num_items - 1, 1))
        return 1.0 - self.t * (1.0 - share)
