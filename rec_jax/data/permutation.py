"""A random permutation that is computed, not stored: index -> permuted index, in O(1) memory.

A keyed bijection of b-bit numbers (odd multiplication, addition and xor-shift, as in
splitmix64) on the smallest power of two that holds the range, walked until it lands inside
("cycle walking", Black and Rogaway, 2002). Ten users or 10^8: a shuffle costs nothing to start,
and any position of it can be asked for alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
_ROUNDS = 5
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: npt.ArrayLike) -> UInt64s:
    """splitmix64's finaliser: uint64 [n] -> uint64 [n], a bijection that looks random."""
    x: Any = np.atleast_1d(np.asarray(values, np.uint64)) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def key(*parts: npt.ArrayLike) -> UInt64s:
    """One 64-bit key from non-negative integers, broadcast against each other."""
    result: UInt64s = np.zeros(1, np.uint64)
    for part in parts:
        result = mix(result ^ mix(part))
    return result


def permuted(index: npt.ArrayLike, size: npt.ArrayLike, keys: npt.ArrayLike,
             ) -> npt.NDArray[np.int64]:
    """The element at `index` of the permutation of 0..size-1 that `keys` names; elementwise.

    index, size, keys: integers of shapes that broadcast to [n], 0 <= index < size < 2^62.
    """
    x, limit, name = np.broadcast_arrays(np.asarray(index, np.uint64),
                                         np.asarray(size, np.uint64),
                                         np.asarray(keys, np.uint64))
    x = np.atleast_1d(x).copy()
    limit, name = np.atleast_1d(limit), np.atleast_1d(name)
    # frexp's exponent is the bit length, exact up to 2^53
    bits = np.maximum(np.frexp((limit - np.uint64(1)).astype(np.float64))[1], 1).astype(np.uint64)
    todo = np.arange(len(x))
    while len(todo):
        x[todo] = _scramble(x[todo], bits[todo], name[todo])
        todo = todo[x[todo] >= limit[todo]]
    return x.astype(np.int64)


def _scramble(x: UInt64s, bits: UInt64s, name: UInt64s) -> UInt64s:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    shift = np.maximum(bits // np.uint64(2), np.uint64(1))
    for number in range(_ROUNDS):
        secret = mix(name + np.uint64(number))
        x = (x + secret) & mask
        x = (x * (mix(secret) | np.uint64(1))) & mask
        x = x ^ (x >> shift)
    return x
