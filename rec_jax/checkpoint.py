"""Checkpoints of a run: saved asynchronously, complete or absent, restored bit for bit.

A checkpoint is a few named pytrees of arrays and one JSON object beside them. Orbax writes each
array shard by shard through tensorstore into a temporary folder and renames that when all of it
is on disk, so a folder with a step's name is a complete checkpoint. A reader takes the pytrees
that it needs: evaluation and export never read the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rec_jax.errors import InputError

_METRIC, _STEP = "metric", "step"
_EXTRA = "extra"
_PREFIX = "step"


class Checkpoints:
    """The checkpoints of one folder: the `keep` latest ones and the best one stay.

    A context manager: leaving it waits for the writes that are under way.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, read_only: bool = False) -> None:
        """read_only: nothing in the folder changes, not even what a running save has begun."""
        self.folder = Path(folder).absolute()
        preservation = policies.AnyPreservationPolicy([
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=_order, n=1, keep_checkpoints_without_metrics=False),
        ])
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(
            best_fn=_order, preservation_policy=preservation, create=not read_only,
            cleanup_tmp_directories=not read_only, step_prefix=_PREFIX))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._manager.close()

    def save(self, step: int, items: Mapping[str, Any], extra: Mapping[str, Any],
             metric: float | None = None) -> None:
        """Start saving; the arrays are copied before this returns.

        items: pytrees of arrays by name; extra: JSON-able.
        metric: larger is better; the first checkpoint with the largest one is kept.
        """
        if step in self._manager.all_steps():
            return
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        arguments[_EXTRA] = ocp.args.JsonSave(dict(extra))
        self._manager.save(step, metrics={_METRIC: metric, _STEP: step},
                           args=ocp.args.Composite(**arguments))

    def wait(self) -> None:
        """Return when every started save is complete on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The first step with the largest metric, or the newest where none was measured."""
        return self._manager.best_step()

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        return self._restore(step, {_EXTRA: ocp.args.JsonRestore()})[_EXTRA]

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """The named pytrees of `step`, in the structure, dtypes and shardings of `like`.

        like: pytrees by name, of arrays or `jax.ShapeDtypeStruct`; names that are not asked
          for are not read.

        Raises:
          InputError: the checkpoint is damaged or holds another structure.
        """
        wanted = {name: ocp.args.StandardRestore(
            jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)) for name, tree in like.items()}
        restored = self._restore(step, wanted)
        return {name: restored[name] for name in like}

    def _restore(self, step: int, items: Mapping[str, Any]) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            # Orbax and tensorstore raise many types for damaged files.
            raise InputError(f"checkpoint {self.folder.name}/{_PREFIX}_{step} cannot be read: "
                             f"{_root_cause(error)}") from error


def _order(metrics: Mapping[str, Any]) -> tuple[float, int]:
    # As early stopping counts: a later step must be better, not as good. Of the steps that
    # were not measured, the newest comes first.
    metric, step = metrics[_METRIC], int(metrics.get(_STEP, 0))
    return (-math.inf, step) if metric is None or math.isnan(metric) else (metric, -step)


def _root_cause(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
