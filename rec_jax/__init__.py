"""rec_jax: a JAX training engine for sequential recommenders with huge catalogues.

    import rec_jax
    summary = rec_jax.train("configs/ml100k.toml")
    rec_jax.evaluate(summary["run"])

The verbs of the command line are functions here; `rec_jax.kernels` holds the streaming folds
over the item axis. Names load when they are used, so that `import rec_jax` is quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rec_jax.api import (
        baseline,
        embed,
        evaluate,
        export,
        fit_baseline,
        load,
        merge_adapters,
        off_policy,
        popularity_bias,
        recommend,
        train,
    )
    from rec_jax.bench.machine import doctor
    from rec_jax.data.dataset import Dataset
    from rec_jax.data.fetch import fetch
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import PrepareConfig
    from rec_jax.data.queries import Query
    from rec_jax.data.synth import SynthConfig, synth
    from rec_jax.errors import InputError, TrainingError
    from rec_jax.inference.export import Embeddings, load_embeddings
    from rec_jax.lookup import learn_search, load_search, queries, search
    from rec_jax.plan.suggest import suggest_config
    from rec_jax.run import RunConfig
    from rec_jax.simulate.judge import JudgeConfig
    from rec_jax.simulate.log_files import LogColumns
    from rec_jax.solvers.compare import BaselineConfig
    from rec_jax.text.learned import ClickConfig
    from rec_jax.text.search import SearchConfig
    from rec_jax.train.merging import write_text_encoder
    from rec_jax.train.pretrain_text import pretrain_text

_VERBS = ("train",)  # also names of packages in this one
_HOMES = {
    "baseline": "api", "fit_baseline": "api", "recommend": "api", "load": "api",
    "off_policy": "api", "embed": "api", "popularity_bias": "api", "evaluate": "api",
    "export": "api", "merge_adapters": "api",
    "suggest_config": "plan.suggest",
    "Query": "data.queries", "queries": "lookup",
    "search": "lookup", "load_search": "lookup", "SearchConfig": "text.search",
    "learn_search": "lookup", "ClickConfig": "text.learned",
    "doctor": "bench.machine", "BaselineConfig": "solvers.compare",
    "Dataset": "data.dataset", "fetch": "data.fetch", "prepare": "data.prepare",
    "PrepareConfig": "data.prepare_config", "SynthConfig": "data.synth", "synth": "data.synth",
    "InputError": "errors", "TrainingError": "errors",
    "Embeddings": "inference.export", "load_embeddings": "inference.export", "RunConfig": "run",
    "JudgeConfig": "simulate.judge", "LogColumns": "simulate.log_files",
    "pretrain_text": "train.pretrain_text", "write_text_encoder": "train.merging",
}

__all__ = [
    "BaselineConfig", "ClickConfig", "Dataset", "Embeddings", "InputError", "JudgeConfig",
    "LogColumns", "PrepareConfig", "Query", "RunConfig", "SearchConfig", "SynthConfig",
    "TrainingError", "baseline", "doctor", "embed", "evaluate", "export", "fetch", "fit_baseline",
    "learn_search", "load", "load_embeddings", "load_search", "merge_adapters", "off_policy",
    "popularity_bias", "prepare", "pretrain_text", "queries", "recommend", "search",
    "suggest_config", "synth", "train", "write_text_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rec_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rec_jax.{_HOMES[name]}"), name)


def _verb(name: str) -> property:
    def function(package: types.ModuleType) -> Any:
        return getattr(importlib.import_module("rec_jax.api"), name)

    def ignore(package: types.ModuleType, module: types.ModuleType) -> None:
        """The import system binds a submodule to its name here; the function keeps it."""

    return property(function, ignore)


class _Package(types.ModuleType):
    """`rec_jax.train` is the function, even after `from rec_jax.train.loop import ...`."""


for _name in _VERBS:
    setattr(_Package, _name, _verb(_name))
sys.modules[__name__].__class__ = _Package
