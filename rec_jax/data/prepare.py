"""Interactions in files -> a dataset folder (see `rec_jax.data.dataset`).

    read and code the ids -> sort by user and time -> drop duplicates -> k-core -> split
    -> number items by popularity -> write

Interactions lie in flat files between the stages, so memory is bounded by the vocabularies and by
`memory_rows`, not by the number of interactions. The folder appears at once, when complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.appended import Before, open_before, write_marks
from rec_jax.data.arrays import NpyWriter
from rec_jax.data.dataset_check import ids_hash
from rec_jax.data.dataset_files import FORMAT_VERSION, check_ours, write_meta
from rec_jax.data.events import event_codes
from rec_jax.data.filters import Filtered, add_counts, k_core
from rec_jax.data.ids import missing_ids
from rec_jax.data.ingest import Ingested, ingest
from rec_jax.data.ingest_parts import ingest_parts
from rec_jax.data.item_features import write_item_features
from rec_jax.data.item_text import read_item_text
from rec_jax.data.prepare_config import (
    Columns,
    Filters,
    ItemFeature,
    ItemFile,
    PrepareConfig,
    SplitConfig,
    Withheld,
)
from rec_jax.data.query_rows import QueryRows, apart, write_queries
from rec_jax.data.random_split import at_random
from rec_jax.data.repeats import repeats
from rec_jax.data.row_parsing import RowCounts
from rec_jax.data.sorting import sort_rows
from rec_jax.data.source_files import files_of
from rec_jax.data.split import by_time, leave_event_out, leave_one_out, split_instants
from rec_jax.data.unused_times import unused_times
from rec_jax.data.withheld import withhold, write_withheld
from rec_jax.errors import InputError
from rec_jax.files import atomic_folder, file_hash
from rec_jax.progress import Reporter, Silent
from rec_jax.tasks import Tasks

__all__ = ["Columns", "Filters", "ItemFeature", "ItemFile", "PrepareConfig", "Report",
           "SplitConfig", "Withheld", "prepare"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    rows: read from the sources, blank lines included; bad: skipped, `bad_reasons` says why and
    `bad_lines` where the first few are ("file:line: reason").
    first_time, last_time: of the rows, as dates in UTC; time_unit: how times were read.
    repeat_share, repeat_targets: see `rec_jax.data.repeats`. notes: what should be looked at.
    appended: interactions that were added to those of another dataset, and of them `appended_late`
      before an older one of their user; None: nothing was appended to.
    queries: searches among them; None: none were asked for.
    """

    out: str
    users: int
    items: int
    interactions: int
    rows: int
    blank: int
    bad: int
    bad_reasons: dict[str, int]
    bad_lines: tuple[str, ...]
    below_min_rating: int
    duplicates: int
    outside_core: int
    valid_users: int
    test_users: int
    split_hash: str
    seconds: float
    first_time: str | None = None
    last_time: str | None = None
    time_unit: str | None = None
    repeat_share: float = 0.0
    repeat_targets: dict[str, float] = dataclasses.field(default_factory=dict)
    titled_items: int | None = None
    notes: tuple[str, ...] = ()
    appended: int | None = None
    appended_late: int | None = None
    queries: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def prepare(config: PrepareConfig, reporter: Reporter | None = None,
            tasks: Tasks | None = None) -> Report:
    """Make the dataset folder `config.out`.

    tasks: whoever reads the files and sorts the ranges of users; without, this process does. The
    folder is the same bit for bit.

    Raises:
      InputError: a source that cannot be read, a missing column, too many bad rows, nothing
        left after the filters, or an output folder that exists.
    """
    began = time.monotonic()
    reporter = reporter or Silent()
    out = Path(config.out)
    _check_free(out, config.overwrite)
    with atomic_folder(out, replace=config.overwrite, check=check_ours) as folder:
        before = open_before(config) if config.append is not None else None
        notes = unused_times(config) + (before.notes() if before else [])
        work = folder / "work"
        work.mkdir()
        known = before.known() if before else None
        found = (ingest(config, work, reporter, known) if tasks is None
                 else ingest_parts(config, work, tasks, reporter, known))
        counts = found.counts
        if found.rows.count() == (before.dataset.num_interactions if before else 0):
            raise InputError(f"{', '.join(config.sources)}: no interactions "
                             f"({counts.rows} rows, {counts.bad} bad, "
                             f"{counts.below_min_rating} below min_rating)")
        reporter.advance(0, "sorting")
        rows, duplicates = sort_rows(found.rows, found.users.size, found.rows.users.parent,
                                     config.memory_rows, config.filters.duplicates, tasks)
        queries = None
        if found.texts is not None:
            rows, queries = apart(rows, found.texts, rows.users.parent)
        kept = k_core(rows, found.users.size, found.items.size, config.filters.user_core,
                      config.filters.item_core)
        if not kept.users.any():
            raise InputError(f"no interactions are left after the filters: the "
                             f"({config.filters.user_core}, {config.filters.item_core})-core of "
                             f"{rows.count()} interactions is empty")
        reporter.advance(0, "writing")
        meta = _write(config, found, kept, folder, before, queries)
        meta["notes"] = notes + (found.times.reader.notes if found.times else []) + meta["notes"]
        meta["bad_rows"] = {"count": counts.bad, "reasons": counts.reasons,
                            "first": counts.bad_lines}
        write_meta(meta, folder)
        outside_core = rows.count() - meta["num_interactions"]
        shutil.rmtree(work)
    return _report(out, meta, counts, duplicates, outside_core, time.monotonic() - began)


