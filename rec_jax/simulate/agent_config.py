"""The config of a run that learns by playing in an environment: `[environment]` in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rec_jax import config
from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig
from rec_jax.model.encoders import ENCODERS, uses_times, uses_users
from rec_jax.model.optimizer import OptimizerConfig
from rec_jax.objectives import OBJECTIVES
from rec_jax.ranges import at_least, between, check
from rec_jax.run import RunConfig
from rec_jax.run_sections import CheckpointConfig, DataConfig, TrainConfig
from rec_jax.simulate.acting import ActingConfig
from rec_jax.simulate.environments import ENVIRONMENTS
from rec_jax.simulate.replay import ReplayConfig
from rec_jax.tables import TableConfig

REWARD = "reward"
"""The name of the rewards that an environment gives; there are no other values."""


@dataclass(frozen=True)
class AgentTrainConfig:
    """How long a run plays and learns.

    steps: of the run; in each episodes are played, and updates made.
    precision: compute type of the encoder and of the scores; parameters stay f32.
    ema: decay of the moving average of all weights, which is evaluated, and which is the target
      network of Q-learning; none by default.
    evaluate_every: steps between evaluations (and checkpoints).
    episodes: users that an evaluation plays.
    checkpoint_every: steps between further checkpoints; none: at evaluations only.
    log_every: steps between lines of metrics.jsonl.
    """

    steps: int = 200
    precision: Literal["f32", "bf16"] = "f32"
    ema: float | None = None
    evaluate_every: int = 50
    episodes: int = 256
    checkpoint_every: int | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        check(self, "train.", steps=at_least(1), ema=between(0, 1), evaluate_every=at_least(1),
              episodes=at_least(2), checkpoint_every=at_least(1), log_every=at_least(1))


@dataclass(frozen=True)
class AgentConfig:
    """Everything that decides the numbers of such a run. The parts that a run on a dataset has too
    mean what they mean there (`RunConfig`).

    seed: of all that is drawn: first values, users, what is shown.
    """

    environment: Any = config.choice(ENVIRONMENTS, "choc_kale")  # noqa: RUF009 (makes a field)
    acting: ActingConfig = field(default_factory=ActingConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    table: TableConfig = field(default_factory=TableConfig)
    encoder: Any = config.choice(ENCODERS, "bag")  # noqa: RUF009
    objective: Any = config.choice(OBJECTIVES, "policy_gradient")  # noqa: RUF009
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: AgentTrainConfig = field(default_factory=AgentTrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "", seed=at_least(0, 2**32 - 1))
        needs, kind = self.objective.needs, self.objective.kind
        if not set(needs.values) <= {REWARD} or needs.log_q or needs.histories:
            raise InputError(f"objective {kind!r} asks for what an environment does not give; "
                             f"expected one that asks for values/{REWARD} at most")
        if not self.objective.causal or uses_times(self.encoder) or uses_users(self.encoder):
            raise InputError("an environment has neither times nor users that one knows, and what "
                             "comes is not known; expected an encoder that reads items, and an "
                             "objective that predicts what is next")
        if needs.ranks is not None:
            raise InputError("objective.ranks_by = 'value' is of runs on a dataset; expected "
                             "'softmax', or objective.kind = 'q_learning' to act by values")
        if self.checkpoint.full_every != 1:
            raise InputError("checkpoint.full_every is of runs on a dataset; expected 1")
        if not self.replay.capacity and self.replay != ReplayConfig():
            raise InputError("[replay] has settings of a store that the run does not have; "
                             "expected replay.capacity above 0")
        if self.replay.capacity and self.replay.capacity < max(
                self.acting.episodes, self.replay.begin):
            raise InputError(f"replay.capacity is {self.replay.capacity}; expected room for "
                             "acting.episodes and for replay.begin")

    @property
    def rows(self) -> int:
        """Episodes of an update."""
        return self.replay.rows if self.replay.capacity else self.acting.episodes

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self.train.steps * (self.replay.updates if self.replay.capacity else 1)

    def as_run(self, horizon: int) -> RunConfig:
        """What such a run has in common with one on a dataset whose histories are episodes."""
        return RunConfig(
            DataConfig("", length=horizon, pack=False), self.table, self.encoder, self.objective,
            self.optimizer, TrainConfig(rows=self.rows, steps=self.updates, ema=self.train.ema,
                                        precision=self.train.precision),
            checkpoint=self.checkpoint, mesh=self.mesh, seed=self.seed)
