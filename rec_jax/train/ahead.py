"""The ids of a step before the step: what it will read of each table, computed on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.objectives.base import Ids, keys_of_step
from rec_jax.train.mode import Batch, Setting
from rec_jax.train.tables import asked_of


class HostIds(NamedTuple):
    """`Ids` in host memory."""

    ids: np.ndarray
    present: np.ndarray


class AskedAhead:
    """Asks a run's objective for its plan of any step; it follows from batch, key and number."""

    def __init__(self, setting: Setting, num_items: int) -> None:
        def ask(key: jax.Array, step: jax.Array, batch: Batch) -> dict[str, Ids]:
            run = jax.random.wrap_key_data(key)
            keys = keys_of_step(run, step, batch["items"].shape[0])
            tasks = setting.objective.plan(batch, keys, num_items).settled()
            return {name: _joined([*request.each.values(), *request.shared.values()])
                    for name, request in asked_of(setting, batch, tasks).items()
                    if not request.empty}

        self._ask = jax.jit(ask)
        self._device = _host_device()

    def __call__(self, key: np.ndarray, step: int, batch: Batch) -> dict[str, HostIds]:
        """By table all ids that a step reads, int32 `[n]`, and which of them are there; a table of
        which it names no row is left out.

        key: uint32 `[2]`, of the state; step: updates done before it.
        """
        with jax.default_device(self._device):
            found: dict[str, Ids] = self._ask(key, np.int32(step), batch)
            return {name: HostIds(*map(np.asarray, ids)) for name, ids in found.items()}


def _joined(parts: list[Ids]) -> Ids:
    return Ids(*(jnp.concatenate([each.ravel() for each in part])
                 for part in zip(*parts, strict=True)))


def _host_device() -> Any:
    """A CPU, so that a plan does not wait for the steps that an accelerator still has to do."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use no CPU
        return jax.local_devices()[0]
