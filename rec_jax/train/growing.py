"""Start a run from another one's checkpoint, though the catalogue has changed since.

Items are matched by the ids of their source. Those that both catalogues have keep their rows (and,
if asked, their optimizer state); new ones start from the hash of their index, as in any new table,
or in a run with content from what it says beside the items that were kept
(`rec_jax.inference.cold_rule`); retired ones are listed. Where no item is kept, which is a transfer
to another catalogue, content alone says what the new ones are. What adapts the encoder, or stands
in front of histories, starts anew where the other run does not have it (`rec_jax.model.lora`). f32
rows may become bf16 and back, as the new run's config says. Rows travel from disk to device in
blocks, and each from the place that its item had to the one that it has now (`tables/row_map.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from rec_jax.checkpoint import ArraySource, CheckpointReader, scatter_rows
from rec_jax.checkpoint.layout import named_leaves
from rec_jax.checkpoint.load import load_array
from rec_jax.data.attributes import BEGIN, check_trained
from rec_jax.data.content import open_content
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import Read, check_queries, find_features, vocabularies
from rec_jax.errors import InputError
from rec_jax.files import write_atomic
from rec_jax.inference.blocks import set_rows, table_blocks
from rec_jax.inference.checkpoint_of import check_dataset, open_checkpoint, row_map_in
from rec_jax.inference.cold import matrices_of, own_values, read_content_of
from rec_jax.inference.cold_rule import ColdRule
from rec_jax.model.lora import FOLDER as LORA
from rec_jax.model.rows import drop_of
from rec_jax.progress import Reporter
from rec_jax.run import Run, RunConfig, read_beside
from rec_jax.tables import ITEMS, USERS, Table
from rec_jax.train.build import Built, with_content
from rec_jax.train.state import TrainState, from_items, has_rows, table_of, to_items

_ADAPTS = f"['encoder']['{LORA}"
"""In the path of a leaf that adapts a matrix of the encoder."""
_BEGIN = f"['encoder']['{BEGIN}']"
"""At the end of the path of what stands in front of histories."""


@dataclass(frozen=True)
class Start:
    """Where a new run starts.

    run: whose best checkpoint is taken, or that of `step`.
    keep_state: take optimizer state and counts as well, and what rounding took from an average, so
      that the learning rate goes on where the other run stood; otherwise rows and encoder only,
      with an optimizer that starts anew.
    encoder_only: take no rows, whatever ids two catalogues have in common: the encoder, and what
      reads content. The other run's dataset need not be there.
    """

    run: Run
    step: int | None = None
    keep_state: bool = False
    encoder_only: bool = False

    def __post_init__(self) -> None:
        if self.keep_state and self.encoder_only:
            raise InputError("the optimizer's state belongs to the rows that it moved; expected "
                             "keep_state or encoder_only")


class Matched(NamedTuple):
    """new_of_old: int64 `[V_old]`, index in the new catalogue, -1 for a retired item; retired:
    their ids; added: how many items are new."""

    new_of_old: np.ndarray
    retired: list[str]
    added: int


def match_items(old: pl.Series, new: pl.Series) -> Matched:
    """Match two catalogues by the ids of their source, `[V_old]` and `[V_new]` text; or users."""
    places = pl.DataFrame({"id": new}).with_row_index("place")
    found = pl.DataFrame({"id": old}).join(places, on="id", how="left", maintain_order="left")
    new_of_old = found["place"].cast(pl.Int64).fill_null(-1).to_numpy()
    gone = found.filter(pl.col("place").is_null())["id"].to_list()
    return Matched(new_of_old, gone, len(new) - (len(old) - len(gone)))


def start_from(start: Start, built: Built, target: Run, reporter: Reporter) -> TrainState:
    """The state before the first step of run `target`, with what `start` has of it.

    Retired items are written to `retired_items.txt` in the folder of `target`.

    Raises:
      InputError: no such checkpoint, its dataset changed or is gone, or shapes do not fit.
    """
    if built.texts is not None:
        raise InputError("content.encoder: a run whose text encoder trains starts from that "
                         "encoder's folder; expected no run to start from")
    config = start.run.config()
    opened = open_checkpoint(start.run, start.step)
    matched = Matched(np.empty(0, np.int64), [], built.dataset.num_items)
    moved: dict[str, np.ndarray] | None = None
    if read_beside(config) or not start.encoder_only:
        old = Dataset.open(config.data.path)
        check_dataset(old, str(opened.info.extra.get("dataset")))
        check_trained(config.begin, old, opened.info.extra.get("data"))
        check_queries(config.features, old, opened.info.extra.get("data"))
        _check_meanings(config, old, built)
        if not start.encoder_only:
            matched, moved = _matched(opened, old, built)
    fresh = to_items(built.state)
    wanted = ("model", "training") if start.keep_state else ("model",)
    taken = {name: _take(name, opened, fresh[name], built.state.tables, moved) for name in wanted}
    if "average" in fresh:
        name = "average" if "average" in opened.items else "model"
        taken["average"] = _take(name, opened, fresh["average"], built.state.tables, moved)
        if start.keep_state and "rest" in opened.items:
            taken["rest"] = _take("rest", opened, fresh["rest"], built.state.tables, moved)
    kept = int(np.count_nonzero(matched.new_of_old >= 0))
    reporter.say(f"started from step {opened.info.step} of {start.run.folder}: {kept} items kept, "
                 f"{matched.added} new, {len(matched.retired)} retired")
    if matched.retired and jax.process_index() == 0:
        write_atomic(target.folder / "retired_items.txt", "\n".join(matched.retired) + "\n")
    state = from_items({**fresh, **taken}, built.state.tables)
    # Items have the content of the new dataset, also those that are new in it.
    items = with_content(state.items, open_content(built.config.content, built.dataset),
                         built.mesh)
    state = state._replace(tables={**state.tables, ITEMS: items})
    if state.average is not None and items.fixed:
        own = items.rows.shape[1] - items.fixed
        state = _with_average(state, jax.jit(lambda average, rows: jnp.concatenate(
            [average[:, :own], rows[:, own:].astype(average.dtype)], axis=1),
            out_shardings=items.rows.sharding)(state.average.tables[ITEMS], items.rows))
    if not built.config.content or drop_of(built.encoder.source) == 1 or not matched.added:
        return state
    return _filled(state, built, matched.new_of_old)


def _matched(opened: CheckpointReader, old: Dataset, built: Built
             ) -> tuple[Matched, dict[str, np.ndarray]]:
    """The items of two catalogues, and by table the new row of each old one, -1: it has none."""
    matched = match_items(old.item_ids(), built.dataset.item_ids())
    before, after = row_map_in(opened, old.num_trained), built.state.items.row_map
    by_item = after.rows(matched.new_of_old[before.ids(np.arange(old.num_items))])
    moved = {name: by_item for name in built.state.tables}
    if USERS in moved:
        moved[USERS] = match_items(old.user_ids(), built.dataset.user_ids()).new_of_old
    return matched, moved


def _filled(state: TrainState, built: Built, kept: np.ndarray) -> TrainState:
    """The state in which items that are not `kept` int64 `[V_old]` have the values of the rule.

    Where none is kept that says anything of content, a new item is what its content says: it has
    no values of its own. The rows of all items are on the host for it.
    """
    content, has = read_content_of(built.dataset, [part.name for part in built.config.content])
    numbers = np.arange(built.dataset.num_items)
    there = np.isin(numbers, kept)
    warm, new = np.flatnonzero(there & has), np.flatnonzero(~there & has)
    source, order = built.encoder.source, state.items.row_map

    def filled(encoder: Any, rows: jax.Array) -> jax.Array:
        table = state.items.replace(rows=rows, num_items=len(numbers))
        stored = np.concatenate(list(table_blocks(built.mesh, table)))
        values = np.zeros((len(new), source.dim), np.float32)
        if len(warm):
            values, _ = own_values(ColdRule(), source, matrices_of(source, encoder), stored, None,
                                   content, warm, new)
        values = np.concatenate([values, stored[new, source.dim:]], axis=1)
        return set_rows(rows, order.rows(new), values)

    items = state.items.replace(rows=filled(state.encoder, state.items.rows))
    state = state._replace(tables={**state.tables, ITEMS: items})
    if state.average is None:
        return state
    return _with_average(state, filled(state.average.encoder, state.average.tables[ITEMS]))


def _with_average(state: TrainState, rows: jax.Array) -> TrainState:
    """The state with other averages of the items' rows."""
    assert state.average is not None
    return state._replace(average=state.average._replace(
        tables={**state.average.tables, ITEMS: rows}))