def _write(config: PrepareConfig, found: Ingested, kept: Filtered, folder: Path,
           before: Before | None, queries: QueryRows | None = None) -> dict[str, Any]:
    """All files but `meta.json`, whose content is returned."""
    by_item, taken = kept.counts()[1], None
    items = np.flatnonzero(kept.items)
    if config.withheld.share:
        kept, taken = withhold(kept, config.withheld)
    by_user = kept.counts()[0]
    users = np.flatnonzero(kept.users)
    offsets = np.concatenate([[0], np.cumsum(by_user[users])]).astype(np.int64)
    per_second = found.times.reader.per_second if found.times else 1
    events = None if found.events is None else found.events.ids().to_list()
    kept, train_end, valid_end, split = _split(config, kept, users, offsets, per_second, events,
                                               folder / "work")
    in_training = _training_counts(kept, users, offsets, train_end)
    last = 0 if taken is None else taken.items[items]  # withheld items come behind all others
    rank = -in_training[items]
    if before is not None:  # items that have a number keep it
        rank = np.where(items < before.dataset.num_items, np.iinfo(np.int64).min, rank)
    items = items[np.lexsort((np.broadcast_to(last, items.shape), rank))]

    ratings = found.ratings.values
    index = np.zeros(len(kept.items), np.int32)
    index[items] = np.arange(len(items), dtype=np.int32)
    hashes = _write_arrays(kept, index, offsets, train_end, valid_end, ratings, per_second, folder)
    if events is not None:
        hashes["event types"] = hashlib.sha256(json.dumps(events).encode()).hexdigest()
    asked = None
    if queries is not None:
        asked, more = write_queries(queries, kept, users, per_second, events, folder)
        hashes |= more
    withheld = None
    if taken is not None:
        withheld, more = write_withheld(taken, users, index, config.withheld, folder)
        hashes |= more
    appended = None
    if before is not None:
        appended, more = write_marks(before, kept, users, offsets, folder)
        hashes |= more
    user_ids, ids = found.users.ids().gather(users), found.items.ids().gather(items)
    hashes |= {"user_ids": ids_hash(user_ids), "item_ids": ids_hash(ids)}
    _write_vocab(folder / "user_vocab.parquet", user_ids)
    columns = {"count": by_item[items], "train_count": in_training[items]}
    text, notes = (read_item_text(config.item_file, ids) if config.item_file
                   else (pl.DataFrame(), []))
    if before is not None:
        text = before.with_text(text, len(ids))
    vocab = _write_vocab(folder / "item_vocab.parquet", ids, columns, text)
    features, feature_hashes = write_item_features(config, ids, folder)
    hashes |= feature_hashes | {f"categories of {name}": about["hash"]
                                for name, about in features.items()}
    return {
        "format_version": FORMAT_VERSION,
        "num_users": len(users),
        "num_items": len(items),
        "num_interactions": int(offsets[-1]),
        "num_valid": int(((valid_end > train_end) & (train_end > offsets[:-1])).sum()),
        "num_test": int(((offsets[1:] > valid_end) & (valid_end > offsets[:-1])).sum()),
        "has_times": kept.files.times is not None,
        "times": found.times.about() if found.times else None,
        **repeats(kept, offsets, train_end, valid_end),
        "titled_items": (len(text) - text["title"].null_count() if "title" in text.columns
                         else None),
        "notes": [*([] if queries is None or asked is not None else [
                      f"no row has a text in {config.columns.query!r} and no item: the dataset "
                      "has no queries"]),
                  *missing_ids(user_ids, "user", by_user[users]),
                  *missing_ids(ids, "item", by_item[items]), *notes],
        "ratings": None if ratings is None else ratings.tolist(),
        "events": events,
        "queries": asked,
        "item_features": features,
        "item_columns": vocab.columns,
        "split": split,
        "withheld": withheld,
        "appended": appended,
        "split_hash": _split_hash(hashes),
        "hashes": hashes,
        "filters": dataclasses.asdict(config.filters),
        "columns": dataclasses.asdict(config.columns),
        "sources": (before.dataset.meta.get("sources", []) if before else []) + [{
                     "name": file.name, "bytes": file.path.stat().st_size,
                     "sha256": file_hash(file.path)}
                    for file in files_of(config.sources)],
        "item_order": ("" if before is None else "as they were, and then new ones by ")
        + "falling count in the training part, then first appearance",
    }


