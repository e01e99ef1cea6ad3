"""Batches of one static shape from a dataset: packed, shuffled, and resumable to the bit.

Everything about step s is a function of (dataset, settings, seed, s): the packing follows from
the histogram of lengths, the row of an epoch and the users in it from two computed
permutations. So the position in the data is one number, any step can be asked for directly,
and each of several processes makes only its own rows of the same batch.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rec_jax.data.arrays import counting
from rec_jax.data.attributes import BEGIN, attributes_to_train
from rec_jax.data.dataset import Dataset, seconds_after
from rec_jax.data.features import (
    Read,
    begin_among,
    find_features,
    read_codes,
    read_places,
    timeline_of,
)
from rec_jax.data.packing import Packing, no_packing, pack
from rec_jax.data.permutation import key, permuted
from rec_jax.data.queries import Found, check_labels
from rec_jax.data.segments import (
    Part,
    Segments,
    Targets,
    Window,
    count_lengths,
    find_segments,
    part_end,
)
from rec_jax.data.values import hashes_of, open_values
from rec_jax.errors import InputError

Batch = dict[str, npt.NDArray[Any]]
Int64s = npt.NDArray[np.int64]
T = TypeVar("T")


class BatchStream(Iterator[Batch]):
    """An endless iterator of batches of `rows` rows of `length` positions.

    A batch is a dict of arrays [rows / share count, length]:
      items: int32, input item; 0 where there is none.
      targets: int32, the item that follows it, or the input itself; -1 where there is none.
      segments: int32, 0 where a position is empty, else 1, 2, .. for the users of a row.
      positions: int32, 0, 1, .. within a segment; 0 where there is none.
      times: int32, seconds from the segment's first input to this one, at most 2^31 - 1; only
        with `times=True`; 0 where there is no input.
      features/NAME: int32 [rows / share count, length, K], codes of the input's side features
        (see `rec_jax.data.features`); 0, unknown, where there is no input.
      users: int32, the user of an input; 0 where there is none; only with `users=True`.
      values/NAME: f32, of the interaction with the target; 0 where there is none.
      histories: int32 [rows / share count, S], place of the last input of each history of a row,
        -1 for none; S is the most that a row holds. Only with `histories=True`.

    Where `features` have queries, these are inputs as well, with item 0, and no targets: the input
    before one has the target -1. features/query: f32 [.., 1 + c], 1 and the vector of its text.

    Where `features` have begin places, P of them stand in front of each segment: item 0, with the
    codes of the user's attributes in features/begin, which are 0 elsewhere. The last of them has
    the segment's first item as its target, so a user with a single item has one too, and P - 1 + n
    places have n targets.

    An epoch uses each target once. Epochs follow each other without a gap: a batch at the border
    holds the last rows of one and the first of the next, so every batch is full. Users with a
    single item in the part have no target and are left out.
    """

    def __init__(self, dataset: Dataset, *, length: int, rows: int, pack: bool = True,
                 window: Window = "last", seed: int = 0, shuffle: bool = True,
                 split: Part = "train", share: tuple[int, int] = (0, 1),
                 times: bool = False, targets: Targets = "next",
                 features: Sequence[Read] = (), users: bool = False,
                 values: Sequence[str] = (), histories: bool = False,
                 first: npt.NDArray[np.int64] | None = None,
                 events: Sequence[str] = ()) -> None:
        """Settings; nothing large is read before the first batch.

        length: positions in a row, L.
        rows: rows of the whole batch, over all shares.
        pack: several users share a row; otherwise one segment a row, padded at its end.
        window: "last": a user's last L targets; "chunks": all targets, in windows of L counted
          from the end (so that the newest one is full).
        shuffle: a new order in each epoch; otherwise one fixed order, longest segments first.
        split: how far histories go: the training part, or with the validation part, or all.
        share: (index, count): this process makes rows [index, index + 1) * rows / count.
        targets: "next": each input's next item; "self": the inputs themselves, for an objective
          that hides them, so that a user's newest item is an input as well; "all": the same, and
          of users with a single item too.
        features: side features that batches carry; time gaps ask for `times`.
        users: batches say whose an input is.
        values: numbers of the interactions that are targets, see `rec_jax.data.values`.
        histories: batches say where each history ends.
        first: int64 [U], absolute position of each user's first target: older ones are inputs, and
          no targets (-1); a user without a target is left out. None: all are targets.

        events: types of events that are targets; others are inputs, and no targets (-1). Empty: all
          are targets.

        Raises:
          InputError: impossible settings, or a dataset without any target or such a feature.
        """
        index, count = share
        if length < 1 or rows < 1:
            raise InputError(f"length = {length}, rows = {rows}; expected at least 1")
        if window not in ("last", "chunks") or split not in ("train", "valid", "test"):
            raise InputError(f"window {window!r}, split {split!r}; expected 'last' or 'chunks', "
                             "and 'train', 'valid' or 'test'")
        if not 0 <= index < count or rows % count:
            raise InputError(f"share {index} of {count} of {rows} rows; expected an index below "
                             "the count, and a count that divides the rows")
        if times and dataset.times is None:
            raise InputError(f"{dataset.folder} has no times; prepare it with columns.time")
        find_features(features, dataset)
        if seed < 0:
            raise InputError(f"seed is {seed}; expected 0 or more")
        self.dataset = dataset
        self.length, self.rows = length, rows
        self._settings: dict[str, Any] = {
            "length": length, "rows": rows, "pack": pack, "window": window, "seed": seed,
            "shuffle": shuffle, "split": split, "dataset": dataset.split_hash}
        if targets != "next":
            self._settings["targets"] = targets
        if first is not None:
            self._settings["first"] = hashlib.sha256(first.tobytes()).hexdigest()[:16]
        self._events = dataset.event_codes(events) if events else None
        if events:
            self._settings["events"] = list(events)
        self._first = first
        self._share, self._times, self._step = share, times, 0
        self._features, self._users = tuple(features), users
        self._values, self._hashes = open_values(values, dataset), hashes_of(values, dataset)
        self._shift = int(targets == "next")
        self._histories = histories
        begin = begin_among(self._features)
        if begin is not None and (targets != "next" or begin.places > length):
            raise InputError(f"{begin.places} begin places stand in front of items that predict "
                             f"the next one, in rows of {length}; expected targets 'next' (not "
                             f"{targets!r}), and at most {length} places")
        self._begin = attributes_to_train(begin, dataset)
        self._front = 0 if begin is None else begin.places
        if self._begin is not None:
            self._settings["begin"] = self._begin.hash
        # Places of a segment that have no target, and the most targets of one.
        self._bare = max(self._front - 1, 0)
        self._most = length - self._bare
        # The first item is a target too, where something stands in front of it.
        self._kind: Targets = "all" if self._front else targets
        self._timeline = timeline_of(self._features, dataset)
        if self._timeline is not None:
            if targets != "next" or first is not None:
                raise InputError("queries stand between items that predict the next one; expected "
                                 "targets 'next', and no first target")
            self._settings["queries"] = self._timeline.hash
        if self._events is not None:
            check_labels(dataset, events)
        self._histories_of = dataset if self._timeline is None else self._timeline
        self._histogram = count_lengths(self._histories_of, self._most, window, split, self._kind,
                                        first)
        self._packing = _pack(np.pad(self._histogram, (self._bare, 0)), length, pack)
        if not self.rows_per_epoch:
            raise InputError(f"{dataset.folder} has no user with two items in its {split} part"
                             + ("" if first is None else ", one of which is new there"))

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold all targets of the split once."""
        return self._packing.num_rows

    @property
    def histories_per_row(self) -> int:
        """The most histories that share a row."""
        return int(np.diff(self._packing.places).max())

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every target has been used; the last of them may begin a new epoch."""
        return -(-self.rows_per_epoch // self.rows)

    @property
    def targets_per_epoch(self) -> int:
        """Places of segments; with `first` also of those that only are read."""
        return int(self._histogram @ np.arange(len(self._histogram)))

    @property
    def useful_share(self) -> float:
        """Share of an epoch's positions that have a target: 1 is a perfect packing."""
        return self.targets_per_epoch / (self.rows_per_epoch * self.length)

    @property
    def step(self) -> int:
        """Number of the batch that comes next."""
        return self._step

    def seek(self, step: int) -> None:
        """Continue with batch `step`, at once."""
        if step < 0:
            raise InputError(f"step is {step}; expected 0 or more")
        self._step = int(step)

    def state(self, step: int | None = None) -> dict[str, Any]:
        """The position as plain JSON values.

        step: of the batch that should come next, where batches are prefetched and the consumer
        is behind this iterator; none: the iterator's own.
        """
        return {"step": self._step if step is None else int(step), **self._settings,
                **self._hashes}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken; the share may be another one.

        Raises:
          InputError: the state belongs to other settings or to another dataset.
        """
        # Kept where they were set.
        optional = {"targets", "first", "events", "begin", "queries"} & state.keys()
        for name in [*self._settings, *sorted(optional - self._settings.keys())]:
            value = self._settings.get(name)
            if state.get(name) != value:
                raise InputError(f"data position was saved with {name} = {state.get(name)!r}, "
                                 f"not {value!r}; the order of batches would not be the same")
        for name, value in self._hashes.items():
            if state.get(name, value) != value:  # older positions have none
                raise InputError(f"data position was saved with another {name} than "
                                 f"{self.dataset.folder} has; the batches would not be the same")
        self.seek(int(state["step"]))

    def __next__(self) -> Batch:
        batch = self.batch(self._step)
        self._step += 1
        return batch

    def batch(self, step: int) -> Batch:
        """This share's rows of batch `step`; the iterator does not move."""
        index, count = self._share
        own = self.rows // count
        first = step * self.rows + index * own
        row, place, begin, user = self._segments_of(np.arange(first, first + own))
        size = self._packing.lengths[place]
        within = counting(size)
        position = np.repeat(begin, size) + within
        at = np.repeat(row * self.length + self._packing.columns[place], size) + within
        rank = np.arange(len(row)) - np.searchsorted(row, row) + 1
        wanted, front = position + self._shift, within < self._front
        counts = within >= self._bare
        if self._front:  # what lies before a user's first item is somebody else's, or nothing
            position, wanted = np.where(front, 0, position), np.where(counts, wanted, 0)
        seen, position, labels, wanted = self._at(position, wanted)
        counts &= labels
        if self._first is not None:
            counts &= wanted >= np.repeat(self._first[user], size)
        if self._events is not None and self.dataset.events is not None:
            counts &= np.isin(self.dataset.events[wanted], self._events)
        filled: dict[str, tuple[int, Any, npt.NDArray[Any]]] = {
            "items": (0, np.int32, np.where(
                front if seen is None else front | (seen.query >= 0), 0,
                self.dataset.items[position])),
            "targets": (-1, np.int32, np.where(counts, self.dataset.items[wanted], -1)),
            "segments": (0, np.int32, np.repeat(rank, size)),
            "positions": (0, np.int32, within),
        }
        if self._times and self.dataset.times is not None:
            when = self.dataset.times[position] if seen is None or self._timeline is None else (
                self._timeline.times(seen))
            filled["times"] = (0, np.int32, seconds_after(
                when, np.repeat(when[np.cumsum(size) - size], size)))
        if self._users:
            filled["users"] = (0, np.int32, np.repeat(user, size))
        for name, read in self._values.items():
            filled[f"values/{name}"] = (0, np.float32, np.where(counts, read(wanted), 0))
        codes = (read_codes(self._features, self.dataset, filled["items"][2], position)
                 if seen is None or self._timeline is None else
                 read_places(self._features, self._timeline, seen))
        filled |= {path: (0, values.dtype, np.where(front[:, None], 0, values))
                   for path, values in codes.items()}
        if self._begin is not None:
            found = self._begin.at(self._begin.codes[np.repeat(user, size)],
                                   np.minimum(within, self._front - 1))
            filled[BEGIN] = (0, np.int32, np.where(front[:, None], found, 0))
        batch: Batch = {}
        for name, (empty, dtype, values) in filled.items():
            array = np.full((own * self.length, *values.shape[1:]), empty, dtype)
            array[at] = values
            batch[name] = array.reshape(own, self.length, *values.shape[1:])
        if self._histories:
            ends = np.full((own, self.histories_per_row), -1, np.int32)
            ends[row, rank - 1] = self._packing.columns[place] + size - 1
            batch["histories"] = ends
        return batch

    def _at(self, position: Int64s, wanted: Int64s
            ) -> tuple[Found | None, Int64s, npt.NDArray[np.bool_] | bool, Int64s]:
        """What stands at places of histories with queries: the positions of their interactions,
        whether an interaction is at `wanted`, and its position. Without queries, as it is."""
        if self._timeline is None:
            return None, position, True, wanted
        seen, label = self._timeline.find(position), self._timeline.find(wanted)
        found = np.where(seen.query >= 0, 0, seen.position)
        is_label = label.query < 0
        return seen, found, is_label, np.where(is_label, label.position, 0)

    @cached_property
    def _segments(self) -> Segments:
        settings = self._settings
        return find_segments(self._histories_of, self._most, settings["window"], settings["split"],
                             self._kind, self._first)

    def _segments_of(self, number: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
        """Segments in rows `number` (counted over all epochs).

        Returns:
          row within the batch, place in the packing, position in `items` of the first input (of the
          first begin place, as if it were one), user.
        """
        packing, segments = self._packing, self._segments
        seed, shuffle = self._settings["seed"], self._settings["shuffle"]
        epoch, row = np.divmod(number, self.rows_per_epoch)
        if shuffle:
            row = permuted(row, self.rows_per_epoch, key(seed, epoch, 0))
        pattern = np.searchsorted(packing.rows, row, side="right") - 1
        places = packing.places[pattern + 1] - packing.places[pattern]
        owner = np.repeat(np.arange(len(number)), places)
        place = packing.places[pattern][owner] + counting(places)
        size = packing.lengths[place]
        which = packing.base[place] + (row - packing.rows[pattern])[owner]
        targets = size - self._bare
        if shuffle:
            which = permuted(which, self._histogram[targets], key(seed, epoch[owner], size))
        which = which + segments.begin[targets]
        user = segments.user[which].astype(np.int64)
        end = np.asarray(part_end(self._histories_of, self._settings["split"])[user])
        begin = end - self._shift - size
        if segments.chunk is not None:
            begin = begin - segments.chunk[which].astype(np.int64) * self._most
        return owner, place, begin, user


def _pack(histogram: npt.NDArray[np.int64], length: int, together: bool) -> Packing:
    return pack(histogram, length) if together else no_packing(histogram)


def prefetch(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same values, made up to `depth` ahead in a background thread; 0: when they are asked for.

    An error of `iterator` is raised here in its turn. Closing the generator (or dropping it)
    ends the thread. Where a position is saved, use the consumer's step, not the iterator's.
    """
    if not depth:
        yield from iterator
        return
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                return made.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for value in iterator:
                put((True, value))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:  # handed over to the consumer
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            alive, value = made.get()
            if alive:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join()
