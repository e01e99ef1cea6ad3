"""A run: its folder, and the complete config that reproduces it.

    RUN/config.toml      resolved and complete
    RUN/metrics.jsonl    one JSON object a line
    RUN/checkpoints/     see `rec_jax.checkpoint`
    RUN/tensorboard/     event files
    RUN/report.html      curves and figures, written at the end; curves.png beside it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rec_jax import config, locks
from rec_jax.data.attributes import BeginConfig
from rec_jax.data.content import ContentConfig, check_content, check_mode, trained_content
from rec_jax.data.covisits import ItemGraphConfig
from rec_jax.data.dataset_files import META
from rec_jax.data.features import FeatureConfig, Read
from rec_jax.data.fresh import ContinualConfig
from rec_jax.data.segments import Targets
from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig
from rec_jax.metrics import RATING_METRICS
from rec_jax.model.encoders import (
    ENCODERS,
    derives_vectors,
    reads_history,
    sampling_of,
    uses_users,
)
from rec_jax.model.features import check_begin, check_queries
from rec_jax.model.graph_checks import check_graph
from rec_jax.model.lora import LoraConfig
from rec_jax.model.optimizer import OptimizerConfig
from rec_jax.model.tuning import TuneConfig
from rec_jax.objectives import OBJECTIVES
from rec_jax.objectives.full_softmax import FullSoftmax
from rec_jax.ranges import at_least, check, check_different
from rec_jax.run_sections import CheckpointConfig, DataConfig, EvaluateConfig, TrainConfig
from rec_jax.tables import INPUTS, ITEMS, USERS, TableConfig
from rec_jax.tables.bias import BiasConfig
from rec_jax.tables.choose import Choice, Mode, choose_update
from rec_jax.tables.placement import Asked, Placement, choose_placement, row_bytes
from rec_jax.tables.table import padded_size

END_SECONDS = 5.0
"""How long to wait for the lock of a process that may just have been killed."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers.

    features: side features whose vectors are added to the items', each once.
    content: vectors of the items that are a part of their rows, each once.
    begin: learned places in front of every history, of its user's attributes.
    item_graph: neighbours whose rows are a part of an item's, by the histories of training.
    bias: what is added to the score of each item, in the loss and where it is ranked.
    tune: which parameters are frozen, or train slower or faster; lora: thin products beside them.
    inputs, users: of the tables of an untied encoder's inputs, and of users; `table`'s by default.
    continual: the run that this one goes on from, see `rec_jax.train.continuing`.
    seed: of all that is drawn: first values, order, dropout, negatives.
    """

    data: DataConfig
    table: TableConfig = field(default_factory=TableConfig)
    encoder: Any = config.choice(ENCODERS, "transformer")  # noqa: RUF009 (makes a field)
    objective: Any = config.choice(OBJECTIVES, "next_item")  # noqa: RUF009
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    features: tuple[FeatureConfig, ...] = ()
    content: tuple[ContentConfig, ...] = ()
    begin: BeginConfig | None = None
    item_graph: ItemGraphConfig | None = None
    bias: BiasConfig = field(default_factory=BiasConfig)
    tune: tuple[TuneConfig, ...] = ()
    lora: tuple[LoraConfig, ...] = ()
    inputs: TableConfig | None = None
    users: TableConfig | None = None
    continual: ContinualConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "", seed=at_least(0, 2**32 - 1))
        if self.bias.in_loss and not self.objective.needs.normaliser:
            raise InputError(f"bias: objective {self.objective.kind!r} does not score the whole "
                             "catalogue; expected bias.trained = false and bias.strength = 0 (a "
                             "bias.serve_strength may be given)")
        if self.bias.in_loss and self.objective.needs.search:
            raise InputError(f"bias: objective {self.objective.kind!r} searches the catalogue by "
                             "its rows alone; expected bias.trained = false and bias.strength = 0")
        if self.evaluate.metric in RATING_METRICS and not self.objective.needs.rates:
            raise InputError(f"evaluate.metric {self.evaluate.metric!r} is of ratings, which "
                             f"objective {self.objective.kind!r} does not predict; expected a "
                             "metric of ranks such as ndcg@10")
        if self.bias.when_served and self.objective.needs.rates:
            raise InputError("bias: a rating adds no popularity; expected bias.serve_strength = 0")
        if self.bias.in_loss and self.objective.needs.mean_row:
            raise InputError("bias: label smoothing scores the mean row, which has no bias; "
                             "expected objective.label_smoothing = 0")
        for name, table, wanted in (("inputs", self.inputs, not self.table.tied),
                                    ("users", self.users, uses_users(self.encoder))):
            if table is not None and not wanted:
                raise InputError(f"[{name}] has settings of a table that the run does not have; "
                                 "expected table.tied = false for inputs, and an encoder that "
                                 "reads users for users")
            if table is not None and table.dim != self.table.dim:
                raise InputError(f"{name}.dim is {table.dim}, and table.dim {self.table.dim}; "
                                 "expected the same width")
        if makes_vectors(self):
            check_graph(self)
        if self.objective.needs.walks and sampling_of(self.encoder) is None:
            raise InputError(f"objective {self.objective.kind!r} walks over a graph, which encoder "
                             f"{self.encoder.kind!r} does not have; expected encoder.kind = "
                             "'graphsage'")
        check_different("features", [part.path.partition("/")[2] for part in self.features])
        check_begin(self.begin, self.encoder, self.objective, self.features, self.data.length)
        check_queries(self.encoder, self.objective, self.features, self.continual)
        if self.evaluate.cold_users and self.begin is None:
            raise InputError("evaluate.cold_users: nothing stands in front of histories; expected "
                             "[begin]")
        check_content(self.content)
        for name in ("codes", "hidden"):
            if self.objective.needs.search and any(getattr(part, name) for part in self.content):
                raise InputError(f"content.{name}: objective {self.objective.kind!r} searches "
                                 "stored rows; expected an objective that does not search")
        if trained_content(self.content) is not None:
            _check_text(self)
        if not self.table.tied and any(part.encoder or part.codes for part in self.content):
            raise InputError("content of a text encoder or of codes is read where it is scored; "
                             "expected table.tied = true")


def read_beside(config: RunConfig) -> tuple[Read, ...]:
    """What a run reads beside items, and in front of them."""
    return config.features if config.begin is None else (*config.features, config.begin)


def makes_vectors(config: RunConfig) -> bool:
    """Whether vectors are made of the rows of tables, by a graph or their norms, and are not
    these."""
    return config.item_graph is not None or derives_vectors(config.encoder)


def targets_of(config: RunConfig) -> Targets:
    """Which items of a history a run learns to predict; see `rec_jax.data.segments`."""
    if not config.objective.causal:
        return "self"
    return "next" if reads_history(config.encoder) else "all"


def _check_text(config: RunConfig) -> None:
    """Raises InputError for what does not fit vectors that a text encoder makes inside a step."""
    kind = config.objective.kind
    for wrong, found, wanted in (
            (config.objective.needs.normaliser, f"objective {kind!r} scores every item",
             "an objective that samples, such as sampled_softmax"),
            (config.objective.needs.search, f"objective {kind!r} searches every item",
             "an objective that does not search, such as sampled_softmax"),
            (config.train.ema is not None, "train.ema averages what the encoder makes",
             "no train.ema"),
            (config.continual is not None, "a run that goes on from another one has its content",
             "vectors that `rec-jax embed` made"),
            (config.checkpoint.full_every > 1, "every vector changes between two checkpoints",
             "checkpoint.full_every = 1")):
        if wrong:
            raise InputError(f"content.encoder: {found}, and a step computes only the vectors of "
                             f"the items that it touches; expected {wanted}")


def update_of(config: RunConfig, num_items: int) -> Choice:
    """How the item table of a run is updated, and why."""
    all_of_them = derives_vectors(config.encoder) and sampling_of(config.encoder) is None
    if all_of_them or (makes_vectors(config) and config.objective.needs.normaliser):
        return Choice("dense", "vectors that are made of rows read every row")
    positions = config.train.rows * config.data.length
    # Of a node its neighbours are read, too.
    fan_out = (sampling_of(config.encoder) or ((), ""))[0]
    if config.item_graph is not None:
        fan_out = (config.item_graph.neighbours,)
    of_each = math.prod(1 + places for places in fan_out)
    touched = (None if config.objective.needs.normaliser
               else of_each * (2 * positions + config.objective.drawn(positions)))
    choice = choose_update(config.table, num_items=num_items, touched=touched,
                           clips_global_norm=config.optimizer.clip is not None)
    check_mode(config.content, choice.mode)
    return choice


def tables_of(config: RunConfig) -> dict[str, TableConfig]:
    """The tables of a run by name, with their settings."""
    tables = {ITEMS: config.table}
    if not config.table.tied:
        tables[INPUTS] = config.inputs or config.table
    if uses_users(config.encoder):
        tables[USERS] = config.users or config.table
    return tables


def modes_of(config: RunConfig, mode: Mode) -> dict[str, Mode]:
    """How each table of a run trains, where that of the items trains in `mode`. Of the others a
    step reads rows by their ids, and never scores all of them.

    Raises:
      InputError: the gradient is clipped by its norm, and a table never has all of it.
    """
    def one(name: str, table: TableConfig) -> Mode:
        if name == ITEMS:
            return mode
        asked = table.update if table is not config.table else "auto"
        found = asked if asked != "auto" else "dense" if mode == "dense" else "sparse"
        if found != "dense" and config.optimizer.clip is not None:
            raise InputError(f"optimizer.clip needs the norm of the whole gradient, of which a "
                             f"{found} table {name!r} makes a part only; expected "
                             f"{name}.update = 'dense', or {name}.optimizer.clip (norm of one row)")
        return found

    return {name: one(name, table) for name, table in tables_of(config).items()}


def placements_of(config: RunConfig, modes: Mapping[str, Mode], counts: Mapping[str, int], *,
                  shards: int, memory: float | None, processes: int = 1) -> dict[str, Placement]:
    """Where the rows of each table of a run lie; see `choose_placement`.

    counts: by table its items, or users; shards: pieces that the mesh cuts the rows into.

    Raises:
      InputError: a placement is asked for that the table cannot have.
    """
    tables = tables_of(config)
    needed = sum(padded_size(counts[name]) * row_bytes(table) / shards
                 for name, table in tables.items() if modes[name] != "dense")
    return {name: choose_placement(
        table, Asked(counts[name], _reads(config, name),
                     _bound(config, name, modes, processes, shards),
                     passes=modes[name] == "streamed"),
        shards=shards, needed=needed, memory=memory) for name, table in tables.items()}


def _reads(config: RunConfig, name: str) -> int:
    """The most rows of table `name` that a step names."""
    positions = config.train.rows * config.data.length
    inputs = positions if name != ITEMS or config.table.tied else 0
    return inputs + (positions + config.objective.drawn(positions) if name == ITEMS else 0)


def _bound(config: RunConfig, name: str, modes: Mapping[str, Mode], processes: int, shards: int
           ) -> str | None:
    """Why the rows of a table can only lie on the devices; None: they need not."""
    if modes[name] == "streamed":
        if not isinstance(config.objective, FullSoftmax):
            return (f"objective {config.objective.kind!r} asks more of the softmax than a table "
                    "that passes by in parts answers (expected next_item or masked_item)")
        if shards > 1:
            return (f"the rows of a full softmax pass by one device, and the mesh has {shards} "
                    "(expected mesh.data = mesh.items = 1)")
        if config.bias.in_loss:
            return "a bias in the loss (bias.strength) lies on the devices"
    elif modes[name] != "sparse":
        return (f"the table trains {modes[name]}, and a step has the gradient of all of its rows "
                "(expected table.update = 'streamed', or 'sparse' and an objective that samples)")
    if config.objective.needs.search:
        return (f"objective {config.objective.kind!r} searches all rows, so the ids of a step are "
                "not known ahead")
    if config.objective.needs.rates:
        return "a validation of ratings reads rows that are on the devices"
    if config.content and name == ITEMS:
        return "content is a part of its rows"
    if makes_vectors(config):
        return "a validation makes vectors of all rows, with those of their neighbours"
    if processes > 1:
        return f"the run has {processes} processes, each of which knows the ids of its own batch"
    return None


@dataclass(frozen=True)
class Run:
    """Paths of a run folder. trust_code: its config may name modules of third parties, which run
    when it is read."""

    folder: Path
    trust_code: bool = False

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def curves_path(self) -> Path:
        return self.folder / "curves.png"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    def check_free(self) -> None:
        """Raises InputError where there is a run in the folder already, or a dataset."""
        if self.config_path.exists():
            raise InputError(f"{self.folder} holds a run already; resume it with --resume "
                             f"{self.folder}, or choose another --run folder")
        if (self.folder / META).exists():
            raise InputError(f"{self.folder} is a dataset folder (it has {META}); expected a new "
                             "folder for the run")

    def create(self, resolved: Any) -> None:
        """Make the folder of a new run and write its complete config.

        Raises:
          InputError: there is a run in it already.
        """
        self.check_free()
        self.folder.mkdir(parents=True, exist_ok=True)
        config.save(resolved, self.config_path)

    def config(self) -> RunConfig:
        """The run's config.

        Raises:
          InputError: the folder is no run on a dataset, or its config names code that is not
            trusted.
        """
        saved = self.saved_config()
        if "environment" in saved:
            raise InputError(f"{self.folder} is a run in an environment; expected one on a dataset "
                             "(`rec-jax simulate` plays with it)")
        if "stream" in saved:
            raise InputError(f"{self.folder} is a run of a stream; expected one on a dataset")
        return config.load(RunConfig, self.config_path, trust_code=self.trust_code)

    def saved_config(self) -> dict[str, Any]:
        """The plain values of the run's config; no code is loaded, whatever it names.

        Raises:
          InputError: the folder is no run.
        """
        self.check_begun()
        return config.read_mapping(self.config_path)

    def check_begun(self) -> None:
        """Raises InputError where there is no run in the folder."""
        if not self.config_path.is_file():
            raise InputError(f"{self.folder} is not a run: it has no config.toml")

    def locked(self) -> AbstractContextManager[None]:
        """Be the one process that trains this run; a killed one may take a moment to be gone.

        Raises:
          InputError: another process trains it.
        """
        return locks.locked(self.folder, END_SECONDS)
