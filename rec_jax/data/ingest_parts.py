"""Each file of the sources read by a task of its own, and put together as if one had read all.

A task codes the ids of its file for itself, in the order in which it meets them. Put together in
the order of the files, the first appearance of each id is where one reader would have met it, so
the codes are those of one reader, and so are all files that follow.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from rec_jax.data.arrays import NEW, InteractionFiles, Interactions, chunks
from rec_jax.data.ingest import (
    Ingested,
    Known,
    RatingValues,
    Reading,
    Times,
    event_codes,
    reading,
)
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.query_codes import renamed
from rec_jax.data.row_parsing import RowCounts, check_bad_share
from rec_jax.data.source_files import SourceFile, files_of
from rec_jax.data.time_units import OUT_OF_RANGE, rescaled
from rec_jax.errors import InputError
from rec_jax.progress import Reporter, Silent
from rec_jax.tasks import Tasks


@dataclass(frozen=True)
class Part:
    """A file that a task reads. folder: for its rows and ids; as_text: see `reading`."""

    config: PrepareConfig
    source: SourceFile
    folder: Path
    as_text: bool


@dataclass(frozen=True)
class Found:
    """What a task read: rows in codes of its own, whose ids are in files of the part's folder."""

    rows: InteractionFiles
    counts: RowCounts
    ratings: RatingValues
    times: Times | None


def ingest_parts(config: PrepareConfig, folder: Path, tasks: Tasks,
                 reporter: Reporter | None = None, known: Known | None = None) -> Ingested:
    """As `ingest`, by `tasks`, a file each.

    Raises:
      InputError: as `ingest`; a worker does not see `folder`; or times that no common unit holds.
    """
    reporter = reporter or Silent()
    reporter.begin(None)
    folder = folder.absolute()
    parts = [Part(config, replace(source, path=source.path.absolute()), folder / f"part-{number}",
                  as_text=known is not None)
             for number, source in enumerate(files_of(config.sources))]
    with reading(config, folder, known) as into:
        for part, found in zip(parts, tasks.run(read_part, parts), strict=True):
            _add(into, part, found)
            found.rows.delete()
            reporter.advance(found.counts.rows, f"read {part.source.name}")
    check_bad_share(into.counts, config)
    return into.finished()


def read_part(part: Part) -> Found:
    """A task: the rows of one file, as they are met."""
    if not part.folder.parent.is_dir():
        raise InputError(f"a worker on {platform.node()} does not see {part.folder.parent}; "
                         "expected the sources and the output in folders that all workers share")
    part.folder.mkdir()
    with reading(part.config, part.folder, as_text=part.as_text) as into:
        for _ in into.read(part.config, part.source):
            pass
    for ids in (into.users, into.items, into.events, into.texts):
        if ids is None:
            continue
        ids.typed_ids().to_frame().write_parquet(_ids_file(part, ids.kind))
    return Found(into.rows, into.counts, into.ratings, into.times)


def _add(into: Reading, part: Part, found: Found) -> None:
    """Append what a task read."""
    users, items = (ids.encode(pl.read_parquet(_ids_file(part, ids.kind))["id"], part.source.name)
                    for ids in (into.users, into.items))
    types = (None if into.events is None else event_codes(
        into.events, pl.read_parquet(_ids_file(part, "event"))["id"], part.config.columns.event,
        part.source.name))
    texts = None if into.texts is None else into.texts.encode(
        pl.read_parquet(_ids_file(part, into.texts.kind))["id"], part.source.name)
    into.counts.add(found.counts)
    into.ratings.join(found.ratings)
    coarser = into.times.reader.per_second if into.times else 1
    if into.times and found.times:
        into.times.reader.join(found.times.reader)
    for start, stop in chunks(found.rows.count()):
        rows = found.rows.read(start, stop)
        into.add(Interactions(
            users[rows.users],
            items[rows.items] if texts is None else renamed(rows.items, items, texts),
            None if rows.times is None else _as_fine(rows.times, found.times, into.times),
            rows.ratings if into.rows.ratings else None,
            np.full(len(rows.users), NEW, np.uint8) if into.rows.news else None,
            None if types is None or rows.events is None else types[rows.events - 1]), coarser)
        coarser = into.times.reader.per_second if into.times else 1


def _as_fine(ticks: np.ndarray, own: Times | None, common: Times | None) -> np.ndarray:
    """Ticks of a part in those of all files so far."""
    assert own is not None and common is not None
    fine = rescaled(pl.Series(ticks), common.reader.per_second // own.reader.per_second)
    if fine.null_count():
        raise InputError(OUT_OF_RANGE)
    return fine.to_numpy()


def _ids_file(part: Part, kind: str) -> Path:
    return part.folder / f"{kind}_ids.parquet"
