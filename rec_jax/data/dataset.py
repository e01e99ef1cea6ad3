"""A prepared dataset: interactions of users in time order, memory-mapped.

    items.npy             int32 [N]    item index, sorted by user, then by time (stable)
    offsets.npy           int64 [U+1]  the interactions of user u are [offsets[u], offsets[u+1])
    times.npy             int64 [N]    seconds; only where the source has times
    ratings.npy           uint8 [N]    number of the rating among meta's `ratings`, from 1; only
                                       where the source has ratings, of at most 255 values
    events.npy            uint8 [N]    number of its type among meta's `events`, from 1; only where
                                       the source has types of events
    queries.npy and others  searches, which are no interactions; only where the source has some
                                       (see `rec_jax.data.queries`)
    withheld.npy, withheld_offsets.npy  interactions of withheld items, in no part of the split;
                                       only where some are (see `rec_jax.data.withheld`)
    old_train_end.npy, old_end.npy  int64 [U]; only of a dataset that was appended to another one
                                       (see `rec_jax.data.appended`)
    item_features/*.npy   int32 [V, K] codes of an item's categories, 0: none; only those asked
                                       for (see `rec_jax.data.item_features`)
    train_end.npy         int64 [U]    absolute position at which user u's training part ends
    valid_end.npy         int64 [U]    absolute position at which user u's validation part ends
    item_vocab.parquet    index, id, count, train_count[, title][, text]
    user_vocab.parquet    index, id
    meta.json             counts, filters, sources and their hashes, split, bad rows; the shares
                          of repeats (`repeat_share`, `repeat_targets`; folders of before these
                          were counted lack them); sizes and checksums of the other files, and
                          its own (`rec_jax.data.dataset_files`)

Items are numbered by falling count in the training part (ties: first seen first), so that a
small index means a popular item; users in the order in which the source first names them. What is
appended to a dataset leaves the numbers as they are, and new items and users come behind, in this
order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.data.arrays import chunks, counting
from rec_jax.data.dataset_arrays import Queries, open_arrays, queries_in, read_vocabulary
from rec_jax.data.dataset_check import check
from rec_jax.data.dataset_files import read_meta
from rec_jax.data.events import event_codes
from rec_jax.data.item_features import FOLDER
from rec_jax.errors import InputError
from rec_jax.files import is_unicode

Period = Literal["valid", "test"]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, opened by `Dataset.open`; arrays are read from disk when touched.

    items: int32 [N]; offsets: int64 [U+1]; times: int64 [N] seconds or None;
    train_end, valid_end: int64 [U], absolute positions in `items`.
    ratings: uint8 [N] or None; entry i of `rating_values` has code i + 1.
    events: uint8 [N] or None; entry i of `event_types` has code i + 1.
    item_features: name -> int32 [V, K], codes of each item's categories, 0 where it has none.
    queries: searches between the interactions, or None; see `rec_jax.data.queries`.
    old_train_end, old_end: int64 [U], or None; see `rec_jax.data.appended`.
    withheld: int32 [M], and withheld_offsets: int64 [U+1], or None; see `rec_jax.data.withheld`.
    """

    folder: Path
    meta: dict[str, Any]
    items: Int32s
    offsets: Int64s
    train_end: Int64s
    valid_end: Int64s
    times: Int64s | None = None
    ratings: npt.NDArray[np.uint8] | None = None
    events: npt.NDArray[np.uint8] | None = None
    queries: Queries | None = None
    item_features: Mapping[str, Int32s] = field(default_factory=dict)
    withheld: Int32s | None = None
    withheld_offsets: Int64s | None = None
    old_train_end: Int64s | None = None
    old_end: Int64s | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Dataset:
        """Open `folder`, checking that its files belong together and are as they were written.

        The first opening reads all of it; see `rec_jax.data.dataset_check`.

        Raises:
          InputError: no dataset folder, another format version, or files that are missing,
            truncated, changed, or of the wrong size.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        arrays = open_arrays(folder, meta)
        check(folder, meta, arrays)
        return cls(
            folder=folder,
            meta=meta,
            items=arrays["items"],
            offsets=arrays["offsets"],
            train_end=arrays["train_end"],
            valid_end=arrays["valid_end"],
            times=arrays.get("times"),
            ratings=arrays.get("ratings"),
            events=arrays.get("events"),
            queries=queries_in(arrays),
            item_features={name: arrays[f"{FOLDER}/{name}"] for name in meta["item_features"]},
            withheld=arrays.get("withheld"),
            withheld_offsets=arrays.get("withheld_offsets"),
            old_train_end=arrays.get("old_train_end"),
            old_end=arrays.get("old_end"),
        )

    @property
    def vectors_folder(self) -> Path:
        """Where vectors of its items lie; see `rec_jax.data.item_vectors`."""
        return self.folder / "item_vectors"

    @property
    def num_users(self) -> int:
        return int(self.meta["num_users"])

    @property
    def num_items(self) -> int:
        return int(self.meta["num_items"])

    @property
    def num_interactions(self) -> int:
        return int(self.meta["num_interactions"])

    @property
    def split_hash(self) -> str:
        """Hash of ids, interactions, both ends of the split, and of ratings and attributes of
        items where they are kept: part of every protocol."""
        return str(self.meta["split_hash"])

    @property
    def rating_values(self) -> Sequence[float]:
        """The different ratings, rising; empty where none are kept."""
        return list(self.meta["ratings"] or ())

    @property
    def event_types(self) -> Sequence[str]:
        """The types of events, by code - 1; empty where none are kept."""
        return list(self.meta["events"] or ())

    def event_codes(self, names: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Codes uint8 [n] of types of events; raises InputError where one is none of them."""
        return event_codes(self.folder, self.event_types, names)

    def categories(self, name: str) -> int:
        """How many categories the attribute `name` of the items has: codes are 1 to that."""
        return int(self.meta["item_features"][name]["categories"])

    def history(self, user: int) -> Int32s:
        """All items of user `user` in time order: int32 [n]."""
        if not 0 <= user < self.num_users:
            raise InputError(f"user index {user} is outside 0..{self.num_users - 1}")
        return self.items[self.offsets[user]:self.offsets[user + 1]]

    def split_bounds(self, users: npt.ArrayLike | None = None) -> tuple[Int64s, Int64s, Int64s]:
        """(train_end, valid_end, end), absolute positions in `items`: int64 [U] or [len(users)].

        With start = offsets[u], user u trains on [start, train_end), is validated on
        [train_end, valid_end) and tested on [valid_end, end).
        """
        if users is None:
            return self.train_end, self.valid_end, self.offsets[1:]
        index = np.asarray(users, np.int64)
        return self.train_end[index], self.valid_end[index], self.offsets[index + 1]

    def targets(self, which: Period | Literal["new"], event: str | None = None,
                cold: bool = False) -> tuple[Int64s, Int32s, Int64s]:
        """Who is evaluated in a period, and on what.

        event: only events of this type are targets, the first one of the period. cold: users who
        have nothing before it, in the place of those who have; not of "new".

        Returns:
          users int64 [M] in rising order; the item each meets first in the period, int32 [M];
          and history_end int64 [M]: the history is `items[offsets[user]:history_end]`, that is
          everything before the target. Users without anything before it are left out. Of "new",
          the period that was appended, all interactions are targets, so that a user may come again.
        """
        code = 0 if event is None else int(self.event_codes([event])[0])
        if which == "new":
            users, items, position = self._new_targets()
            if not code:
                return users, items, position
            assert self.events is not None
            asked = np.asarray(self.events[position]) == code
            return users[asked], items[asked], position[asked]
        if which not in ("valid", "test"):
            raise InputError(f"period {which!r} is not one of 'valid', 'test'")
        begin, end = ((self.train_end, self.valid_end) if which == "valid"
                      else (self.valid_end, self.offsets[1:]))
        if code:
            begin = self._first_of(code, begin, end)
        known = begin > self.offsets[:-1]
        users = np.flatnonzero((end > begin) & (known != cold)).astype(np.int64)
        position = np.asarray(begin[users])
        return users, np.asarray(self.items[position]), position

    def _first_of(self, code: int, begin: Int64s, end: Int64s) -> Int64s:
        """Position int64 [U] of the first event of a type in [begin, end); `end` where none is."""
        assert self.events is not None
        found = np.array(end, np.int64)
        for start, stop in chunks(self.num_users, 1 << 16):
            number = np.asarray(end[start:stop] - begin[start:stop])
            place = np.repeat(begin[start:stop], number) + counting(number)
            right = np.asarray(self.events[place]) == code
            owner, place = np.repeat(np.arange(start, stop), number)[right], place[right]
            # Of several the last write stands, and that is the first of them.
            found[owner[::-1]] = place[::-1]
        return found

    def _new_targets(self) -> tuple[Int64s, Int32s, Int64s]:
        if self.old_end is None:
            raise InputError(f"{self.folder} was not appended to a dataset, so nothing in it is "
                             "new; expected one made by `rec-jax prepare --append`")
        # What has nothing before it is a user's first interaction.
        begin = np.maximum(self.old_end, self.offsets[:-1] + 1)
        number = np.maximum(self.offsets[1:] - begin, 0)
        users = np.repeat(np.arange(self.num_users), number)
        position = np.repeat(begin, number) + counting(number)
        return users, np.asarray(self.items[position]), position

    def popularity(self) -> Int64s:
        """Count of each item in the training part: int64 [V], falling where nothing was
        appended."""
        return self._item_vocab("train_count")["train_count"].to_numpy()

    @property
    def num_trained(self) -> int:
        """Items that a model may be trained on: all but those that are withheld, the last ones."""
        return self.num_items - (self.meta["withheld"] or {"items": 0})["items"]

    def is_withheld(self) -> npt.NDArray[np.bool_]:
        """Whether each item is one that training never sees on purpose: bool [V]."""
        return np.arange(self.num_items) >= self.num_trained

    def item_ids(self) -> pl.Series:
        """The ids of the source as text, by item index: [V]."""
        return self._item_vocab("id")["id"]

    def user_ids(self) -> pl.Series:
        """The ids of the source as text, by user index: [U]."""
        return self._user_vocab["id"]

    def titles(self) -> pl.Series | None:
        """Titles by item index, null where an item has none; None if the dataset has no titles."""
        if "title" not in self.meta["item_columns"]:
            return None
        return self._item_vocab("title")["title"]

    def item_index(self, ids: Iterable[object]) -> Int32s:
        """Indices of the items with these ids (as in the source; numbers are taken as text).

        Raises:
          InputError: naming the first id that the vocabulary lacks, and the nearest ones.
        """
        return self._look_up("item", self.item_ids(), ids).astype(np.int32)

    def user_index(self, ids: Iterable[object]) -> Int64s:
        """Indices of the users with these ids: int64; raises as `item_index` does."""
        return self._look_up("user", self.user_ids(), ids)

    def _item_vocab(self, *columns: str) -> pl.DataFrame:
        return read_vocabulary(self.folder / "item_vocab.parquet", columns)

    @cached_property
    def _user_vocab(self) -> pl.DataFrame:
        return read_vocabulary(self.folder / "user_vocab.parquet", ("id",))

    def _look_up(self, kind: str, known: pl.Series, ids: Iterable[object]) -> Int64s:
        wanted = [str(value) for value in ([ids] if isinstance(ids, str) else ids)]
        for value in wanted:
            if not is_unicode(value):
                raise InputError(f"{kind} id {value!r} is not Unicode; expected ids in UTF-8")
        found = places_of(known, pl.Series(wanted, dtype=pl.String))
        if found.null_count():
            missing = wanted[int(found.is_null().arg_max() or 0)]
            near = _nearest(missing, known)
            hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
            raise InputError(f"{kind} id {missing!r} is not in the vocabulary of "
                             f"{self.folder}{hint}")
        return found.cast(pl.Int64).to_numpy()


def places_of(known: pl.Series, wanted: pl.Series) -> pl.Series:
    """Places in `known` of the ids (text) `wanted`; null for null, and for what it lacks."""
    vocab = known.to_frame("id").with_row_index("index")
    return wanted.to_frame("id").join(vocab, on="id", how="left", maintain_order="left")["index"]


def seconds_after(times: Int64s, start: Int64s) -> Int32s:
    """Seconds from `start` to `times` as int32, at most 2^31 - 1 (68 years).

    What encoders read: a device has no int64, and no f32 tells two seconds of today apart.
    """
    return np.clip(times - start, 0, np.iinfo(np.int32).max).astype(np.int32)


def _nearest(missing: str, known: pl.Series, most: int = 20_000) -> Sequence[str]:
    """Up to three similar ids; only ids of about the same length are compared, at most `most`."""
    length = len(missing)
    like = known.filter(
        known.str.len_chars().is_between(max(0, length - 2), length + 2)).head(most)
    return difflib.get_close_matches(missing, like.to_list(), n=3, cutoff=0.5)
