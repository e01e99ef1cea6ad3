"""A trained model, ready to answer: what evaluation, export and recommendation load from a run.

It lies on a mesh as it did in training, so that what could be trained there can be asked there:
rows are cut over the same axes, and a process reads no rows but those of its own devices.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rec_jax.checkpoint import ArraySource, CheckpointReader
from rec_jax.data.attributes import UserAttributes, attributes_of, check_trained
from rec_jax.data.content import Content, ContentConfig
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import check_queries, find_features, timeline_of, uses_gaps
from rec_jax.data.label_frequency import label_counts
from rec_jax.data.queries import Timeline
from rec_jax.errors import InputError
from rec_jax.inference.checkpoint_of import check_dataset, open_checkpoint, row_map_in
from rec_jax.inference.histories import Reading
from rec_jax.inference.rows_apart import RowsApart, left_there, without_rows
from rec_jax.mesh import ITEMS as ITEMS_AXIS
from rec_jax.mesh import (
    Axes,
    MeshConfig,
    fit_mesh,
    is_first,
    make_mesh,
    replicated,
    row_sharding,
)
from rec_jax.model.encoder import Encoder, Params, as_vectors, build_encoder, with_tables
from rec_jax.model.encoders import uses_times, uses_users
from rec_jax.model.graphs import AnyGraph, graph_of, of_vectors, served_vectors
from rec_jax.model.item_graph import with_item_graph
from rec_jax.model.rows import RowSource
from rec_jax.processes import run_on_all
from rec_jax.run import (
    Run,
    RunConfig,
    makes_vectors,
    read_beside,
    tables_of,
    targets_of,
    update_of,
)
from rec_jax.tables import (
    INPUTS,
    ITEMS,
    USERS,
    RowMap,
    TableConfig,
    init_table,
    padded_size,
    rows_over,
)
from rec_jax.tables.bias import place_bias, served_bias, serving_part

Tell = Callable[[str], None]


def warn(line: str) -> None:
    """Tells a Python program in a warning."""
    warnings.warn(line, stacklevel=2)


class Nodes(NamedTuple):
    """What a graph made a model's vectors of. source, rows: by table those of items and users, as
    they are stored, by id."""

    graph: AnyGraph
    source: RowSource
    rows: dict[str, jax.Array]


@dataclass(frozen=True)
class Served:
    """Weights of one checkpoint with the dataset that they were trained on.

    params: of the encoder, and the rows of tables that feed it beside them.
    rows: `[V_padded, d]`, row r that of item r, however the run kept them, or where a graph makes
      vectors of rows, the vectors (those of the users in `params` too); the rows from
      `dataset.num_items` on are padding.
    mesh: where all of it is; over: its axes that cut the rows, and the others hold copies.
    bias: f32 `[V_padded]`, cut as the rows, what the model adds to `query . row`; None: nothing.
    filled: bool `[V]`, items that were not trained and got their rows from content; None: none;
      cold: what the protocol of numbers says of that.
    nodes: what vectors were made of, where a graph makes them.
    """

    run: Run
    config: RunConfig
    dataset: Dataset
    encoder: Encoder
    params: Params
    rows: jax.Array
    step: int
    mesh: Mesh = field(default_factory=lambda: make_mesh(MeshConfig()))
    over: Axes = (ITEMS_AXIS,)
    bias: jax.Array | None = None
    filled: np.ndarray | None = None
    cold: dict[str, Any] | None = None
    nodes: Nodes | None = None

    @property
    def reading(self) -> Reading:
        """What the model reads of a history."""
        return reading_of(self.config)

    @cached_property
    def attributes(self) -> UserAttributes | None:
        """Of users, where the model reads them; they are opened once, for all questions."""
        return attributes_of(self.config.begin, self.dataset)

    @cached_property
    def timeline(self) -> Timeline | None:
        """Histories with their queries, where the model reads these; opened once, too."""
        return timeline_of(self.config.features, self.dataset)

    @property
    def apart(self) -> bool:
        """Whether the rows are left where they lie, as `RowsApart`, and not on the devices."""
        return isinstance(self.rows, RowsApart)

    def check_there(self, what: str) -> None:
        """Raises InputError where the rows are left on disk; what: needs them on the devices."""
        if self.apart:
            raise InputError(f"{what} needs all rows on the devices, and those of run "
                             f"{self.run.folder} lie elsewhere; expected table.placement = "
                             "'device'")


@dataclass(frozen=True)
class StoredRows:
    """Item rows of one checkpoint, left on disk: what an export of items needs.

    source: `[V_padded, d + c]`, read in ranges of rows.
    opened: the checkpoint, which no process removes as long as this lives.
    row_map: from an item's id to its row in `source`.
    inputs: the rows are those of table `inputs`, which feed the encoder.
    bias: f32 `[V]` by item, what the model adds to `query . row`; None: nothing.
    composed: stored rows f32 `[n, d + c]` -> vectors f32 `[n, d]`; see `rec_jax.model.rows`.
    """

    run: Run
    config: RunConfig
    dataset: Dataset
    source: ArraySource
    step: int
    opened: CheckpointReader
    row_map: RowMap
    inputs: bool = False
    bias: np.ndarray | None = None
    composed: Callable[[Any], Any] = lambda rows: rows


def reading_of(config: RunConfig) -> Reading:
    """What the model of a run reads of a history."""
    return Reading(config.data.length, hidden_next=not config.objective.causal,
                   times=uses_times(config.encoder) or uses_gaps(config.features),
                   features=read_beside(config), users=uses_users(config.encoder))


def stores_vectors(config: RunConfig) -> bool:
    """Whether an item's vector follows from its stored row alone."""
    return not makes_vectors(config)


