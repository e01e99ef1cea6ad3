"""What the devices send each other in a step, by what for: a plan's bytes between devices.

The formulas follow the collectives that `shard_map` islands ask for and those that XLA puts
between them; `tests/plan/test_plan_counts.py` holds their sum against the text of the compiled
step.
A gather of an array over g devices brings each of them (g - 1) / g of it, a sum twice that, as a
ring does it. Every table is fetched from in one round of messages, which is what they are sized
for. What a search of the table sends (`needs.search`) is not counted.
"""

from __future__ import annotations

from typing import NamedTuple

from rec_jax.run import RunConfig
from rec_jax.tables.gather import Shards, message_capacity
from rec_jax.tables.table import padded_size

_ID = 4  # bytes


class Cut(NamedTuple):
    """How a mesh cuts tables and batches.

    data: the axis's size; shards: pieces of a table's rows, on devices / shards groups of devices.
    """

    devices: int
    data: int
    shards: int

    @property
    def groups(self) -> int:
        """Groups of devices that hold all rows, each with its own part of the batch."""
        return self.devices // self.shards


class Sizes(NamedTuple):
    """Counts of a step. positions, predicted: as in `plan`; drawn: rows of negatives, alike: those
    are the same for all positions; width, compute: bytes of a row's values and of a query's."""

    positions: int
    predicted: int
    drawn: int
    alike: bool
    width: int
    compute: int
    parameters: int


def messages(config: RunConfig, num_items: int, mode: str, cut: Cut, sizes: Sizes
             ) -> dict[str, float]:
    """Bytes that a device sends in a step, by what for."""
    dim, tied = config.table.dim, config.table.tied
    sampled = not config.objective.needs.normaliser
    others, everyone = (cut.shards - 1) / cut.shards, (cut.devices - 1) / cut.devices
    rows = padded_size(num_items)
    asked = sizes.positions / cut.groups * others
    scored = sizes.predicted / cut.groups * others
    found = {"rows and their gradients": 0.0, "queries": 0.0, "second pass": 0.0,
             "encoder gradient": 2.0 * sizes.parameters * 4 * everyone, "row gradient": 0.0}
    if mode == "dense":
        # Ids are gathered, rows come as a sum over the shards, gradients are gathered.
        taken = asked + (scored + sizes.drawn * others if sampled else 0)
        found["rows and their gradients"] = taken * (_ID + dim * (2 * 4 + 4))
        # One gradient of the rows as inputs, one as what is scored, whichever table has which.
        found["row gradient"] = 2 * 2 * rows / cut.shards * dim * 4 * (cut.data - 1) / cut.data
    else:
        wanted = {"inputs": sizes.positions}
        if sampled and tied:
            wanted = {"all": sizes.positions + sizes.predicted + sizes.drawn}
        elif sampled:
            wanted["scored"] = sizes.predicted + sizes.drawn
        for slots in wanted.values():
            # Streamed, the gradients of tied inputs go to every device (the second pass).
            back = sampled or not tied
            found["rows and their gradients"] += _exchanged(
                config, num_items, slots, cut, sizes.width, back)
    if sampled and sizes.alike and mode != "dense":  # to all devices, and their gradients' sum
        found["queries"] = sizes.drawn * (_ID + dim * (4 + 2 * 4)) * everyone
    elif not sampled:
        # Queries are gathered with labels; expected rows and gradients come as sums.
        found["queries"] = scored * (dim * (sizes.compute + 2 * 4 + 2 * 4) + 10 * 4)
    if mode == "streamed":
        found["second pass"] = everyone * (
            sizes.predicted * (dim * sizes.compute + 5 * 4)
            + (sizes.positions * (_ID + dim * 4) if tied else 0))
    return found


def _exchanged(config: RunConfig, num_items: int, slots: int, cut: Cut, width: int,
               back: bool) -> float:
    """Bytes sent to ask for the rows of `slots` ids, to answer, and if `back` to deliver gradients
    and to add those of the replicas."""
    if cut.shards == 1:
        return back * slots * (_ID + 4 * config.table.dim) * (cut.devices - 1) / cut.devices
    dim, shards = config.table.dim, Shards(cut.groups, cut.shards)
    places = cut.shards * message_capacity(
        slots // cut.devices, shards, config.table.gather_slack, num_items=num_items,
        rows_per_shard=padded_size(num_items) // cut.shards)
    others = (cut.shards - 1) / cut.shards
    sent = places * (_ID + dim * width) * others
    if back:
        sent += places * (_ID + dim * 4) * (others + cut.groups - 1)
    return sent
