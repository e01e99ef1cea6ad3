"""From a config to everything that a run trains with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rec_jax.data.batches import BatchStream
from rec_jax.data.content import OpenContent, open_content, trained_content
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import find_features
from rec_jax.data.fresh import first_targets
from rec_jax.data.label_frequency import log_shares
from rec_jax.dtypes import DTYPES
from rec_jax.errors import InputError
from rec_jax.inference.apart import apart, make_apart_ranker
from rec_jax.inference.evaluate import make_ranker, rank_users
from rec_jax.inference.protocol import Panel, choose_panel, cold_items
from rec_jax.inference.ranked import Ranker
from rec_jax.inference.ratings import RatingPredictor, check_range
from rec_jax.inference.rows_apart import RowsApart
from rec_jax.inference.served import counts_of, reading_of, serving_bias, serving_values
from rec_jax.mesh import ITEMS as ITEMS_AXIS
from rec_jax.mesh import Axes, device_memory, make_mesh, row_sharding
from rec_jax.metrics import rank_metrics
from rec_jax.model.encoder import (
    TABLES,
    Encoder,
    Params,
    as_vectors,
    build_encoder,
    with_tables,
)
from rec_jax.model.encoders import sampling_of, uses_users
from rec_jax.model.graphs import AnyGraph, graph_of, of_vectors, served_vectors
from rec_jax.model.item_graph import with_item_graph
from rec_jax.model.lora import adapted_in, init_lora
from rec_jax.model.optimizer import dense_optimizer, schedule
from rec_jax.model.rows import RowSource
from rec_jax.model.tuning import Tuning, find_tuning
from rec_jax.run import (
    RunConfig,
    makes_vectors,
    modes_of,
    placements_of,
    read_beside,
    tables_of,
    targets_of,
    update_of,
)
from rec_jax.tables import ITEMS, USERS, RowMap, Table, init_table, row_optimizer, rows_over
from rec_jax.tables.bias import bias_state, first_bias, place_bias
from rec_jax.tables.choose import Choice, Mode
from rec_jax.tables.fixed import with_fixed
from rec_jax.tables.on_mesh import shards_of
from rec_jax.tables.placement import Placement
from rec_jax.tables.row_map import row_map_of
from rec_jax.text.item_encoder import ItemEncoder, open_item_encoder
from rec_jax.tier.passing import PassingTable
from rec_jax.train.backends import check_named
from rec_jax.train.mode import Setting
from rec_jax.train.passing_step import PassingStep
from rec_jax.train.state import TrainState, bias_of, init_state, served
from rec_jax.train.step import Step, make_train_step
from rec_jax.train.task_shapes import check_task
from rec_jax.train.tiers import Away, Tiers, passing_table, tiered_table


class Horizon(NamedTuple):
    """Steps of a run: in an epoch (a fraction), in all, and between validations."""

    per_epoch: float
    total: int
    validate_every: int

    def validates(self, done: int) -> bool:
        """Whether to validate after `done` steps: regularly and at the end, but not twice there."""
        left = self.total - done
        return left == 0 or (done % self.validate_every == 0 and 2 * left >= self.validate_every)


@dataclass(frozen=True)
class Built:
    """The parts of a run; `state` is the one before the first step.

    tiers: what of its tables does not lie on the devices; placements: where each lies, and why.
    log_share: f32 `[V]`, log of each item's share of all labels, where the objective needs it.
    encoder: what `state.encoder` has the parameters of; modes: how each table trains; tuning: what
      of all that trains; content: of the items, and texts: what makes a part of it in a step.
    """

    dataset: Dataset
    stream: BatchStream
    mesh: Mesh
    horizon: Horizon
    choice: Choice
    placements: dict[str, Placement]
    step: Step
    state: TrainState
    tiers: Tiers
    validator: Validator
    log_share: npt.NDArray[np.float32] | None
    config: RunConfig
    encoder: Encoder
    modes: dict[str, Mode]
    tuning: Tuning
    content: OpenContent
    texts: ItemEncoder | None = None

    def refreshed(self, state: TrainState) -> TrainState:
        """The state with the vectors that a text encoder makes of all items now in their rows;
        itself where there is none."""
        if self.texts is None:
            return state
        made = self.texts.vectors(state.encoder, self.mesh, DTYPES[self.config.train.precision])
        vectors = tuple(made if part.path == self.texts.content.path else each for part, each in
                        zip(self.content.parts, self.content.vectors, strict=True))
        items = with_content(state.items, self.content._replace(vectors=vectors), self.mesh)
        return state._replace(tables={**state.tables, ITEMS: items})


def build(config: RunConfig) -> Built:
    """Open the data, make the mesh, choose how the table trains, and compile nothing yet.

    With several processes, each reads its own rows of every batch.

    Raises:
      InputError: the config fits neither the data nor the devices.
    """
    settings = config.train
    check_named(getattr(config.objective, "backend", None), config.table.dim)
    dataset = Dataset.open(config.data.path)
    mesh = make_mesh(config.mesh)
    stream = BatchStream(dataset, length=config.data.length,
                         rows=settings.rows // settings.accumulate, pack=config.data.pack,
                         window=config.data.window, seed=config.seed,
                         share=(jax.process_index(), jax.process_count()),
                         times=reading_of(config).times, features=read_beside(config),
                         targets=targets_of(config), users=uses_users(config.encoder),
                         values=config.objective.needs.values,
                         histories=(config.objective.needs.histories
                                    or sampling_of(config.encoder) is not None),
                         first=None if config.continual is None else first_targets(
                             dataset, config.continual, config.seed),
                         events=config.data.targets)
    horizon = steps_of(config, stream.rows_per_epoch)
    texts = open_texts(config, dataset, mesh)
    content = open_content(config.content, dataset, 0 if texts is None else texts.width)
    others = {} if texts is None else {path: leaf.shape for path, leaf in texts.parameters.items()}
    encoder, params = build_encoder(
        config.encoder, dim=config.table.dim, length=config.data.length, tied=config.table.tied,
        causal=config.objective.causal, precision=settings.precision, seed=config.seed,
        features=find_features(read_beside(config), dataset),
        content=content.parts, scale=config.table.init_scale,
        heads=config.objective.needs.heads, lora=config.lora, beside=others)
    encoder, params = with_item_graph(config.item_graph, encoder, params)
    if texts is not None:
        if texts.content.train == "lora" and not encoder.beside:
            raise InputError("content.train = 'lora', and no [[lora]] entry matches a matrix of "
                             "the text encoder; expected one such as 'text/blocks/*/kernel'")
        texts = texts._replace(adapted=encoder.beside)
        params |= texts.parameters | init_lora(encoder.beside, others, config.seed)
    check_task(config, dataset.num_trained)
    choice = update_of(config, dataset.num_items)
    tables, modes = tables_of(config), modes_of(config, choice.mode)
    still = [] if texts is None or texts.content.train == "all" else texts.parameters
    tuning = find_tuning(config.tune, params, tables, [*adapted_in(params), *still])
    if makes_vectors(config) and any(map(tuning.freezes_table, tables)):
        raise InputError("tune: rows train together where vectors are made of them; "
                         "expected no frozen table")
    optimizer = dense_optimizer(config.optimizer, horizon.total, tuning)
    counts = {name: dataset.num_users if name == USERS else dataset.num_items for name in tables}
    over = rows_over(choice.mode)
    placements = placements_of(config, modes, counts, shards=shards_of(mesh, over).pieces,
                               memory=device_memory(mesh), processes=jax.process_count())
    new: dict[str, Table] = {}
    tiered: dict[str, Away] = {}
    for name, table in tables.items():
        row_map = (RowMap(counts[name]) if name == USERS else
                   row_map_of(choice.mode, dataset.num_trained))
        if placements[name].where == "device":
            new[name] = init_table(
                table, counts[name], config.seed, mesh, name=name, over=over, row_map=row_map,
                optimizer=None if modes[name] == "dense" or tuning.freezes_table(name) else
                row_optimizer(table.optimizer))
        else:
            make: Callable[..., tuple[Table, Away]] = (
                passing_table if modes[name] == "streamed" else tiered_table)
            new[name], tiered[name] = make(
                table, counts[name], config.seed, mesh, name=name, over=over, row_map=row_map,
                slots=placements[name].slots, where=placements[name].where)
    # Withheld items have rows, and are in no softmax and among no negatives.
    new[ITEMS] = new[ITEMS].replace(num_items=dataset.num_trained)
    new[ITEMS] = with_content(new[ITEMS], content, mesh)
    new[ITEMS] = _with_bias(new[ITEMS], config, dataset, mesh, stateless=(
        choice.mode == "dense" or tuning.freezes_table(ITEMS)))
    state = init_state(
        params, new, optimizer, average=settings.ema is not None, seed=config.seed, modes=modes,
        mesh=mesh, tuning=tuning)
    graph = graph_of(config.encoder, config.item_graph, dataset, mesh)
    rate = schedule(config.optimizer, horizon.total)
    step = make_train_step(
        encoder, config.objective, optimizer, precision=settings.precision, ema=settings.ema,
        tables=tables, modes=modes, mesh=mesh, rate=rate, tuning=tuning, graph=graph, texts=texts)
    setting = Setting(encoder, config.objective, tables, modes, mesh,
                      DTYPES[settings.precision], tuning)
    items = tiered.get(ITEMS)
    if isinstance(items, PassingTable):
        items.num_items = dataset.num_trained
        step = PassingStep(setting, optimizer, items, rate=rate)
    tiers = Tiers(tiered, setting, dataset.num_trained)
    return Built(dataset, stream, mesh, horizon, choice, placements, step, state, tiers,
                 Validator(config, dataset, encoder, mesh, state.items.over, graph),
                 _log_share(config, dataset), config, encoder, modes, tuning, content, texts)


def open_texts(config: RunConfig, dataset: Dataset, mesh: Mesh) -> ItemEncoder | None:
    """The text encoder that is a part of a run's model, where there is one."""
    content = trained_content(config.content)
    if content is None:
        return None
    if jax.process_count() > 1:
        raise InputError("content.encoder: a text encoder in the step trains in one process; "
                         "expected vectors that `rec-jax embed` made")
    return open_item_encoder(content, dataset, mesh)


