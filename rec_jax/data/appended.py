"""Interactions of a new period, added to a dataset: what was there keeps its numbers.

`prepare` with `append` reads the interactions of a dataset before those of the new files, and goes
on as ever: sort by user and time, filter, split. What comes out is what one preparation of all
files gives, up to how items and users are numbered: ids that the dataset has keep their numbers,
and new ones come behind. Two things are of the past and cannot be had back: interactions that the
filters of the earlier preparation dropped, so that a user or an item below its core begins anew;
and fractions of a second, so that an old interaction counts as the first within its second. An id
that the dataset has is never dropped again.

    old_train_end.npy     int64 [U]    absolute position behind the newest interaction of user u
                                       that was in the training part of the dataset before
    old_end.npy           int64 [U]    the same of all that were in it; what lies behind is new

A new interaction that is older than an old one of its user stands at its time, before `old_end`: it
is late, and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import HELD_OUT, NEW, TRAINED, Interactions, NpyWriter, chunks
from rec_jax.data.dataset import Dataset
from rec_jax.data.dataset_arrays import read_vocabulary
from rec_jax.data.filters import Filtered
from rec_jax.data.ingest import Known
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.errors import InputError


@dataclass(frozen=True)
class Before:
    """A dataset that is appended to."""

    dataset: Dataset

    def known(self) -> Known:
        """Its ids and interactions, for who reads the new ones."""
        data = self.dataset
        return Known(data.user_ids(), data.item_ids(), self.rows(), data.ratings is not None)

    def rows(self) -> Iterator[Interactions]:
        """All of its interactions in order, with what they were."""
        data = self.dataset
        values = np.array([np.nan, *data.rating_values], np.float32)
        for start, stop in chunks(data.num_interactions):
            first, last = (int(np.searchsorted(data.offsets, place, "right")) - 1
                           for place in (start, stop - 1))
            edges = np.clip(data.offsets[first:last + 2], start, stop)
            users = np.repeat(np.arange(first, last + 1), edges[1:] - edges[:-1])
            held = np.arange(start, stop) >= data.train_end[users]
            yield Interactions(
                users.astype(np.int32), np.asarray(data.items[start:stop]),
                None if data.times is None else np.asarray(data.times[start:stop]),
                None if data.ratings is None else values[data.ratings[start:stop]],
                np.where(held, HELD_OUT, TRAINED).astype(np.uint8))

    def with_text(self, text: pl.DataFrame, count: int) -> pl.DataFrame:
        """Titles and text `[count]` of the items: those of a new item file, and where it says
        nothing those that the dataset has."""
        names = [name for name in ("title", "text") if name in self.dataset.meta["item_columns"]]
        columns = {name: text[name] for name in text.columns}
        if names:
            known = read_vocabulary(self.dataset.folder / "item_vocab.parquet", names)
            more = count - self.dataset.num_items
            for name in names:
                old = known[name].cast(pl.String).extend_constant(None, more)
                given = columns.get(name)
                columns[name] = old if given is None else given.zip_with(
                    given.is_not_null(), old)
        return pl.DataFrame([columns[name].alias(name) for name in ("title", "text")
                             if name in columns])

    def notes(self) -> list[str]:
        """What of the dataset does not come along."""
        if not (self.dataset.folder / "item_vectors").is_dir():
            return []
        return [f"vectors of items in {self.dataset.folder} are not taken along; embed the new "
                "dataset where a model reads them"]


def settings_of(folder: Path | str) -> dict[str, Any]:
    """The settings of `prepare` that a dataset says of itself, as plain values: columns, filters
    and the kind of the split."""
    meta = Dataset.open(folder).meta

    def given(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    return {"columns": given(meta.get("columns", {})), "filters": given(meta.get("filters", {})),
            "split": {"kind": meta["split"]["kind"]}}


def open_before(config: PrepareConfig) -> Before:
    """The dataset `config.append`.

    Raises:
      InputError: it is none, or what `config` asks for does not go with it.
    """
    data = Dataset.open(str(config.append))
    where, columns = data.folder, config.columns
    for name, there in (("item features", bool(data.item_features or config.item_features)),
                        ("withheld items", data.withheld is not None or config.withheld.share > 0),
                        ("types of events", bool(data.events is not None or config.columns.event)),
                        ("queries", bool(data.queries is not None or config.columns.query)),
                        ("a split by chance", "random" in (data.meta["split"]["kind"],
                                                           config.split.kind))):
        if there:
            raise InputError(f"append: {name} cannot be appended to {where}; expected a dataset "
                             "without, or one preparation of all files")
    filters = dataclasses.asdict(config.filters)
    made = data.meta.get("filters", {})
    for name, value in filters.items():
        if value != made.get(name):
            raise InputError(f"append: filters.{name} is {value!r}, and {where} was made with "
                             f"{made.get(name)!r}; expected the same")
    for kind, column, kept in (("time", columns.time, data.times is not None),
                               ("rating", columns.rating, data.ratings is not None)):
        if kept and column is None:
            raise InputError(f"append: {where} keeps {kind}s, and columns.{kind} is missing")
    if columns.time is not None and data.times is None:
        raise InputError(f"append: {where} keeps no times; expected no columns.time")
    return Before(data)


def write_marks(before: Before, kept: Filtered, users: npt.NDArray[np.int64],
                offsets: npt.NDArray[np.int64], folder: Path
                ) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the two files.

    users: codes of the kept users in the dataset's order; offsets: int64 [U + 1].

    Returns:
      what `meta.json` says of what was appended, and the sha256 of the values.
    """
    index = np.zeros(len(kept.users), np.int64)
    index[users] = np.arange(len(users))
    ends = {"old_train_end": offsets[:-1].copy(), "old_end": offsets[:-1].copy()}
    position, new = 0, 0
    for part in kept.chunks():
        assert part.news is not None
        places = np.arange(position, position + len(part.users))
        for name, newest in (("old_train_end", TRAINED), ("old_end", HELD_OUT)):
            old = part.news <= newest
            # Of several places of a user the last one stays.
            ends[name][index[part.users[old]]] = places[old] + 1
        new += int((part.news == NEW).sum())
        position += len(part.users)
    hashes = {}
    for name, values in ends.items():
        with NpyWriter(folder / f"{name}.npy", np.int64, len(values)) as file:
            file.write(values)
            hashes[name] = file.close()
    behind = int((offsets[1:] - ends["old_end"]).sum())
    data = before.dataset
    return {"to": data.split_hash, "users": data.num_users, "items": data.num_items,
            "interactions": new, "late": new - behind}, hashes
