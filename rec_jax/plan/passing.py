"""What it takes that all rows of a table pass by a device twice a step, from a host or a disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from rec_jax.ranges import above, check
from rec_jax.tables.placement import Where

_PARTS_HELD = 4  # one that is computed, its results, one that comes, one that goes


@dataclass(frozen=True)
class Ways:
    """Bytes a second between a device and where rows lie; what was measured replaces them.

    host_link: in each direction, to a device with memory of its own (PCIe 5, 16 lanes); disk_read,
    disk_write: in long direct reads and writes, of an NVMe disk of a rented machine.
    """

    host_link: float = 50e9
    disk_read: float = 1.2e9
    disk_write: float = 0.78e9

    def __post_init__(self) -> None:
        check(self, "plan.", host_link=above(0), disk_read=above(0), disk_write=above(0))


class Passing(NamedTuple):
    """Of one step. read, written: bytes; seconds: that they take, if nothing is computed meanwhile;
    bound_from: positions from which on computing takes longer; held: bytes of a device for parts
    that are on their way; positions: that the step has."""

    read: float
    written: float
    seconds: float
    bound_from: int
    held: float
    positions: int


def passing(rows: float, row_bytes: float, state_bytes: float, part: int, *, where: Where,
            memory: float | None, ways: Ways, positions: int, compute_seconds: float) -> Passing:
    """A table of `rows` rows that passes by twice: read for the loss; read, changed and written for
    the update.

    memory: bytes a second of the device's memory where it is the host's, None where it has its own;
    compute_seconds: that the softmax of `positions` takes.
    """
    both = row_bytes + state_bytes
    read, written = rows * (row_bytes + both), rows * both
    if where == "disk":  # it does one after the other
        seconds = read / ways.disk_read + written / ways.disk_write
    elif memory is not None:
        seconds = (read + written) / memory
    else:  # both directions at once
        seconds = rows * row_bytes / ways.host_link + rows * both / ways.host_link
    each = compute_seconds / positions
    return Passing(read, written, seconds, max(1, math.ceil(seconds / each)),
                   _PARTS_HELD * min(part, rows) * both, positions)
