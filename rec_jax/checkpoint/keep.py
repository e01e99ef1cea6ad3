"""Which checkpoints stay: the latest ones, the best one, every k-th, and what these build on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rec_jax.checkpoint.layout import Info


def best_step(infos: Iterable[Info]) -> int | None:
    """The first step with the largest metric, or the newest where none was measured."""
    infos = list(infos)
    measured = [info for info in infos if info.metric is not None and not math.isnan(info.metric)]
    if measured:
        # As early stopping counts: a later step must be better, not as good.
        return max(measured, key=lambda info: (info.metric, -info.step)).step
    return max((info.step for info in infos), default=None)


def kept_steps(infos: Iterable[Info], *, latest: int, every: int | None) -> set[int]:
    """Steps that stay.

    latest: how many of the newest ones; every: also the steps that it divides; None: no others.
    """
    known = {info.step: info for info in infos}
    stay = set(sorted(known)[-latest:])
    measured = [info for info in known.values() if info.metric is not None]
    best = best_step(measured)
    if best is not None:
        stay.add(best)
    if every:
        stay |= {step for step in known if step % every == 0}
    for step in list(stay):
        stay |= set(chain(known, step))
    return stay


def chain(known: dict[int, Info], step: int) -> list[int]:
    """`step`, the base it changes, the base of that, ... as far as they are known."""
    found = [step]
    while True:
        info = known.get(found[-1])
        if info is None or info.base is None:
            return found
        found.append(info.base)