def with_content(table: Table, content: OpenContent, mesh: Mesh) -> Table:
    """The table of the items with the columns of their content, where the run has any."""
    if not content.parts:
        return table
    if RowSource(table.rows.shape[1], content.parts).drop == 1:  # nothing reads or trains them
        table = table.replace(rows=table.rows * 0)
    return with_fixed(table, mesh, sum(part.columns for part in content.parts), content.read)


def _with_bias(table: Table, config: RunConfig, dataset: Dataset, mesh: Mesh, *,
               stateless: bool) -> Table:
    """The table of the items with the bias that the loss adds, where it adds one. stateless: no row
    optimizer moves it."""
    if not config.bias.in_loss:
        return table
    total = table.rows.shape[0]
    bias = place_bias(total, mesh, values=first_bias(config.bias, counts_of(config, dataset)),
                      over=table.over, row_map=table.row_map)
    state = () if stateless or not config.bias.trained else jax.tree.map(
        lambda leaf: jax.device_put(leaf, row_sharding(mesh, table.over)),
        bias_state(row_optimizer(config.table.optimizer), total))
    return table.replace(bias=bias, bias_state=state, trains_bias=config.bias.trained)


def _log_share(config: RunConfig, dataset: Dataset) -> npt.NDArray[np.float32] | None:
    if not config.objective.needs.log_q:
        return None
    return log_shares(counts_of(config, dataset))


