"""Which checkpoints are retained: the latest, the best, every k-th, and what these build on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rec_jax.checkpoint.index import CheckpointInfo


def best_step(infos: Iterable[CheckpointInfo]) -> int | None:
    """The first step with the largest metric, or the newest where none was measured."""
    infos = list(infos)
    measured = [info for info in infos if info.metric is not None and not math.isnan(info.metric)]
    if measured:
        # As early stopping counts: a later step must be better, not as good.
        return max(measured, key=lambda info: (info.metric, -info.step)).step
    return max((info.step for info in infos), default=None)


def retained_steps(infos: Iterable[CheckpointInfo], *, latest: int, every: int | None) -> set[int]:
    """Steps that are retained.

    latest: how many of the newest ones; every: also the steps that it divides; None: no others.
    """
    known = {info.step: info for info in infos}
    retained = set(sorted(known)[-latest:])
    measured = [info for info in known.values() if info.metric is not None]
    best = best_step(measured)
    if best is not None:
        retained.add(best)
    if every:
        retained |= {step for step in known if step % every == 0}
    for step in list(retained):
        retained |= set(delta_chain(known, step))
    return retained


def delta_chain(known: dict[int, CheckpointInfo], step: int) -> list[int]:
    """`step`, the base it changes, the base of that, ... as far as they are known."""
    found = [step]
    while True:
        info = known.get(found[-1])
        if info is None or info.base is None:
            return found
        found.append(info.base)
