"""The verbs of solved models as Python functions, which `rec_jax.api` offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rec_jax import config as configs
from rec_jax.data.dataset import Dataset
from rec_jax.inference.cold import ColdFill
from rec_jax.inference.protocol import Split
from rec_jax.progress import reporter_of
from rec_jax.solvers.compare import BaselineConfig, check_names, compare, fit
from rec_jax.solvers.interactions import Part
from rec_jax.solvers.recommend import FittedBaseline

PathLike = Path | str


def baseline(dataset: PathLike, *, models: str | Sequence[str] = ("popularity", "itemknn", "ease"),
             settings: BaselineConfig | PathLike | None = None, overrides: Sequence[str] = (),
             split: Split = "test", tune: bool = False, cold: ColdFill | None = None,
             progress: bool = False) -> dict[str, Any]:
    """Metrics of models that are solved, not trained, by the protocol of `evaluate`.

    dataset: a folder that `prepare` made.
    models: of popularity, itemknn, userknn, ease and ials; names, or one text with commas.
    settings: a `BaselineConfig` or the path of a TOML file; overrides: lines of TOML over it,
      such as `ease.ridge=200` or `evaluate.filter_seen=false`.
    tune: choose settings from small grids on the validation split, by `evaluate.metric`.
    cold: also how well withheld items are recommended, by ease alone; see `evaluate`.

    Returns models by name (metrics, settings, seconds), and their protocol.

    Raises:
      InputError: also where a model would not fit into memory.
    """
    names = check_names(models)
    resolved = _baseline_config(settings, overrides)
    with reporter_of("baseline", progress) as reporter:
        return compare(Dataset.open(dataset), names, resolved, split=split, tune=tune, cold=cold,
                       say=reporter.say)


def fit_baseline(dataset: PathLike, model: str, *,
                 settings: BaselineConfig | PathLike | None = None, overrides: Sequence[str] = (),
                 part: Part = "train", progress: bool = False) -> FittedBaseline:
    """One of the models of `baseline`, with `recommend(history, k)` for ids of the source.

    part: what it is fitted on: the training part, as for `baseline`, or "all" interactions.
    settings, overrides: see `baseline`.
    """
    (name,) = check_names([model])
    opened, resolved = Dataset.open(dataset), _baseline_config(settings, overrides)
    with reporter_of("baseline", progress) as reporter:
        fitted = fit(opened, name, resolved, part=part, say=reporter.say)
    return FittedBaseline(opened, fitted, resolved.solver(name).values, resolved.evaluate)


def _baseline_config(settings: BaselineConfig | PathLike | None,
                     overrides: Sequence[str]) -> BaselineConfig:
    given = configs.to_mapping(settings) if isinstance(settings, BaselineConfig) else {}
    path = None if isinstance(settings, BaselineConfig) else settings
    return configs.read(BaselineConfig, path, given, overrides)
