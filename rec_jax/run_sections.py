"""Sections of a run's config that no other part has: data, training, checkpoints, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rec_jax.errors import InputError
from rec_jax.metrics import RATING_METRICS, check_asked
from rec_jax.ranges import above, at_least, between, check

MOST_FULL_EVERY = 512
"""Longest chain of checkpoints that build on each other; each costs a reader some files."""


@dataclass(frozen=True)
class DataConfig:
    """What a step reads.

    path: dataset folder made by `rec-jax prepare`, relative to the current folder.
    length: positions in a row, L; also the longest history that the encoder sees.
    pack: several users share a row; otherwise one user a row, padded at the end.
    window: a long history gives its last L targets, or all of them in chunks of L.
    targets: types of events that are labels, such as ["purchase"]; the others are only read.
      Empty: all are labels.
    """

    path: str
    length: int = 200
    pack: bool = True
    window: Literal["last", "chunks"] = "last"
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self, "data.", length=at_least(1))


@dataclass(frozen=True)
class TrainConfig:
    """How long and how the step runs.

    rows: rows of `data.length` positions in a step, B.
    accumulate: micro-batches a step; each holds B / accumulate rows.
    epochs: passes over the data; a fraction is allowed.
    steps: overrides `epochs` where given.
    precision: compute type of the encoder and of the scores; parameters stay f32.
    ema: decay of the moving average of all weights, used for evaluation; none by default.
    evaluate_every: epochs between validations (and checkpoints).
    patience: validations without improvement before training stops; none: never.
    checkpoint_every: steps between further checkpoints; none: at validations only.
    log_every: steps between lines of metrics.jsonl.
    lookahead: steps whose batches are made ahead, and of a table whose rows do not lie on the
      devices what moves for them; it changes speed only.
    """

    rows: int = 64
    accumulate: int = 1
    epochs: float = 20.0
    steps: int | None = None
    precision: Literal["f32", "bf16"] = "f32"
    ema: float | None = None
    evaluate_every: float = 1.0
    patience: int | None = 5
    checkpoint_every: int | None = None
    log_every: int = 20
    lookahead: int = 2

    def __post_init__(self) -> None:
        check(self, "train.", rows=at_least(1), accumulate=at_least(1), epochs=above(0, 1e9),
              steps=at_least(1), ema=between(0, 1), evaluate_every=above(0, 1e9),
              patience=at_least(0), checkpoint_every=at_least(1), log_every=at_least(1),
              lookahead=at_least(0, 1024))
        if self.rows % self.accumulate:
            raise InputError(f"train.rows = {self.rows} cannot be cut into train.accumulate = "
                             f"{self.accumulate} equal micro-batches")


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints stay, and what saving may use.

    keep: latest checkpoints that stay; the best one stays too.
    keep_every: checkpoints whose step it divides stay as well; none: no others.
    copy_mib: a state of at most so many MiB in host memory is copied there; a larger one is
      frozen by a forked process, on Linux. Accelerators copy in their own memory. Either way the
      state is written behind the training; where there is no room, the training waits.
    growth_mib: the training waits as well where what it changes before a frozen state is written
      may take more MiB than these: the whole state, a quarter of it for a sparse table; none: as
      much as is free.
    full_every: of a sparse table, each so many-th checkpoint is full, and those between hold the
      rows touched since the one before; 1: all are full; at most 512.
    delta_values: how those rows are written: exact, or rounded to bfloat16 or int8, which a
      resumed run then goes on from; the state of their optimizer is always exact.
    """

    keep: int = 2
    keep_every: int | None = None
    copy_mib: int = 256
    growth_mib: int | None = None
    full_every: int = 1
    delta_values: Literal["exact", "bfloat16", "int8"] = "exact"

    def __post_init__(self) -> None:
        check(self, "checkpoint.", keep=at_least(1), keep_every=at_least(1),
              copy_mib=at_least(0), growth_mib=at_least(0), full_every=at_least(1, MOST_FULL_EVERY))


@dataclass(frozen=True)
class EvaluateConfig:
    """The protocol of evaluation: full ranking, ties count against the target.

    ks: cut-offs of HR and NDCG.
    filter_seen: items of the history cannot be recommended again.
    seen_targets: with it, a target that stands in its user's history is a miss, whatever the
      model scores, or its user is left out and counted.
    filter_cold: items that the training part does not have do not compete, and users whose
      target is such an item are left out and counted.
    metric: decides early stopping and the best checkpoint, such as `ndcg@10`, or of a model of
      ratings `rmse`, `mae` or (of two ratings) `auc`.
    batch: users ranked at once; it changes speed only.
    event: targets are events of this type, the first one of a user in the split, after everything
      before it; users without one are not evaluated. None: of any type.
    users: validate on the first so many users of a seeded shuffle; none: all.
    cold_users: users with nothing before the split are evaluated, in the place of those who have a
      history: a run with `[begin]` asks for them by their attributes.
    """

    ks: tuple[int, ...] = (5, 10, 20)
    filter_seen: bool = True
    seen_targets: Literal["miss", "leave_out"] = "miss"
    filter_cold: bool = False
    metric: str = "ndcg@10"
    batch: int = 512
    users: int | None = None
    event: str | None = None
    cold_users: bool = False

    def __post_init__(self) -> None:
        check(self, "evaluate.", ks=at_least(1, 2**62), batch=at_least(1), users=at_least(1))
        check_asked(self.ks, self.metric, RATING_METRICS)
