"""Several solvers on one dataset by one protocol: the table of baselines."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rec_jax import config as configs
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError, did_you_mean
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.protocol import Panel, Split, choose_panel, protocol
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.metrics import RATING_METRICS, Coverage, nan_to_none, rank_metrics
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers import SOLVERS, ease, ials, itemknn, popularity, userknn
from rec_jax.solvers.base import Fitted, Solver, Training
from rec_jax.solvers.cold import check_cold, evaluate_cold_solver
from rec_jax.solvers.interactions import Part, training_matrix
from rec_jax.solvers.ranking import rank_panel

Say = Callable[[str], None]


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of all solvers, and the protocol, as in a run."""

    popularity: popularity.Config = field(default_factory=popularity.Config)
    itemknn: itemknn.Config = field(default_factory=itemknn.Config)
    userknn: userknn.Config = field(default_factory=userknn.Config)
    ease: ease.Config = field(default_factory=ease.Config)
    ials: ials.Config = field(default_factory=ials.Config)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def solver(self, name: str) -> Solver:
        """The settings of one solver."""
        return cast(Solver, getattr(self, name))


def check_names(names: str | Sequence[str]) -> list[str]:
    """Names of solvers, each once; as a list, or separated by commas.

    Raises:
      InputError: there is no such solver, or none is named.
    """
    parts = names.split(",") if isinstance(names, str) else names
    found = list(dict.fromkeys(name.strip() for name in parts))
    for name in found:
        if name not in SOLVERS:
            hint = did_you_mean(name, SOLVERS, form="{} ")
            raise InputError(f"model {name!r} is unknown; {hint}expected one or more of "
                             f"{', '.join(SOLVERS)}")
    if not found:
        raise InputError(f"no model is named; expected one or more of {', '.join(SOLVERS)}")
    return found


def compare(dataset: Dataset, names: str | Sequence[str], settings: BaselineConfig | None = None,
            *, split: Split = "test", tune: bool = False, cold: ColdFill | None = None,
            filled: npt.NDArray[np.bool_] | None = None, say: Say | None = None
            ) -> dict[str, Any]:
    """Metrics of each solver, fitted on the training part, with the protocol of all of them.

    tune: choose settings of each on the validation split, by `evaluate.metric`, from its `grid`.
    cold: how withheld items get columns; `cold` of each model then says how well these do.
    filled: bool `[V]`, items that compete in any case, as beside a model that has rows for them.

    Raises:
      InputError: an unknown name, nobody to evaluate, no room, or data that a solver cannot use.
    """
    settings, say = settings or BaselineConfig(), say or _silent
    models, panel = {}, choose_panel(dataset, split, settings.evaluate, filled=filled)
    chosen = check_names(names)
    if cold is not None:
        check_cold(dataset, chosen, cold)
    for name in chosen:
        tuned = None
        if tune and settings.solver(name).grid:
            settings, tuned = _tune(dataset, name, settings, say)
        began = time.perf_counter()
        fitted = fit(dataset, name, settings, say=say)
        between = time.perf_counter()
        coverage = Coverage(dataset.popularity())
        metrics = _measure(fitted, name, dataset, panel, settings, coverage, filled)
        models[name] = {
            "metrics": metrics, "settings": configs.to_mapping(settings.solver(name)),
            "fit_seconds": round(between - began, 3),
            "rank_seconds": round(time.perf_counter() - between, 3),
            **({} if tuned is None else {"tuned": tuned}),
            **({} if cold is None else {"cold": evaluate_cold_solver(
                fitted, dataset, cold, split=split, settings=settings.evaluate)})}
    return {"models": models, "protocol": protocol(dataset, split, settings.evaluate, panel),
            "fitted_on": "training part", "histories": "everything before the target"}


def fit(dataset: Dataset, name: str, settings: BaselineConfig, *, part: Part = "train",
        say: Say | None = None) -> Fitted:
    """One solver, fitted on the training part or on all interactions."""
    solver, say = settings.solver(name), say or _silent
    say(f"{name}: fitting on {dataset.num_users:,} users and {dataset.num_items:,} items")
    matrix = training_matrix(dataset, solver.values, part)
    return solver.fit(Training(matrix, make_mesh(settings.mesh), say))


def _tune(dataset: Dataset, name: str, settings: BaselineConfig, say: Say
          ) -> tuple[BaselineConfig, dict[str, Any]]:
    """The settings with the best values of the solver's grid, and what was tried."""
    metric = settings.evaluate.metric
    if metric in RATING_METRICS:
        raise InputError(f"evaluate.metric {metric!r} is of ratings, which no baseline predicts; "
                         "expected a metric of ranks such as ndcg@10")
    panel = choose_panel(dataset, "valid", settings.evaluate, settings.evaluate.users)
    tried = []
    for values in _points(settings.solver(name)):
        candidate = _with(settings, name, values)
        fitted = fit(dataset, name, candidate)
        found = _measure(fitted, name, dataset, panel, candidate)[metric]
        tried.append({**values, metric: found})
        say(f"{name}: {values} {metric} {found:.4f} on validation")
    best = max(tried, key=lambda one: one[metric])
    chosen = {key: value for key, value in best.items() if key != metric}
    return _with(settings, name, chosen), {
        "split": "valid", "users": len(panel.users), "metric": metric, "tried": tried}


def _points(solver: Solver) -> Iterator[dict[str, Any]]:
    grid = solver.grid
    return (dict(zip(grid, values, strict=True))
            for values in itertools.product(*grid.values()))


def _with(settings: BaselineConfig, name: str, values: dict[str, Any]) -> BaselineConfig:
    changed = dataclasses.replace(getattr(settings, name), **values)
    return dataclasses.replace(settings, **{name: changed})


def _measure(fitted: Fitted, name: str, dataset: Dataset, panel: Panel, settings: BaselineConfig,
             coverage: Coverage | None = None, filled: npt.NDArray[np.bool_] | None = None
             ) -> dict[str, float | None]:
    evaluate = settings.evaluate
    ranks = rank_panel(fitted, settings.solver(name).values, dataset, panel, evaluate, coverage,
                       filled)
    shown = {} if coverage is None else nan_to_none(coverage.result(max(evaluate.ks)))
    return {**rank_metrics(ranks, evaluate.ks), **shown}


def _silent(text: str) -> None:
    del text
