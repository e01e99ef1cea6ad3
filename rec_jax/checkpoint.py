"""Checkpoints of a run: saved asynchronously, complete or absent, restored bit for bit.

Orbax writes each array shard by shard through tensorstore into a temporary folder and renames
it when everything is on disk, so a folder with a step's name is a complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rec_jax.errors import InputError

S = TypeVar("S")
_METRIC = "metric"


class Checkpoints:
    """The checkpoints of one folder: `keep` latest ones and the best one stay.

    A context manager: leaving it waits for the writes that are under way.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2) -> None:
        preservation = policies.AnyPreservationPolicy([
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=lambda metrics: metrics.get(_METRIC, 0.0), n=1,
                           keep_checkpoints_without_metrics=False),
        ])
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_METRIC], preservation_policy=preservation, cleanup_tmp_directories=True,
            step_prefix="step"))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, extra: Mapping[str, Any],
             metric: float | None = None) -> None:
        """Start saving pytree `state` and JSON-able `extra`; arrays are copied before return.

        metric: larger is better; the checkpoint with the largest one is kept.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step, metrics=None if metric is None else {_METRIC: float(metric)},
            args=ocp.args.Composite(state=ocp.args.StandardSave(state),
                                    extra=ocp.args.JsonSave(dict(extra))))

    def wait(self) -> None:
        """Return when every started save is complete on disk."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the largest metric, or the newest where none was measured."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        restored = self._restore(step, extra=ocp.args.JsonRestore())
        return restored["extra"]

    def restore(self, step: int, like: S) -> S:
        """The state of `step`, in the structure, dtypes and shardings of `like`.

        like: a pytree of arrays or `jax.ShapeDtypeStruct` with shardings.

        Raises:
          InputError: the checkpoint is damaged or holds another structure.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            # Orbax and tensorstore raise many types for damaged files; the first line of each
            # says what is wrong.
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"checkpoint {self.folder.name}/step_{step} cannot be read: "
                             f"{first[:300]}") from error