def _check_meanings(config: RunConfig, old: Dataset, built: Built) -> None:
    """Rows of side features are taken by their codes, which must mean the same in both; what stands
    in front of histories may be of another table now."""
    new, own = built.dataset, built.config.begin
    now: tuple[Read, ...] = config.features
    if config.begin is not None and own is not None:
        now = (*now, own)
    find_features(now, new)
    before = vocabularies(read_beside(config), old)
    for path, meaning in vocabularies(now, new).items():
        if before[path] != meaning:
            raise InputError(f"{path.partition('/')[2]!r} has other values in {new.folder} than in "
                             f"{old.folder}; expected the same for a run that reads it and starts "
                             "from another")


def _take(name: str, opened: CheckpointReader, fresh: Any, tables: Mapping[str, Table],
          moved: Mapping[str, np.ndarray] | None) -> Any:
    """Leaves of one part of the checkpoint: by row where they are of a table, else whole.

    moved: by table int64 `[V_old]`, new row of each old one, -1 where it is a retired item's; None:
      no row is taken, and tables are as in `fresh`.
    """
    sources, leaves = dict(opened.items.get(name, {})), named_leaves(fresh)
    by_row = {name: table_of(path) if has_rows(path, leaf, tables) else None
              for name, (path, leaf) in zip(leaves, jax.tree.leaves_with_path(fresh), strict=True)}
    kept = {path for path in leaves if path not in sources and name != "training"
            and (_ADAPTS in path or path.endswith(_BEGIN))}
    if moved is None:
        sources = {path: source for path, source in sources.items() if not _of_table(path)}
        kept |= {path for path in leaves if _of_table(path)}
    if sources.keys() != leaves.keys() - kept:
        other = min(sources.keys() ^ (leaves.keys() - kept))
        more = ("; a run with adapters is merged first, see `rec-jax adapt merge`"
                if _ADAPTS in other and name != "training" else "")
        raise InputError(f"checkpoint {opened.name} does not fit: {name}{other} is in one of the "
                         f"two only; encoder and optimizer must be the same, and table.tied{more}")
    taken = {path: leaf for path, leaf in leaves.items() if path not in kept}
    _check_shapes(name, opened, sources, taken, by_row)
    found = [leaf if path in kept else load_array(sources[path], leaf)
             if (table := by_row[path]) is None or moved is None
             else scatter_rows(leaf, sources[path], moved[table]) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(fresh), found)


def _of_table(path: str) -> bool:
    """Whether a leaf of weights belongs to a table."""
    return path.startswith(("['tables']", "['bias']"))


def _check_shapes(name: str, opened: CheckpointReader, sources: Mapping[str, ArraySource],
                  leaves: Mapping[str, Any], by_row: Mapping[str, str | None]) -> None:
    for path, leaf in leaves.items():
        source = sources[path]
        same = (source.shape[1:] == leaf.shape[1:] if by_row[path] is not None and source.shape
                else source.shape == leaf.shape)
        types = {source.dtype.name, leaf.dtype.name}
        if not same or (len(types) > 1 and types != {"float32", "bfloat16"}):
            rows = "" if by_row[path] is None else " but for the rows"
            raise InputError(f"checkpoint {opened.name} does not fit: {name}{path} is "
                             f"{source.dtype} {list(source.shape)}, expected {leaf.dtype} "
                             f"{list(leaf.shape)}{rows}")