def open_rows(folder: Run, *, step: int | None = None, dataset_path: str | None = None,
              inputs: bool = False) -> StoredRows:
    """The item rows of the best checkpoint of a run, or of that of `step`; nothing is loaded.

    inputs: those that feed the encoder, of a run with untied tables.

    Raises:
      InputError: as `load_served`, or tied tables have no such inputs.
    """
    return run_on_all(lambda: _open_rows(folder, step, dataset_path, inputs))


def _open_rows(folder: Run, step: int | None, dataset_path: str | None,
               inputs: bool) -> StoredRows:
    config = folder.config()
    if inputs and config.table.tied:
        raise InputError(f"run {folder.folder} has one table for inputs and items (table.tied); "
                         "expected an export of items")
    if not stores_vectors(config):
        raise InputError(f"run {folder.folder} makes its item vectors of all rows as it is loaded; "
                         "expected a model that is loaded")
    dataset = Dataset.open(dataset_path or config.data.path)
    opened = open_checkpoint(folder, step)
    check_dataset(dataset, str(opened.info.extra.get("dataset")))
    name = _weights_in(config)
    source = opened.items.get(name, {}).get(
        f"['tables']['{INPUTS if inputs else ITEMS}']")
    rows_of = RowSource(config.table.dim, () if inputs else _content(opened, config))
    width = rows_of.width
    if source is None or source.shape[1:] != (width,) or source.shape[0] < dataset.num_items:
        raise InputError(f"checkpoint of step {opened.info.step} in {folder.folder} has no item "
                         f"rows of {dataset.num_items} x {width}")
    row_map = row_map_in(opened, dataset.num_trained)
    matrices: dict[str, Any] = {
        path: source.read(0, source.shape[0]).astype(np.float32)
        for part in config.content for path, source in _parameters(opened, config, part).items()}
    return StoredRows(folder, config, dataset, source, opened.info.step, opened, row_map, inputs,
                      None if inputs else _stored_bias(opened, name, config, dataset, row_map),
                      lambda rows: np.asarray(rows_of.compose(matrices, rows)))


def _stored_bias(opened: CheckpointReader, item: str, config: RunConfig, dataset: Dataset,
                 row_map: RowMap) -> np.ndarray | None:
    """As `serving_bias`, f32 `[V]` by item, from disk."""
    path, trained = f"['bias']['{ITEMS}']", None
    if config.bias.trained:
        source = opened.items.get(item, {}).get(path)
        if source is None or len(source.shape) != 1 or source.shape[0] < dataset.num_items:
            raise InputError(f"checkpoint {opened.name} does not fit: {item}{path} is missing")
        trained = source.read(0, source.shape[0])[row_map.rows(np.arange(dataset.num_items))]
    found: Any = served_bias(trained, serving_values(config, dataset),  # type: ignore[arg-type]
                             getattr(config.objective, "scale", 1.0))
    return None if found is None else np.asarray(found, np.float32)


