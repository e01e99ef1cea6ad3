"""Realistic sessions of any size, made from hashes: nothing is kept of users or items.

Each user has a few interests (clusters of items) that are replaced one by one as time goes on.
A session picks one of them. In a session, the next item is either the next of its series (eight
items of a cluster that are consumed in order, such as episodes), or a fresh one of the cluster,
or now and then any item. Items within a cluster, and clusters, follow power laws. So popularity
helps a recommender a little, the recent cluster helps more, and the order most.

Every number is a hash of (seed, user, position), so that the rows do not depend on how the work
is cut, and a billion items or 10^8 users need no more memory than a thousand.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rec_jax import files
from rec_jax.data.arrays import counting
from rec_jax.data.permutation import mix
from rec_jax.errors import InputError
from rec_jax.progress import Reporter, Silent
from rec_jax.ranges import at_least, check

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_BLOCK_ROWS = 1_000_000  # about; users are taken in blocks that give so many rows
_SERIES = 8
_SPAN = 365 * 86_400
_EPOCH = 1_700_000_000
_SCHEMA = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.int64())])
# streams of independent random numbers
_LENGTH, _SESSION, _SLOT, _INTEREST, _CLUSTER, _ITEM, _FOLLOW, _NOISE, _GAP, _START = range(10)


@dataclass(frozen=True)
class SynthConfig:
    """What to generate.

    users, items: how many there are; ids are integers below these, and an item's id says
      nothing about its popularity.
    mean_length, min_length, max_length: interactions of a user; lengths fall exponentially.
    mean_session: interactions in a session.
    clusters: groups of co-visited items; none: one for about fifty items.
    exponent: of the power law of items within a cluster.
    follow: chance that the next item is the next of its series.
    noise: chance that a fresh item comes from anywhere.
    interests, drift: how many clusters a user likes at a time, and for how many sessions.
    slices: cut the rows into files by time, as logs are; one file otherwise.
    seed: of all that is drawn.
    """

    users: int = 5_000
    items: int = 2_000
    mean_length: float = 40.0
    min_length: int = 5
    max_length: int = 1_000
    mean_session: float = 6.0
    clusters: int | None = None
    exponent: float = 1.1
    follow: float = 0.5
    noise: float = 0.1
    interests: int = 3
    drift: int = 8
    slices: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "synth.", users=at_least(1, 2**40), items=at_least(1, 2**40),
              min_length=at_least(1), clusters=at_least(1, 2**40), exponent=at_least(0, 1e3),
              interests=at_least(1), drift=at_least(1), slices=at_least(1),
              seed=at_least(0, 2**63 - 1))
        if not self.min_length <= self.mean_length <= self.max_length:
            raise InputError(f"synth lengths are {self.min_length}, {self.mean_length}, "
                             f"{self.max_length}; expected min <= mean <= max")
        if self.mean_session < 1 or not (0 <= self.follow <= 1 and 0 <= self.noise <= 1):
            raise InputError(
                f"synth.mean_session = {self.mean_session}, follow = {self.follow}, noise = "
                f"{self.noise}; expected mean_session at least 1, follow and noise 0 to 1")
        if self.num_clusters > self.items:
            raise InputError(f"synth.clusters = {self.num_clusters}; expected "
                             "1 to `items` clusters")

    @property
    def num_clusters(self) -> int:
        return max(1, self.items // 50) if self.clusters is None else self.clusters


@dataclass(frozen=True)
class SynthReport:
    """files: Parquet with user_id, item_id, timestamp (seconds); several are in order of time."""

    files: tuple[str, ...]
    users: int
    items: int
    interactions: int
    seconds: float


def synth(config: SynthConfig, out: Path | str,
          reporter: Reporter | None = None) -> SynthReport:
    """Write interactions to the Parquet file `out`, or with slices to `out/part-*.parquet`.

    Within a file, users come in blocks, a block's rows in order of time.

    Raises:
      InputError: `out` exists.
    """
    began = time.monotonic()
    reporter = reporter or Silent()
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; give another output")
    if config.slices == 1:
        names: Sequence[Path] = [out]
        with files.atomic_writer(out) as file:
            rows = _write(config, [file], reporter)
    else:
        parts = [f"part-{index:05}.parquet" for index in range(config.slices)]
        names = [out / part for part in parts]
        # Files of ours: a writer of Parquet that fails to close leaves its own open.
        with files.atomic_folder(out) as folder, contextlib.ExitStack() as stack:
            rows = _write(config, [stack.enter_context((folder / part).open("wb"))
                                   for part in parts], reporter)
    return SynthReport(tuple(map(str, names)), config.users, config.items, rows,
                       round(time.monotonic() - began, 3))


def _write(config: SynthConfig, places: Sequence[Any], reporter: Reporter) -> int:
    """Write all interactions, one open file a slice; how many there were."""
    reporter.begin(config.users)
    rows = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pq.ParquetWriter(place, _SCHEMA)) for place in places]
        for first, stop in user_blocks(config):
            rows += _write_block(interactions(config, first, stop), writers)
            reporter.advance(stop - first, f"{rows:,} rows")
    return rows


def user_blocks(config: SynthConfig) -> Iterator[tuple[int, int]]:
    """(first, stop) of the users that are generated together."""
    size = max(1, int(_BLOCK_ROWS / config.mean_length))
    for first in range(0, config.users, size):
        yield first, min(first + size, config.users)


def interactions(config: SynthConfig, first: int, stop: int) -> dict[str, Int64s]:
    """All interactions of users [first, stop): user, item, time, each int64 [n], by user."""
    users = np.arange(first, stop)
    lengths = _lengths(config, users)
    owner = np.repeat(np.arange(len(users)), lengths)
    begin = np.cumsum(lengths) - lengths
    user = users[owner]
    position = counting(lengths)
    draw = _Draw(config.seed, user, position)

    opens = (position == 0) | (draw(_SESSION) < 1.0 / config.mean_session)
    session = np.cumsum(opens)
    session = session - session[begin][owner]
    cluster = _interest(config, user, session)
    anywhere = draw(_NOISE) < config.noise
    cluster = np.where(anywhere, _cluster(config, draw(_CLUSTER)), cluster)

    fresh = opens | (draw(_FOLLOW) >= config.follow)
    anchor = np.maximum.accumulate(np.where(fresh, np.arange(len(owner)), 0))
    cluster = cluster[anchor]
    rank = _power_law(draw(_ITEM), _cluster_size(config, cluster), config.exponent)[anchor]
    item = _in_series(config, cluster, rank, np.arange(len(owner)) - anchor)
    return {"user": user, "item": _scrambled(config, item),
            "time": _times(config, users, owner, begin, opens, draw)}


class _Draw:
    """Uniform numbers in [0, 1) for each (user, position), one stream a purpose."""

    def __init__(self, seed: int, user: Int64s, position: Int64s) -> None:
        self._seed = seed
        self._base = mix(mix(user) + position.astype(np.uint64))

    def __call__(self, stream: int) -> Floats:
        salt = mix(mix(self._seed) + np.uint64(stream))
        return (mix(self._base ^ salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _lengths(config: SynthConfig, users: Int64s) -> Int64s:
    uniform = _Draw(config.seed, users, np.zeros_like(users))(_LENGTH)
    extra = -np.log1p(-uniform) * (config.mean_length - config.min_length)
    return np.minimum(config.min_length + np.rint(extra).astype(np.int64), config.max_length)


def _interest(config: SynthConfig, user: Int64s, session: Int64s) -> Int64s:
    """The cluster of each session: one of the user's interests at that time."""
    slot = (_Draw(config.seed, user, session)(_SLOT) * config.interests).astype(np.int64)
    # the interests of a user change at different sessions
    era = (session + slot * config.drift // config.interests) // config.drift
    return _cluster(config, _Draw(config.seed, user, era * config.interests + slot)(_INTEREST))


def _cluster(config: SynthConfig, uniform: Floats) -> Int64s:
    return _power_law(uniform, np.int64(config.num_clusters), 0.5)


def _cluster_size(config: SynthConfig, cluster: Int64s) -> Int64s:
    return (config.items - cluster + config.num_clusters - 1) // config.num_clusters


def _power_law(uniform: Floats, size: Int64s | np.int64, exponent: float) -> Int64s:
    """A rank in [0, size) with density falling as (rank + 1)^-exponent: inverse of its CDF."""
    top = np.asarray(size, np.float64) + 1.0
    if math.isclose(exponent, 1.0):
        value = top ** uniform
    else:
        power = 1.0 - exponent
        value = (1.0 + uniform * (top**power - 1.0)) ** (1.0 / power)
    return np.minimum(value.astype(np.int64) - 1, size - 1)


def _in_series(config: SynthConfig, cluster: Int64s, rank: Int64s, steps: Int64s) -> Int64s:
    """The item that lies `steps` further in the series of (cluster, rank); series are rings."""
    start = rank // _SERIES * _SERIES
    size = np.minimum(_SERIES, _cluster_size(config, cluster) - start)
    return (start + (rank - start + steps) % size) * config.num_clusters + cluster


def _scrambled(config: SynthConfig, item: Int64s) -> Int64s:
    """Ids without meaning: multiplication by a number that has no divisor with `items`."""
    factor = max(1, int(config.items * 0.6180339887))
    while math.gcd(factor, config.items) != 1:
        factor += 1
    scaled = item.astype(np.uint64) * np.uint64(factor) % np.uint64(config.items)
    return scaled.astype(np.int64)


def _times(config: SynthConfig, users: Int64s, owner: Int64s, begin: Int64s,
           opens: npt.NDArray[np.bool_], draw: _Draw) -> Int64s:
    """Seconds: a minute or so within a session, days between sessions."""
    wait = -np.log1p(-draw(_GAP))
    gap = np.where(opens, 3_600 + wait * 3 * 86_400, 1 + wait * 60).astype(np.int64)
    start = _Draw(config.seed, users, np.zeros_like(users))(_START) * (_SPAN * 0.8)
    passed = np.cumsum(gap)
    return _EPOCH + start.astype(np.int64)[owner] + passed - passed[begin][owner]


def _write_block(block: dict[str, Int64s], writers: list[Any]) -> int:
    order = np.argsort(block["time"], kind="stable")
    user, item, when = (block[name][order] for name in ("user", "item", "time"))
    borders = _EPOCH + _SPAN * np.arange(1, len(writers)) // len(writers)
    cuts = [0, *np.searchsorted(when, borders), len(when)]
    for writer, start, stop in zip(writers, cuts[:-1], cuts[1:], strict=True):
        arrays = [pa.array(values[start:stop]) for values in (user, item, when)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
    return len(when)
