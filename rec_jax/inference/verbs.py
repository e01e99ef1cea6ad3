"""A model that is loaded once, for many questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rec_jax.errors import InputError
from rec_jax.inference.cold import ColdFill, fill_cold
from rec_jax.inference.retrieve import Recommender
from rec_jax.inference.served import Served, Tell, load_served, warn
from rec_jax.mesh import parse_mesh
from rec_jax.run import Run

PathLike = Path | str
Loadable = PathLike | Recommender | Served


def load(run: PathLike, *, cold: ColdFill | str | None = None, step: int | None = None,
         data: str | None = None, mesh: str | None = None, trust_code: bool = False,
         tell: Tell = warn) -> Recommender:
    """A run's best checkpoint (or that of `step`) on its mesh, for many questions:
    `load(run).recommend(history=["50", "181"], k=5)` loads and compiles once. `evaluate`,
    `export` and `recommend` take it in place of the run's folder.

    cold: items that the training part does not have get rows from their content: by their
      neighbours, a projection, or both, or as a `ColdFill` says. Without it such items keep the
      rows that they began with.
    data: where the dataset is now, if it moved.
    mesh: where the model goes, as DATAxITEMS such as "1x8"; by default the run's mesh, or, where
      the devices here do not form that, the nearest one that they do, of which `tell` is told in
      one line (a warning). Of several processes, all must call it.
    trust_code: see `train`.

    Raises:
      InputError: no such run, step or mesh, or another dataset than the run's.
    """
    served = load_served(Run(Path(run), trust_code), step=step, dataset_path=data,
                         mesh=None if mesh is None else parse_mesh(mesh), tell=tell)
    return Recommender(served if cold is None else fill_cold(served, cold))


def loaded(run: Loadable, cold: ColdFill | str | None = None, **how: Any) -> Served:
    """A model as it is, or that of a run's folder. how: as `load` takes it.

    Raises:
      InputError: as `load`, or a model that is loaded is told what only a run can be.
    """
    if not isinstance(run, Recommender | Served):
        return load(run, cold=cold, **how).served
    for name in ("step", "data", "mesh"):
        if how.get(name) is not None:
            raise InputError(f"{name} is of a run that is to be loaded, and this model is loaded; "
                             "expected none")
    served = run.served if isinstance(run, Recommender) else run
    return served if cold is None else fill_cold(served, cold)