def _weights_in(config: RunConfig) -> str:
    """The part of a checkpoint that is served."""
    return "model" if config.train.ema is None else "average"


def _content(opened: CheckpointReader, config: RunConfig) -> tuple[Content, ...]:
    """The content that the checkpoint was trained with; the dataset's vectors are not read."""
    first = [_parameters(opened, config, part)[part.paths[0]] for part in config.content]
    return tuple(Content(part.path, part.codes or matrix.shape[0],
                         centres=part.centres if part.codes else 0, hidden=part.hidden)
                 for part, matrix in zip(config.content, first, strict=True))


def _parameters(opened: CheckpointReader, config: RunConfig, part: ContentConfig
                ) -> dict[str, ArraySource]:
    """The matrix `[c, d]` of content by its path, or an MLP's kernels and biases."""
    item, found = _weights_in(config), {}
    widths = (*part.hidden, config.table.dim)
    for number, path in enumerate(part.paths):
        named, width = f"['encoder']['{path}']", widths[number // 2]
        source = opened.items.get(item, {}).get(named)
        if source is None or source.shape[-1:] != (width,) or len(source.shape) != 2 - number % 2:
            raise InputError(f"checkpoint {opened.name} does not fit: {item}{named} is missing or "
                             f"not [{'' if number % 2 else 'c, '}{width}]")
        found[path] = source
    return found


def _text_shapes(opened: CheckpointReader) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a text encoder by path; what it makes is in the rows, so that
    nothing here reads them."""
    return {path.removeprefix("['").removesuffix("']"): source.shape
            for path, source in opened.items.get("text", {}).items()}


def counts_of(config: RunConfig, dataset: Dataset) -> np.ndarray:
    """How often each item is a label of the training, int64 `[V]`."""
    # Behind begin places a first item is a label too, and what has none takes room.
    front = 0 if config.begin is None else config.begin.places
    return label_counts(dataset, length=config.data.length - max(front - 1, 0),
                        window=config.data.window, events=config.data.targets,
                        targets="all" if front else targets_of(config),
                        timeline=timeline_of(config.features, dataset))


def serving_values(config: RunConfig, dataset: Dataset) -> np.ndarray | None:
    """The popularity bias that serving adds (to the trained bias, where there is one), f32 `[V]` by
    item, or None. The labels of the training part are counted for it."""
    if not config.bias.serving_strength:
        return None
    return serving_part(config.bias, counts_of(config, dataset))


def serving_bias(config: RunConfig, values: np.ndarray | None, stored: jax.Array | None,
                 total: int, mesh: Mesh, over: Axes, row_map: RowMap | None = None
                 ) -> jax.Array | None:
    """The bias by which a run's items are ranked: f32 `[total]` beside the rows, or None.

    values: of `serving_values`; stored: that of the loss, which counts where it was trained;
    row_map: of the rows.
    """
    placed = None if values is None else place_bias(total, mesh, values=values, over=over,
                                                    row_map=row_map)
    return served_bias(stored if config.bias.trained else None, placed,
                       getattr(config.objective, "scale", 1.0))


def load_served(folder: Run, *, step: int | None = None, dataset_path: str | None = None,
                mesh: MeshConfig | None = None, tell: Tell = warn) -> Served:
    """The best checkpoint of a run, or that of `step`, on a mesh; of several processes all call it.

    dataset_path: where the dataset is now, if it moved.
    mesh: where the model goes; by default the run's mesh, or where the devices here do not form
      that, the nearest one that they do, of which `tell` is told in one line.

    Raises:
      InputError: no run, no checkpoint, no such step, another dataset than the run's, or a mesh
        that the devices here do not form, or that does not cut the table evenly; of several
        processes all are refused where one is.
    """
    return run_on_all(lambda: _load(folder, step, dataset_path, mesh, tell))


def _load(folder: Run, step: int | None, dataset_path: str | None, mesh: MeshConfig | None,
          tell: Tell) -> Served:
    config = folder.config()
    dataset = Dataset.open(dataset_path or config.data.path)
    opened = open_checkpoint(folder, step)
    check_dataset(dataset, str(opened.info.extra.get("dataset")))
    check_trained(config.begin, dataset, opened.info.extra.get("data"))
    check_queries(config.features, dataset, opened.info.extra.get("data"))
    over = rows_over(update_of(config, dataset.num_items).mode)
    chosen = _choose_mesh(config, mesh, dataset.num_items, over, tell)
    encoder, params = build_encoder(
        config.encoder, dim=config.table.dim, length=config.data.length, tied=config.table.tied,
        causal=config.objective.causal, precision=config.train.precision, seed=config.seed,
        features=find_features(read_beside(config), dataset), content=_content(opened, config),
        heads=config.objective.needs.heads, lora=config.lora, beside=_text_shapes(opened))
    encoder, params = with_item_graph(config.item_graph, encoder, params)
    encoder = encoder._replace(head=config.objective.needs.ranks)
    total, name = padded_size(dataset.num_items), _weights_in(config)

    def stored(table: str, settings: TableConfig) -> jax.ShapeDtypeStruct:
        count = dataset.num_users if table == USERS else dataset.num_items
        rows = jax.eval_shape(lambda: init_table(settings, count, config.seed, chosen,
                                                 over=over)).rows
        # Averages are f32, whatever the rows are.
        return jax.ShapeDtypeStruct(
            (rows.shape[0], encoder.source.width if table == ITEMS else settings.dim),
            rows.dtype if name == "model" else jnp.float32, sharding=row_sharding(chosen, over))

    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=replicated(chosen)), params)
    tables = tables_of(config)
    row_map, moved = row_map_in(opened, dataset.num_trained), {}
    if not row_map.identity:
        items = row_map.ids(np.arange(dataset.num_items))
        moved = {f"['tables']['{table}']": items for table in tables if table != USERS}
    # Where one table lies elsewhere all are left there: one way to read them.
    elsewhere = any(settings.placement in ("host", "disk") for settings in tables.values())
    # A graph, and content that is codes or goes through an MLP, make vectors of all rows at once.
    whole = makes_vectors(config) or not encoder.source.linear
    away = set(tables) if elsewhere and not whole and jax.process_count() == 1 else set()
    like = {"encoder": params,
            "tables": {table: stored(table, settings) for table, settings in tables.items()
                       if table not in away}}
    if config.bias.in_loss:
        like["bias"] = {ITEMS: jax.ShapeDtypeStruct((total,), jnp.float32,
                                                    sharding=row_sharding(chosen, over))}
        moved |= {} if row_map.identity else {f"['bias']['{ITEMS}']": items}
    left = {table: left_there(opened, name, table, stored(table, tables[table]),
                              RowMap() if table == USERS else row_map) for table in away}
    model = without_rows(opened, name, away).restore({name: like}, widen=True, moved=moved)[name]
    bias = serving_bias(config, serving_values(config, dataset),
                        model.get("bias", {}).get(ITEMS), total, chosen, over)
    found = {**model.get("tables", {}), **left}
    graph = graph_of(config.encoder, config.item_graph, dataset, chosen)
    nodes = None if graph is None else Nodes(graph, encoder.source, found)
    if graph is None:
        encoder, found[ITEMS] = as_vectors(encoder, model["encoder"], found[ITEMS])
    else:
        found = {**found, **served_vectors(graph, encoder.source, model["encoder"], found, chosen,
                                           over)}
        encoder = of_vectors(encoder)
    return Served(folder, config, dataset, encoder, with_tables(model["encoder"], found),
                  found[ITEMS], opened.info.step, chosen, over, bias, nodes=nodes)


def _choose_mesh(config: RunConfig, asked: MeshConfig | None, num_items: int, over: Axes,
                 tell: Tell) -> Mesh:
    """The mesh that is asked for, or the run's, or the nearest one that the devices form, which
    `tell` is told."""
    if asked is not None:
        return make_mesh(asked)
    total, trained = padded_size(num_items), config.mesh

    def pieces(mesh: MeshConfig) -> int:
        return mesh.items if over == (ITEMS_AXIS,) else mesh.data * mesh.items

    found = fit_mesh(trained, lambda mesh: total % pieces(mesh) == 0)
    if found != trained and is_first():
        count, processes = jax.device_count(), jax.process_count()
        there = f"{count} device{'s' * (count > 1)}" + (
            f" in {processes} processes" if processes > 1 else "")
        tell(f"the run's mesh {trained} has {trained.data * trained.items} devices, and here "
             f"{'are' if count > 1 else 'is'} {there} ({jax.default_backend()}): the model is on "
             f"mesh {found}, with {total // pieces(found):,} of {total:,} rows a device")
    return make_mesh(found)