def _split(config: PrepareConfig, kept: Filtered, users: Int64s, offsets: Int64s, per_second: int,
           events: list[str] | None, work: Path) -> tuple[Filtered, Int64s, Int64s, dict[str, Any]]:
    """The interactions in the order of their parts, both ends, and what the dataset says of it."""
    split = config.split
    if split.event is not None:
        (code,) = event_codes(config.out, events, [split.event])
        return kept, *leave_event_out(kept, users, offsets, code), {
            "kind": "leave_one_out", "event": split.event, "fewest_events": 2}
    if split.kind == "leave_one_out":
        return kept, *leave_one_out(offsets), {"kind": "leave_one_out", "fewest_items": 3}
    if split.kind == "random":
        return *at_random(kept, users, offsets, split, work), {
            "kind": "random", "valid_share": split.valid_share, "test_share": split.test_share,
            "seed": split.seed}
    instants = split_instants(kept, config.split, int(offsets[-1]), per_second)
    valid_time, test_time = (ticks // per_second if ticks % per_second == 0 else ticks / per_second
                             for ticks in instants)
    description = {"kind": "time", "valid_time": valid_time, "test_time": test_time}
    return kept, *by_time(kept, users, offsets, instants, per_second), description


def _training_counts(kept: Filtered, users: Int64s, offsets: Int64s, train_end: Int64s) -> Int64s:
    """Interactions of each item code in the training part: int64 [item codes]."""
    counts = np.zeros(len(kept.items), np.int64)
    ends = np.zeros(len(kept.users), np.int64)
    ends[users] = train_end
    position = 0
    for part in kept.chunks():
        at = np.arange(position, position + len(part.users))
        add_counts(counts, part.items[at < ends[part.users]])
        position += len(part.users)
    return counts


def _write_arrays(kept: Filtered, index: npt.NDArray[np.int32], offsets: Int64s, train_end: Int64s,
                  valid_end: Int64s, ratings: npt.NDArray[np.float32] | None, per_second: int,
                  folder: Path) -> dict[str, str]:
    """The `.npy` files; returns the sha256 of each one's values.

    index: number of each item code. ratings: the different ones, rising; none: they are not kept.
    per_second: ticks of the rows' times in a second, the unit that is written.
    """
    count = int(offsets[-1])
    types = {"items": np.int32, **({"times": np.int64} if kept.files.times else {}),
             **({} if ratings is None else {"ratings": np.uint8}),
             **({} if kept.files.events is None else {"events": np.uint8})}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(NpyWriter(folder / f"{name}.npy", dtype, count))
                 for name, dtype in types.items()}
        for part in kept.chunks():
            files["items"].write(index[part.items])
            if part.times is not None:
                files["times"].write(part.times // per_second)
            if ratings is not None and part.ratings is not None:
                files["ratings"].write(np.searchsorted(ratings, part.ratings) + 1)
            if part.events is not None:
                files["events"].write(part.events)
        hashes = {name: file.close() for name, file in files.items()}
    for name, values in (("offsets", offsets), ("train_end", train_end),
                         ("valid_end", valid_end)):
        with NpyWriter(folder / f"{name}.npy", np.int64, len(values)) as file:
            file.write(values)
            hashes[name] = file.close()
    return hashes


def _write_vocab(path: Path, ids: pl.Series, counts: dict[str, Int64s] | None = None,
                 text: pl.DataFrame | None = None) -> pl.DataFrame:
    index = pl.int_range(len(ids), dtype=pl.Int64, eager=True).alias("index")
    frame = pl.DataFrame([index, ids.alias("id")]).with_columns(
        pl.Series(name, values) for name, values in (counts or {}).items())
    if text is not None and text.width:
        frame = frame.hstack(text)
    frame.write_parquet(path)
    return frame


def _split_hash(hashes: dict[str, str]) -> str:
    names = ["items", "offsets", "train_end", "valid_end", "item_ids", "user_ids"]
    # Ratings and attributes, where there are any, with their names: none stands for another.
    more = sorted(hashes.keys() - {*names, "times", "query_times"})
    parts = [hashes[name] for name in names] + [name + hashes[name] for name in more]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _check_free(out: Path, overwrite: bool) -> None:
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise InputError(f"{out} exists; give another output folder, or overwrite = true")


def _report(out: Path, meta: dict[str, Any], counts: RowCounts, duplicates: int, outside_core: int,
            seconds: float) -> Report:
    return Report(
        out=str(out), users=meta["num_users"], items=meta["num_items"],
        interactions=meta["num_interactions"], rows=counts.rows, blank=counts.blank,
        bad=counts.bad, bad_reasons=counts.reasons, bad_lines=tuple(counts.bad_lines),
        below_min_rating=counts.below_min_rating, duplicates=duplicates,
        outside_core=outside_core, valid_users=meta["num_valid"], test_users=meta["num_test"],
        split_hash=meta["split_hash"], seconds=round(seconds, 3),
        **{f"{name}_time" if name != "unit" else "time_unit": value
           for name, value in (meta["times"] or {}).items()},
        repeat_share=meta["repeat_share"], repeat_targets=meta["repeat_targets"],
        titled_items=meta["titled_items"], notes=tuple(meta["notes"]),
        queries=None if meta["queries"] is None else meta["queries"]["count"],
        **({} if meta["appended"] is None else {
            "appended": meta["appended"]["interactions"],
            "appended_late": meta["appended"]["late"]}))
