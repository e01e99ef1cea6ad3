"""Histories of chosen users as fixed-size tiles: what evaluation and export feed an encoder.

A tile is a fixed number of users, whatever batch size a caller asks for: `TILE` with histories of
up to the full length, and more where those are shorter (`tile_shapes`). Users are cut into tiles
by the length of their histories and their order alone, and each tile is computed in one static
shape, so that no number can depend on how many tiles are computed together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rec_jax.data.arrays import counting
from rec_jax.data.attributes import BEGIN, attributes_of
from rec_jax.data.dataset import Dataset, seconds_after
from rec_jax.data.features import (
    Codes,
    Read,
    begin_among,
    find_features,
    read_codes,
    read_places,
    timeline_of,
)
from rec_jax.data.queries import Timeline
from rec_jax.errors import InputError

TILE = 32
_MOST_SPARE = 4096
"""Users that a batch has room for at most where there are fewer."""
_EIGHTHS, _SHORTEST = (8, 6, 4, 3, 2, 1), 16

Array = Any  # numpy on the host, JAX inside a jitted function


class Reading(NamedTuple):
    """What a model reads of a history, and where its query is.

    length: L. hidden_next: the place after the newest item is the query's, and hidden, as the
      places that a bidirectional encoder learned to fill; otherwise the newest item's own place.
    times: the encoder, or a time gap, reads times. features: what it reads beside the items, and
      in front of them. users: it reads who asks.
    """

    length: int
    hidden_next: bool = False
    times: bool = False
    features: tuple[Read, ...] = ()
    users: bool = False

    @property
    def room(self) -> int:
        """Newest items that fit, with the queries between them."""
        return self.length - self.hidden_next - self.front

    @property
    def front(self) -> int:
        """Places in front of the items."""
        begin = begin_among(self.features)
        return 0 if begin is None else begin.places


class TileShape(NamedTuple):
    """users: T; length: L, places of each."""

    users: int
    length: int


def tile_shapes(length: int) -> list[TileShape]:
    """Shapes for histories of at most `length` places, and of six to one eighths of it.

    The shorter ones have about as many more users, in eights, so that all cost about the same.
    More shapes would save little more, and each is compiled by itself.
    """
    shapes = [TileShape(TILE * 8 // part // 8 * 8, -(-length * part // 8)) for part in _EIGHTHS]
    return [shape for shape in shapes if shape.users == TILE or shape.length >= _SHORTEST]


def choose_shapes(reading: Reading, counts: np.ndarray) -> np.ndarray:
    """For whole histories of `counts` items and queries, int `[M]`: which of `tile_shapes` each
    fits best."""
    places = np.minimum(counts, reading.room) + reading.hidden_next + reading.front
    lengths = np.array([shape.length for shape in tile_shapes(reading.length)])
    return np.sum(places[:, None] <= lengths, axis=1) - 1


class Tiles(NamedTuple):
    """`G` tiles of `T` users with histories of at most `L` places; spare ones are empty users.

    used: bool `[G]`, false for tiles of spare users alone.
    items, positions: int32 `[G, T, L]`, the newest items, from place 0, or behind begin places.
    segments: int32 `[G, T, L]`, 1 for an item, a query, a begin or a hidden place, 0 for padding.
    last: int32 `[G, T]`, place of the query.
    hidden: bool `[G, T, L]`, true in a hidden place; None where there are none.
    times: int32 `[G, T, L]`, features: `[G, T, L, K]` by path, see
      `rec_jax.model.encoders.Inputs`; None where nobody reads them.
    targets: int32 `[G, T]`.
    users: int32 `[G, T]`; None where nobody reads them.
    seen_offsets: int32 `[G, T + 1]`, seen_items: int32 `[G, E]`: the whole history of user t
      is `seen_items[seen_offsets[t]:seen_offsets[t + 1]]`.
    """

    used: Array
    items: Array
    segments: Array
    positions: Array
    last: Array
    targets: Array
    seen_offsets: Array
    seen_items: Array
    hidden: Array | None = None
    times: Array | None = None
    features: dict[str, Array] | None = None
    users: Array | None = None


def iterate_tiles(dataset: Dataset, users: np.ndarray, ends: np.ndarray,
                  targets: np.ndarray | None, *, reading: Reading, batch: int,
                  devices: int = 1) -> Iterator[tuple[Tiles, np.ndarray]]:
    """Cut `users` into tiles; give about `batch` users at a time, with their places in `users`.

    users: `[M]`; ends: int64 `[M]`, absolute end of each history in `dataset.items`;
    targets: int32 `[M]` or None. Long histories come first; all places come once.
    devices: the tiles that are given together are a multiple of these, a tile a device.

    Raises:
      InputError: `reading` wants times or features that the dataset does not have.
    """
    find_features(reading.features, dataset)
    if reading.times and dataset.times is None:
        raise InputError(f"{dataset.folder} has no times; prepare it with columns.time")
    starts, items = np.asarray(dataset.offsets)[users], np.asarray(dataset.items)
    attributes = attributes_of(begin_among(reading.features), dataset)
    timeline = timeline_of(reading.features, dataset)
    places = ends - starts if timeline is None else (
        timeline.ends(users, ends) - timeline.offsets[users])
    fitting = choose_shapes(reading, places)
    batch = min(batch, max(_MOST_SPARE, len(users)))
    for number, shape in enumerate(tile_shapes(reading.length)):
        own = np.flatnonzero(fitting == number)
        capacity = seen_capacity((ends - starts)[own], shape.users)
        group = max(1, -(-batch // (shape.users * devices))) * devices
        for first in range(0, len(own), group * shape.users):
            chosen = own[first:first + group * shape.users]
            bounds = list(zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True))
            histories = [items[start:end] for start, end in bounds]
            times = None if dataset.times is None or not reading.times else [
                dataset.times[max(start, end - reading.room):end] for start, end in bounds]
            codes = None if not reading.features else [
                recent_codes(dataset, reading, history, end)
                for history, (_, end) in zip(histories, bounds, strict=True)]
            recent: list[np.ndarray] | None = None
            if timeline is not None:
                newest = recent_places(timeline, reading, users[chosen], ends[chosen])
                recent, codes = [each.items for each in newest], [each.codes for each in newest]
                times = [each.times for each in newest if each.times is not None]
            wanted = None if targets is None else targets[chosen]
            yield make_tiles(histories, wanted, group=group, shape=shape, reading=reading,
                             capacity=capacity, times=times, codes=codes, recent=recent,
                             users=users[chosen], front=None if attributes is None else
                             attributes.in_front(attributes.codes[users[chosen]])), chosen


def recent_codes(dataset: Dataset, reading: Reading, history: np.ndarray,
                 end: int | None) -> Codes:
    """Codes of the features of a history's newest items.

    history: int `[n]`, all of it; end: where it ends in the dataset's arrays; None: it is not
      from there.
    """
    recent = history[max(0, len(history) - reading.room):]
    places = None if end is None else slice(end - len(recent), end)
    return read_codes(reading.features, dataset, recent, places)


class Recent(NamedTuple):
    """The newest places of a history with queries. items: int32 `[n]`, 0 for a query; times: int64
    `[n]`, None where nobody reads them; codes: of its features."""

    items: np.ndarray
    times: np.ndarray | None
    codes: Codes


def recent_places(timeline: Timeline, reading: Reading, users: np.ndarray, ends: np.ndarray
                  ) -> list[Recent]:
    """Of users `[n]` whose interactions end at `ends` int64 `[n]`, with the queries before those
    that stand there."""
    last = timeline.ends(users, ends)
    first = np.maximum(timeline.offsets[users], last - reading.room)
    found = timeline.find(np.repeat(first, last - first) + counting(last - first))
    asked = found.query >= 0
    items = np.where(asked, 0, timeline.dataset.items[np.where(asked, 0, found.position)])
    times = timeline.times(found) if reading.times else None
    codes = read_places(reading.features, timeline, found)
    cuts = np.concatenate([[0], np.cumsum(last - first)]).tolist()
    return [Recent(items[start:stop], None if times is None else times[start:stop],
                   {path: values[start:stop] for path, values in codes.items()})
            for start, stop in itertools.pairwise(cuts)]


def seen_capacity(lengths: np.ndarray, users: int) -> int:
    """Room for the whole histories of the fullest tile of so many users, rounded up so that
    shapes rarely change."""
    sums = np.add.reduceat(lengths, np.arange(0, lengths.size, users)) if lengths.size else [0]
    return int(-(-max(int(np.max(sums)), 1) // 1024) * 1024)


def make_tiles(histories: Sequence[np.ndarray], targets: np.ndarray | None, *, group: int,
               shape: TileShape, reading: Reading, capacity: int,
               times: Sequence[np.ndarray] | None = None,
               codes: Sequence[Codes] | None = None, users: np.ndarray | None = None,
               recent: Sequence[np.ndarray] | None = None,
               front: np.ndarray | None = None) -> Tiles:
    """At most `group * T` whole histories (int `[n]` each) as `group` tiles of `shape`.

    capacity: E, at least the sum of the lengths in each tile; times: int64 seconds of each
    history's items, or of its newest ones; codes: of its newest items, see `recent_codes`; users:
    int `[n]`, whose they are; front: int32 `[n, P, K]`, codes of the begin places; all needed where
    `reading` wants them. recent: the newest places of each history, where there are others than
    its items; then times and codes are of these.
    """
    newest = histories if recent is None else recent
    width, length = shape
    count, places = len(histories), group * width
    full = (group, width, length)
    counts = _pad([len(history) for history in histories], places)
    kept = np.minimum(_pad([len(each) for each in newest], places), reading.room)
    first = reading.front
    there = (np.arange(length) >= first) & (np.arange(length) < kept[:, None] + first)  # [G * T, L]
    ends = kept + (np.arange(places) < count) * np.int32(reading.hidden_next + first)
    segments = (np.arange(length) < ends[:, None]).astype(np.int32).reshape(full)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), full)
    asked = np.maximum(ends - 1, 0).reshape(group, width)
    seen_offsets = np.zeros((group, width + 1), np.int32)
    seen_offsets[:, 1:] = np.cumsum(counts.reshape(group, width), axis=1)
    seconds = features = None
    if reading.times:
        assert times is not None
        seconds = _fill(there, [seconds_after(when, when[:1])
                                for when in map(_newest, times, kept)]).reshape(full)
    if reading.features:
        assert codes is not None
        features = {path: _fill(there, [each[path] for each in codes]).reshape(*full, -1)
                    for path in codes[0]}
        if front is not None:
            features[BEGIN] = np.zeros((places, length, front.shape[-1]), np.int32)
            features[BEGIN][:count, :first] = front
            features[BEGIN] = features[BEGIN].reshape(*full, -1)
    return Tiles(
        used=np.arange(group) * width < count,
        items=_fill(there, list(map(_newest, newest, kept))).reshape(full),
        segments=segments, positions=positions, last=asked,
        targets=_pad([] if targets is None else targets, places).reshape(group, width),
        seen_offsets=seen_offsets,
        seen_items=_fill(np.arange(capacity) < seen_offsets[:, -1:], histories, empty=-1),
        hidden=positions == asked[..., None] if reading.hidden_next else None,
        times=seconds, features=features,
        users=None if users is None or not reading.users else
        _pad(users, places).reshape(group, width))


def _newest(values: np.ndarray, count: int) -> np.ndarray:
    return values[len(values) - count:]


def _pad(values: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """int32 `[length]`, zeros behind the values."""
    padded = np.zeros(length, np.int32)
    padded[:len(values)] = values
    return padded


def _fill(there: np.ndarray, parts: Sequence[np.ndarray], empty: int = 0) -> np.ndarray:
    """The parts, one after the other, where `there` `[N, L]` is true: `[N, L, ...]`, f32 where
    they are, and else int32.

    parts: `[n, ...]` each, with as many values in all as places are true.
    """
    values = np.concatenate(parts)
    filled = np.full(there.shape + values.shape[1:], empty,
                     np.float32 if values.dtype == np.float32 else np.int32)
    filled[there] = values
    return filled
