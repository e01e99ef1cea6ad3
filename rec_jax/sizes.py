"""Few sizes for what has many, so that few programs are compiled."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The least power of two that is `count` or more; 1 for 0."""
    return 1 << max(0, count - 1).bit_length()
