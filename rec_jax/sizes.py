"""Few sizes for what has many, so that few programs are compiled."""

from __future__ import annotations

_FEWEST = 16


def list_room(k: int, most: int) -> int:
    """How many a program lists that is asked for the first k of `most`: a longer list begins with
    the shorter one."""
    return min(max(_FEWEST, power_of_two(k)), most)


def power_of_two(count: int) -> int:
    """The least power of two that is `count` or more; 1 for 0."""
    return 1 << max(0, count - 1).bit_length()