def steps_of(config: RunConfig, rows_per_epoch: int) -> Horizon:
    """The run's steps from its settings and the rows that hold every target once."""
    settings = config.train
    per_epoch = rows_per_epoch / settings.rows
    total = settings.steps if settings.steps is not None else round(settings.epochs * per_epoch)
    return Horizon(per_epoch, max(1, total), max(1, round(settings.evaluate_every * per_epoch)))


class Validator:
    """Ranks the validation users with the weights of a state."""

    def __init__(self, config: RunConfig, dataset: Dataset, encoder: Encoder,
                 mesh: Mesh, over: Axes = (ITEMS_AXIS,), graph: AnyGraph | None = None) -> None:
        """over: mesh axes that cut the rows; graph: what makes vectors of them. Raises InputError
        where the dataset has nobody to validate on."""
        self._config, self._dataset, self._graph = config, dataset, graph
        if config.objective.needs.ranks is not None:
            encoder = encoder._replace(head=config.objective.needs.ranks)
        self._encoder = encoder
        if graph is not None or not encoder.source.linear:  # vectors are where rows would be
            encoder = of_vectors(encoder)
        settings = config.evaluate
        self._mesh = mesh
        self.panel: Panel = choose_panel(dataset, "valid", settings, settings.users, config.seed)
        cold = cold_items(dataset, settings)

        @functools.cache
        def ranker(row_map: RowMap) -> Ranker:
            return make_ranker(encoder, dataset.num_items, mesh, cold=cold, over=over,
                               filter_seen=settings.filter_seen, row_map=row_map)

        @functools.cache
        def predictor(row_map: RowMap) -> RatingPredictor:
            return RatingPredictor(config.objective, encoder, dataset, mesh,
                                   reading=reading_of(config), batch=settings.batch, over=over,
                                   row_map=row_map)

        @functools.cache
        def apart_ranker(row_map: RowMap) -> Ranker:
            return make_apart_ranker(encoder, dataset.num_items, mesh, cold=cold, over=over,
                                     filter_seen=settings.filter_seen, row_map=row_map)

        self._predictor = predictor if config.objective.needs.rates else None
        if self._predictor is not None:
            check_range(config.objective, dataset)
            if settings.metric == "auc" and len(dataset.rating_values) != 2:
                raise InputError(f"evaluate.metric 'auc' is of two ratings, and {dataset.folder} "
                                 f"has {len(dataset.rating_values)}; expected rmse or mae")
        # The state that is validated knows the order of its rows.
        self._ranker, self._apart_ranker = ranker, apart_ranker
        self._bias = serving_values(config, dataset)

    @property
    def misses(self) -> int:
        """Users whose target may not be recommended to them."""
        return int(self.panel.seen.sum()) if self._config.evaluate.filter_seen else 0

    def __call__(self, state: TrainState, away: Mapping[str, RowsApart] | None = None
                 ) -> dict[str, float]:
        """Metrics of the weights of `state`; away: rows that lie elsewhere, by table."""
        shown = self._served(state)
        metrics = self._ranked(state, shown, self.panel, away, self._bias)
        if self._predictor is None:
            return metrics
        return {**self._predictor(state.items.row_map)(*shown, "valid"), **metrics}

    def ranked(self, state: TrainState, panel: Panel, counted: Dataset) -> dict[str, float]:
        """Metrics of the ranks of a panel's targets; counted: whose labels say what is popular,
        where serving adds that."""
        return self._ranked(state, self._served(state), panel, None,
                            serving_values(self._config, counted))

    def _ranked(self, state: TrainState, weights: tuple[Params, jax.Array], panel: Panel,
                away: Mapping[str, RowsApart] | None, popular: np.ndarray | None
                ) -> dict[str, float]:
        """As `ranked`, by what `_served` and `serving_values` give."""
        (params, rows), items = weights, state.items
        ranker, shown, asked = self._ranker, cast(Any, rows), dict(params)
        if away:
            ranker, shown = self._apart_ranker, away.get(ITEMS) or apart(rows)
            asked |= {name: cast(Any, away[name]) for name in TABLES if name in away}
        bias = serving_bias(self._config, popular, bias_of(state), shown.shape[0], self._mesh,
                            items.over, items.row_map)
        ranks = rank_users(ranker(items.row_map), asked, shown, self._dataset,
                           panel.users, panel.targets, panel.ends, reading=reading_of(self._config),
                           batch=self._config.evaluate.batch, devices=self._mesh.size, bias=bias)
        return rank_metrics(ranks, self._config.evaluate.ks)

    def _served(self, state: TrainState) -> tuple[Params, jax.Array]:
        """As `served`, with vectors where a graph makes them of rows."""
        params, rows = served(state)
        if self._graph is None:
            return params, as_vectors(self._encoder, params, rows)[1]
        vectors = served_vectors(self._graph, self._encoder.source, params, {**params, ITEMS: rows},
                                 self._mesh, state.items.over, state.items.row_map)
        return with_tables(params, vectors), vectors[ITEMS]
