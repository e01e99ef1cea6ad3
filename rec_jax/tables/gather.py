"""Rows from their owners and gradients to them: all-to-all, by the rows touched.

A device asks each owner for the distinct rows it needs and gets them.

Rows are named by their number here (`ids`, in `Unique`): what maps the items' ids to them is the
caller's (`tables/row_map.py`). A message to
one owner has `capacity` places. Where the ids of some device do not fit, all devices split
theirs by bits of a hash of the id into 2, 4, 8 ... rounds until every message fits: nothing is
dropped, memory stays the same, and, since an id has one round on all devices, an owner sees
every gradient of a row in one round and can update the row there.

The functions run inside `shard_map` over the mesh axes ("data", "items"), without replication
checks, or, with `Shards.alone`, outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.kernels.rounding import mix
from rec_jax.kernels.rows import gather_rows
from rec_jax.mesh import BOTH, DATA, ITEMS, Axes
from rec_jax.tables.places import Places
from rec_jax.tables.unique import NO_ID, Unique, add_duplicates, unique_ids

Array = jax.Array

DEVIATIONS = 5.0
"""Standard deviations that a message has room for above the number of ids that it should get."""
_PADDED = 17 / 16  # most rows allocated for an item, see `padded_size`, but for small tables


class Shards(NamedTuple):
    """How a mesh cuts a table, all static.

    replicas: devices that hold the same rows; pieces: row ranges that the table is cut into;
    over: the mesh axes that cut it, `items` or both.
    """

    replicas: int = 1
    pieces: int = 1
    over: Axes = (ITEMS,)

    @property
    def alone(self) -> bool:
        """One device: no collective is needed, nor a `shard_map`."""
        return self.replicas * self.pieces == 1

    @property
    def axis(self) -> Axes | None:
        """The axes over which the rows are cut; None where one device has all of them."""
        return self.over if self.pieces > 1 else None

    def offset(self, rows: Array) -> Array:
        """Global id of the first of this device's `rows`."""
        index = jnp.int32(0) if self.axis is None else jax.lax.axis_index(self.axis)
        return index * rows.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Route:
    """Which message and round carries each distinct id.

    owner: int32 `[M]`, shard that has the row; the number of shards for an unused slot.
    place: int32 `[M]`, place in the message to the owner, less than `capacity`.
    round: int32 `[M]`; rounds: int32 `[]`, how many there are, equal on all devices.
    capacity: places of a message, static.
    """

    owner: Array
    place: Array
    round: Array
    rounds: Array
    capacity: int = field(metadata={"static": True})


