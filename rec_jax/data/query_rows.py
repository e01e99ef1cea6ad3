"""Rows in which somebody searched, while a dataset is made: from the files to `queries.npy`.

Once rows are sorted (`rec_jax.data.query_codes`), the queries leave the stream, each with the
position of the interaction that it came before. So no filter, no split and no count of items ever
meets one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import (
    InteractionFiles,
    Interactions,
    NpyWriter,
    chunks,
    open_flat,
    read_flat,
    write_flat,
)
from rec_jax.data.dataset_check import ids_hash
from rec_jax.data.filters import Filtered
from rec_jax.data.vocabulary import Vocabulary

Codes = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QueryRows:
    """Queries, sorted as the interactions are. rows: `items` are their texts' codes; positions: a
    flat file, int64, how many of all sorted interactions come before each; texts: by code."""

    rows: InteractionFiles
    positions: Path
    texts: Vocabulary


def apart(rows: InteractionFiles, texts: Vocabulary, folder: Path
          ) -> tuple[InteractionFiles, QueryRows]:
    """Sorted `rows`, which are deleted, as interactions and as queries."""
    left, taken = rows.like(folder, "interactions"), rows.like(folder, "queries")
    positions, before = folder / "queries.positions", 0
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(open_flat(path)) for path in each.paths]
                 for each in (left, taken)]
        places = stack.enter_context(open_flat(positions))
        for start, stop in chunks(rows.count()):
            part = rows.read(start, stop)
            asked = part.items < 0
            for mask, into in ((~asked, files[0]), (asked, files[1])):
                columns = [column for column in part.take(mask) if column is not None]
                for column, file in zip(columns, into, strict=True):
                    write_flat(file, column)
            write_flat(places, before + np.cumsum(~asked)[asked])
            before += int((~asked).sum())
    rows.delete()
    return left, QueryRows(taken, positions, texts)


def write_queries(queries: QueryRows, kept: Filtered, users: Int64s, per_second: int,
                  events: list[str] | None, folder: Path
                  ) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Write the files of the queries of the users that are kept; see `rec_jax.data.queries`.

    kept: the interactions, among which each stands; users: codes of the kept users in the dataset's
    order; per_second: ticks of the times in a second; events: types of events, by code - 1.

    Returns:
      what `meta.json` says of them, and the sha256 of the values; None where there are none.
    """
    by_user = np.zeros(len(kept.users), np.int64)
    counts = np.zeros(queries.texts.size, np.int64)
    of_types = np.zeros(256, np.int64)
    for part, _ in _placed(queries, kept):
        by_user += np.bincount(part.users, minlength=len(by_user))
        counts += np.bincount(-1 - part.items, minlength=len(counts))
        if part.events is not None:
            of_types += np.bincount(part.events, minlength=256)
    if not by_user.any():
        return None, {}
    texts = np.flatnonzero(counts)
    index = np.zeros(len(counts), np.int32)
    index[texts] = np.arange(len(texts), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(by_user[users])]).astype(np.int64)
    total = int(offsets[-1])
    types = {"queries": np.int32, "query_positions": np.int64,
             **({"query_times": np.int64} if queries.rows.times else {}),
             **({"query_events": np.uint8} if queries.rows.events else {})}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(NpyWriter(folder / f"{name}.npy", dtype, total))
                 for name, dtype in types.items()}
        offset_file = stack.enter_context(
            NpyWriter(folder / "query_offsets.npy", np.int64, len(offsets)))
        offset_file.write(offsets)
        for part, positions in _placed(queries, kept):
            files["queries"].write(index[-1 - part.items])
            files["query_positions"].write(positions)
            if part.times is not None:
                files["query_times"].write(part.times // per_second)
            if part.events is not None:
                files["query_events"].write(part.events)
        hashes = {name: file.close() for name, file in files.items()}
        hashes["query_offsets"] = offset_file.close()
    ids = queries.texts.ids().gather(texts)
    pl.DataFrame({"index": np.arange(len(ids)), "id": ids, "count": counts[texts]}).write_parquet(
        folder / "query_texts.parquet")
    hashes["query_texts"] = ids_hash(ids)
    hashes["query_lengths"] = hashlib.sha256(ids.str.len_bytes().to_numpy().tobytes()).hexdigest()
    types_of = [] if events is None else [events[code - 1] for code in np.flatnonzero(of_types)]
    return {"count": total, "texts": len(ids), "types": types_of}, hashes


def _placed(queries: QueryRows, kept: Filtered) -> Iterator[tuple[Interactions, Int64s]]:
    """The queries of the kept users in order, and how many kept interactions come before each."""
    total, count = queries.rows.count(), kept.files.count()
    positions = np.memmap(queries.positions, np.int64, "r") if total else np.zeros(0, np.int64)
    first, before = 0, 0
    for start, stop in chunks(count):
        part = kept.files.read(start, stop)
        stays = kept.users[part.users] & kept.items[part.items]
        places = before + np.concatenate([[0], np.cumsum(stays)])
        last = total if stop == count else int(np.searchsorted(positions, stop))
        for begin, end in chunks(last - first):
            some = queries.rows.read(first + begin, first + end)
            at = read_flat(queries.positions, np.int64, first + begin, first + end)
            own = kept.users[some.users]
            yield some.take(own), places[at - start][own]
        first, before = last, int(places[-1])
