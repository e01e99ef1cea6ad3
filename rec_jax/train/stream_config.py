"""The config of a run that learns from interactions as they come: `[stream]` in its file."""

from __future__ import annotations

from dataclasses import dataclass, field

from rec_jax.data.periods import PeriodsConfig
from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig
from rec_jax.metrics import check_asked
from rec_jax.ranges import at_least, check
from rec_jax.run_sections import CheckpointConfig
from rec_jax.train.stream import StreamConfig


@dataclass(frozen=True)
class StreamEvaluateConfig:
    """How a period is tested before it is learnt. Every item that has a row competes, also those
    that a user had before: a stream keeps no histories.

    ks: cut-offs of HR, NDCG and MRR.
    metric: what lines for people show, and the summary.
    interactions: how many of a period are tested, drawn by the seed; none: all; 0: none are.
    batch: interactions ranked at once; it changes speed only.
    """

    ks: tuple[int, ...] = (5, 10, 20)
    metric: str = "ndcg@10"
    interactions: int | None = 10_000
    batch: int = 512

    def __post_init__(self) -> None:
        check(self, "evaluate.", ks=at_least(1, 2**62), interactions=at_least(0),
              batch=at_least(1, 2**20))
        check_asked(self.ks, self.metric)


@dataclass(frozen=True)
class StreamRunConfig:
    """Everything that decides the numbers of a run of a stream.

    data: where interactions come from; stream: the model, and which ids have rows.
    """

    data: PeriodsConfig = field(default_factory=PeriodsConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    evaluate: StreamEvaluateConfig = field(default_factory=StreamEvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        table, plain = self.stream.table, CheckpointConfig()
        for key, wrong, wanted in (
                ("update", table.update not in ("auto", "sparse"), "'sparse'"),
                ("placement", table.placement not in ("auto", "device"), "'device'"),
                ("tied", not table.tied, "true"), ("cache", table.cache is not None, "none"),
                ("part", table.part is not None, "none")):
            if wrong:
                raise InputError(f"stream.table.{key} is {getattr(table, key)!r}, and rows of a "
                                 f"stream lie on the devices and train sparse; expected {wanted}")
        if self.checkpoint.full_every != plain.full_every:
            raise InputError("checkpoint.full_every is of runs on a dataset; expected 1")
        if self.stream.positions % (devices := self.mesh.data * self.mesh.items):
            raise InputError(f"stream.positions is {self.stream.positions}, which {devices} "
                             "devices (mesh) cannot share; expected a multiple")