def message_capacity(count: int, shards: Shards, slack: float | None, *, rows_per_shard: int,
                     num_items: int) -> int:
    """Places in a message for `count` slots, from 8 up to all of them.

    slack: how many even shares; None: what almost always suffices where ids are spread over the
      rows (`row_map`). At most `count` distinct ids then fall on the shards by chance, and a shard
      gets `DEVIATIONS` more than it should in a few of a million messages; a step whose ids repeat
      needs less. Padding is behind all items, so that the shards before it have larger shares:
      the same ones for all tables but small ones, so that a step costs the same at any size.
    """
    if slack is None:
        even = count * min(1.0, max(_PADDED / shards.pieces, rows_per_shard / num_items))
        share = math.ceil(even + DEVIATIONS * math.sqrt(even))
    else:
        share = -(-int(count * slack) // shards.pieces)
    return min(count, rows_per_shard, max(8, share))


def make_route(unique: Unique, rows_per_shard: int, shards: Shards, capacity: int) -> Route:
    """Send every distinct id to its owner in as few rounds as fit."""
    used = unique.ids != NO_ID
    owner = jnp.where(used, unique.ids // rows_per_shard, shards.pieces)
    hashed = mix(unique.ids.astype(jnp.uint32))

    def place_all(bits: Array) -> tuple[Array, Array]:
        """(place of each id in its message, whether any message of any device is too long)."""
        key = hashed & ((jnp.uint32(1) << bits) - jnp.uint32(1))
        index = jax.lax.iota(jnp.int32, owner.size)
        owners, keys, order = jax.lax.sort((owner, key, index), num_keys=2, is_stable=True)
        first = jnp.concatenate([
            jnp.ones(1, bool), (owners[1:] != owners[:-1]) | (keys[1:] != keys[:-1])])
        start = jax.lax.cummax(jnp.where(first, index, 0))
        place = jnp.zeros_like(owner).at[order].set(index - start, unique_indices=True)
        longest = jnp.max(jnp.where(used, place, 0)) + 1
        return place, jax.lax.pmax(longest, BOTH) > capacity

    if capacity >= min(owner.size, rows_per_shard):  # whatever is asked for fits into one message
        place, _ = place_all(jnp.uint32(0))
        return Route(owner, place, jnp.zeros_like(owner), jnp.int32(1), capacity)

    def more(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bits = carry[0] + jnp.uint32(1)
        return bits, *place_all(bits)

    # mix is a bijection, so that with all 32 bits every id is alone in its round: this ends.
    start = (jnp.uint32(0), *place_all(jnp.uint32(0)))
    bits, place, _ = jax.lax.while_loop(lambda carry: carry[2], more, start)
    rounds = jnp.uint32(1) << bits
    return Route(owner, place, (hashed & (rounds - 1)).astype(jnp.int32),
                 rounds.astype(jnp.int32), capacity)


def fetch_rows(rows: Array, unique: Unique, route: Route | None, shards: Shards,
               places: Places | None = None) -> Array:
    """Rows of the distinct ids, `[M, d]` in the table's type; 0 in unused slots.

    rows: `[V / shards.pieces, d]`, this device's; or, with `places`, its cache, and NaN for a row
    that should be there and is not. route: None where `shards.pieces` is 1.
    """
    offset = shards.offset(rows)

    def here(ids: Array, *, ordered: bool = False) -> Array:
        if places is None:
            return gather_rows(rows, ids - offset, ordered=ordered)
        slots = places.find(ids)
        lost = (slots == NO_ID) & (ids != NO_ID)
        return jnp.where(lost[:, None], jnp.nan, gather_rows(rows, slots))

    if route is None:
        return here(unique.ids, ordered=True)

    def one(number: Array, found: Array) -> Array:
        target = _targets(route, number, shards)
        asked = _exchange(_message(unique.ids, target, route, shards, NO_ID), shards)
        answer = _exchange(here(asked), shards)
        mine = target < answer.shape[0]
        return jnp.where(mine[:, None], answer[jnp.where(mine, target, 0)], found)

    found = jnp.zeros((unique.ids.size, rows.shape[1]), rows.dtype)
    return jax.lax.fori_loop(0, route.rounds, one, found)


def deliver_grads(carry: Any, grads: Array, unique: Unique, route: Route | None, shards: Shards,
                  apply: Callable[[Any, Array, Array], Any]) -> Any:
    """Bring every gradient to its row's owner and fold `apply` over what arrives.

    `apply(carry, ids [T], grads [T, d]) -> carry` gets ids that are ascending and distinct
    (global; NO_ID behind them) with the sum of their gradients over all devices, every
    id in one call. All devices that own a row add in the same order, so that the replicas of a
    table stay bitwise equal.

    grads: f32 `[M, d]`, of this device's distinct ids.
    """
    if shards.alone:
        return apply(carry, unique.ids, grads)
    if route is None:
        return apply(carry, *_merge(unique.ids, grads, shards))

    def one(number: Array, carry: Any) -> Any:
        target = _targets(route, number, shards)
        ids = _exchange(_message(unique.ids, target, route, shards, NO_ID), shards)
        sent = _exchange(_message(grads, target, route, shards, 0), shards)
        return apply(carry, *_merge(ids, sent, shards))

    return jax.lax.fori_loop(0, route.rounds, one, carry)


def gather_all(ids: Array, grads: Array, shards: Shards) -> tuple[Array, Array]:
    """Distinct ids and gradients of all devices on all of them: (ids ascending `[D, ]`, grads).

    For passes over the whole table, which bring all queries to all devices anyway. An id that
    several devices have occurs several times, in the order of the devices.
    """
    if not shards.alone:
        ids, grads = (jax.lax.all_gather(x, BOTH, tiled=True) for x in (ids, grads))
        ids, order = jax.lax.sort((ids, jax.lax.iota(jnp.int32, ids.size)), num_keys=1,
                                  is_stable=True)
        grads = grads[order]
    return ids, grads


def _merge(ids: Array, grads: Array, shards: Shards) -> tuple[Array, Array]:
    """One sum an id, from all peers of this message and all replicas of this shard."""
    if shards.replicas > 1:
        ids, grads = (jax.lax.all_gather(x, DATA, tiled=True) for x in (ids, grads))
    merged = unique_ids(ids, NO_ID, mask=ids != NO_ID)
    return merged.ids, add_duplicates(grads, merged)


def _targets(route: Route, number: Array, shards: Shards) -> Array:
    """Index into the messages of round `number`; past their end for ids not in it."""
    there = (route.round == number) & (route.owner < shards.pieces)
    return jnp.where(there, route.owner * route.capacity + route.place,
                     shards.pieces * route.capacity)


def _message(values: Array, target: Array, route: Route, shards: Shards, fill: int) -> Array:
    empty = jnp.full((shards.pieces * route.capacity, *values.shape[1:]), fill, values.dtype)
    return empty.at[target].set(values, mode="drop")


def _exchange(message: Array, shards: Shards) -> Array:
    """Block j goes to shard j; block i of the result came from shard i."""
    return jax.lax.all_to_all(message, shards.over, split_axis=0, concat_axis=0, tiled=True)
