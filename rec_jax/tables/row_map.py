"""Which row of a table an item has: ids in order of popularity, spread evenly over the rows.

A mesh cuts a table into contiguous ranges of rows. Were row and id the same, the shard that has
the most popular items would be asked for most of what a step touches. So ids are dealt to
`stripes` of rows like cards: id j goes to stripe `(j mod stripes) * step mod stripes`, behind the
ids that came there before. What a range of ids, popular or not, has in common is then spread over
all shards, and so is every arithmetic pattern but that of multiples of `stripes`, a prime.
Within a stripe rows are in the order of their ids, so a range of ids is a few ranges of rows.

The map follows from the number of items alone. It knows no mesh, so that a checkpoint, which
holds rows and these numbers, is the same on every one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STRIPES = 257
"""Most stripes: at least one for each shard of the largest mesh. More would balance more evenly,
and make it dearer to read a table in the order of ids, since each range of ids lies in as many
places of a file."""
_ROWS_OF_STRIPE = 8  # a small table has fewer stripes rather than shorter ones
_GOLDEN = (math.sqrt(5) - 1) / 2  # neighbours land far apart, and prefixes of ids evenly


@dataclass(frozen=True)
class RowMap:
    """A bijection of [0, num_items); every other number, such as that of padding, stays.

    stripes, step: see above, 0 < step < stripes and coprime; 1, 1 is the identity.

    Arithmetic in int32 never overflows: `step * stripes` is small, and no row is past num_items.
    """

    num_items: int = 0
    stripes: int = 1
    step: int = 1

    @property
    def identity(self) -> bool:
        """Whether every row is that of the item with its number."""
        return self.stripes == 1

    def rows(self, ids: Any) -> Any:
        """Rows of `ids`, integers of any shape, NumPy's or JAX's; the same type."""
        if self.identity:
            return ids
        where, least = _library(ids)
        length, longer = divmod(self.num_items, self.stripes)
        place, digit = ids // self.stripes, ids % self.stripes
        # The last ids, too few for all stripes, go to the first ones: those are longer by one.
        stripe = where(place == length, digit, digit * self.step % self.stripes)
        rows = stripe * length + least(stripe, longer) + place
        return where((ids >= 0) & (ids < self.num_items), rows, ids)

    def ids(self, rows: Any) -> Any:
        """The inverse of `rows`."""
        if self.identity:
            return rows
        where, _ = _library(rows)
        length, longer = divmod(self.num_items, self.stripes)
        edge = longer * (length + 1)
        stripe = where(rows < edge, rows // (length + 1), longer + (rows - edge) // length)
        place = where(rows < edge, rows % (length + 1), (rows - edge) % length)
        back = pow(self.step, -1, self.stripes)
        digit = where(place == length, stripe, stripe * back % self.stripes)
        ids = place * self.stripes + digit
        return where((rows >= 0) & (rows < self.num_items), ids, rows)

    def to_json(self) -> dict[str, int]:
        """What a checkpoint keeps beside rows in this order."""
        return {"stripes": self.stripes, "step": self.step}


def spread(num_items: int) -> RowMap:
    """The map of a new table of `num_items`, whose shards are asked for the rows of a step."""
    stripes = _prime_below(min(STRIPES, num_items // _ROWS_OF_STRIPE))
    if stripes < 2:
        return RowMap(num_items)
    return RowMap(num_items, stripes, max(1, round(stripes * _GOLDEN)))


def row_map_of(mode: str, num_items: int) -> RowMap:
    """The map of a new table that trains in `mode`: where only few rows travel, they are spread.

    A dense table is read whole, and so is a streamed one, whose step costs a pass over all rows and
    whose kernels round by the number of a row, where rounding should follow the item.
    """
    return spread(num_items) if mode == "sparse" else RowMap(num_items)


def read_row_map(kept: Mapping[str, Any] | None, num_items: int) -> RowMap:
    """The map that a checkpoint keeps by `to_json`; None: it is older than maps: a row is an id.

    Raises:
      ValueError: it says what no writer would say.
    """
    if kept is None:
        return RowMap(num_items)
    stripes, step = kept["stripes"], kept["step"]
    if (not all(type(value) is int for value in (stripes, step)) or not 1 <= stripes <= 2**15
            or not 1 <= step <= stripes or math.gcd(step, stripes) != 1
            or (stripes > 1 and num_items < stripes)):
        raise ValueError(f"a map of {num_items} items to {stripes!r:.20} stripes by {step!r:.20}")
    return RowMap(num_items, stripes, step)


def _library(values: Any) -> tuple[Any, Any]:
    """`where` and `minimum` for `values`."""
    library: Any = jnp if isinstance(values, jax.Array) else np
    return library.where, library.minimum


def _prime_below(limit: int) -> int:
    """The largest prime up to `limit`; 1 where there is none."""
    return next((number for number in range(limit, 1, -1)
                 if all(number % part for part in range(2, math.isqrt(number) + 1))), 1)
