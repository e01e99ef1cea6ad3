"""The optimizer of the dense parameters: optax, from a small config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from rec_jax.model.tuning import EVERYTHING, Tuning, scale_by_path
from rec_jax.ranges import above, at_least, below, check

LEAST_EPS = 1e-30
"""Of Adam: less is 0 in f32, and a gradient that was always 0 would be divided by 0."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer.

    rate: peak learning rate.
    schedule: after the warm-up, stay constant or follow a cosine to `final * rate`.
    warmup: steps of linear growth from 0.
    final: rate at the end of a cosine, as a share of the peak.
    b1, b2, eps: of Adam.
    weight_decay: decoupled (AdamW), on matrices of the encoder only.
    clip: largest global norm of the gradient; none by default.
    """

    rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 100
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        check(self, "optimizer.", rate=above(0), warmup=at_least(0), final=at_least(0, 1),
              b1=below(0, 1), b2=below(0, 1), eps=at_least(LEAST_EPS, 1e6),
              weight_decay=at_least(0, 1e6), clip=above(0))


def schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or cosine over `total_steps`."""
    if config.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(config.rate)
    else:
        steps = max(1, total_steps - config.warmup)
        after = optax.cosine_decay_schedule(config.rate, steps, alpha=config.final)
    if not config.warmup:
        return after
    # The first update must move: step 0 has rate / warmup, not 0.
    start = config.rate / config.warmup
    ramp = optax.linear_schedule(start, config.rate, max(1, config.warmup - 1))
    return optax.join_schedules([ramp, after], [config.warmup])


def dense_optimizer(config: OptimizerConfig, total_steps: int, tuning: Tuning = EVERYTHING
                    ) -> optax.GradientTransformation:
    """Adam(W) over a pytree of parameters.

    Weight decay touches arrays of two and more dimensions, never the rows of tables (which are in
    the tree under `tables` when they train densely) and never norms or biases. It is a part of the
    update, on which `tuning` has its factors; what is frozen is not in the tree.
    """
    rate = schedule(config, total_steps)
    steps = [optax.clip_by_global_norm(config.clip)] if config.clip is not None else []
    steps.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_matrices))
    steps.append(optax.scale_by_learning_rate(rate))
    if tuning.rates:
        steps.append(scale_by_path(tuning))
    return optax.chain(*steps)


def _matrices(params: dict[str, Any]) -> dict[str, Any]:
    return {name: jax.tree.map(lambda leaf, rows=name == "tables": not rows and leaf.ndim >= 2,
                               tree)
            for name, tree in params.items()}
