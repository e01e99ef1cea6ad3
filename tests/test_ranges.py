"""Every number and name of every config is refused where it makes no sense."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from typing import Any

import pytest

import rec_jax
from rec_jax import config
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.data.synth import SynthConfig
from rec_jax.errors import InputError
from rec_jax.model.encoders import ENCODERS
from rec_jax.objectives import OBJECTIVES, given_negatives
from rec_jax.ranges import at_least, check
from rec_jax.run import RunConfig
from rec_jax.run_sections import DataConfig
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.environments import ENVIRONMENTS
from rec_jax.simulate.judge import JudgeConfig
from rec_jax.solvers.compare import BaselineConfig
from rec_jax.text.learned import ClickConfig
from rec_jax.train.pretrain_text import PretrainTextConfig
from rec_jax.train.stream_config import StreamRunConfig

NEEDED: dict[str, dict[str, Any]] = {
    "DataConfig": {"path": "x"}, "RunConfig": {"data": DataConfig("x")},
    "PrepareConfig": {"source": "x", "out": "y"}, "ItemFile": {"path": "x"},
    "ItemFeature": {"column": "x"}, "FeatureConfig": {"kind": "time_gap"},
    "ContentConfig": {"name": "x"}, "TuneConfig": {"match": "x"}, "LoraConfig": {"match": "x"},
    "ContinualConfig": {"run": "x", "step": 1}, "BeginConfig": {"table": "x", "columns": ("y",)},
    "PretrainTextConfig": {"model": "x", "out": "y", "dataset": "z"},
}
"""What cannot be left out."""

ANY_FINITE = {"BiasConfig.strength": "rare items may be preferred",
              "BiasConfig.serve_strength": "rare items may be preferred",
              "Filters.min_rating": "ratings may be of any sign",
              "PeriodsConfig.min_rating": "ratings may be of any sign",
              **{f"rating.{name}": "ratings may be of any sign"
                 for name in ("low", "high", "mean")},
              "policy_gradient.constant": "rewards may be of any sign",
              "choc_kale.choc_mean": "of the logarithm of a reward",
              "choc_kale.kale_mean": "of the logarithm of a reward",
              "interest.nothing": "utilities may be of any sign",
              "session.nothing": "utilities may be of any sign",
              "SplitConfig.valid_time": "instants before 1970 are negative",
              "SplitConfig.test_time": "instants before 1970 are negative"}
"""Fields that take negative numbers, and why."""

FREE_NAMES = {
    "kind": "of a component: the module of a third party names its own",
    "path": "of files", "files": "of files", "source": "of files", "out": "of files",
    "id": "of a column", "title": "of a column", "user": "of a column", "item": "of a column",
    "time": "of a column", "query": "of a column",
    "rating": "of a column", "column": "of a column", "name": "of a feature",
    "separator": "between fields", "encoding": "of files: Python knows them, the reader asks it",
    "time_format": "of dates", "text": "of columns", "names": "of columns", "flags": "of columns",
    "reward": "of numbers of the dataset", "match": "of parameters: who knows them all asks it",
    "run": "of a folder", "append": "of a folder", "encoder": "of a folder",
    "targets": "checked against the dataset", "event": "of a column, or as targets",
    "leave": "checked against the dataset", "model": "of a folder", "dataset": "of a folder",
    "table": "of files", "columns": "of columns",
}
"""Text fields that may be anything, and why."""


def classes() -> dict[str, type]:
    """All config dataclasses that can be reached from those that somebody writes."""
    found: dict[str, type] = {}

    def visit(cls: type) -> None:
        name = cls.__name__ if cls.__name__ != "Config" else cls.__module__.rpartition(".")[2]
        if name in found:
            return
        found[name] = cls
        for hint in typing.get_type_hints(cls).values():
            for part in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(part):
                    visit(typing.cast(type, part))

    for cls in (RunConfig, PrepareConfig, SynthConfig, JudgeConfig, BaselineConfig, AgentConfig,
                StreamRunConfig, PretrainTextConfig, ClickConfig):
        visit(cls)
    for modules in (OBJECTIVES, ENCODERS, ENVIRONMENTS):
        for kind in modules:
            visit(config.component_config(modules, kind))
    return found


CLASSES = classes()


def made(name: str, **values: Any) -> Any:
    return CLASSES[name](**{**NEEDED.get(CLASSES[name].__name__, {}), **values})


def options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def fields_of(*kinds: Any) -> list[tuple[str, str, Any]]:
    """(class, field, kind) of all fields that can hold one of `kinds`."""
    found = []
    for name, cls in CLASSES.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            for option in options(hints[field.name]):
                kind = typing.get_origin(option) if option not in kinds else option
                if kind in kinds:
                    found.append((name, field.name, option))
                elif typing.get_args(option)[1:] == (...,) and typing.get_args(option)[0] in kinds:
                    found.append((name, field.name, typing.get_args(option)[0]))
    return found


NUMBERS = fields_of(int, float)
PROTOCOLS = ("EncoderConfig", "EnvironmentConfig")
INNER = (given_negatives.Config,)
"""Settings that nobody writes."""


def test_all_configs_are_walked() -> None:
    for module in pkgutil.walk_packages(rec_jax.__path__, "rec_jax."):
        # The settings of text encoders are options of one command, with tests of their own.
        if "kernels" in module.name or module.name.startswith("rec_jax.bench."):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if (isinstance(cls, type) and dataclasses.is_dataclass(cls)
                    and cls.__name__.endswith("Config")
                    and not cls.__module__.startswith("rec_jax.text.")):
                assert cls in (*CLASSES.values(), *INNER) or cls.__name__ in PROTOCOLS, cls
    assert len(NUMBERS) > 60 and {name for name, _, _ in NUMBERS} >= {
        "OptimizerConfig", "RowOptimizerConfig", "TableConfig", "MeshConfig", "TrainConfig",
        "CheckpointConfig", "EvaluateConfig", "hstu", "transformer", *OBJECTIVES}


@pytest.mark.parametrize(("name", "field", "kind"), NUMBERS,
                         ids=[f"{name}.{field}" for name, field, _ in NUMBERS])
def test_a_number_that_makes_no_sense_is_refused_by_name(name: str, field: str,
                                                         kind: type) -> None:
    huge = [10**30] if kind is int else [1e300]
    bad: list[Any] = [math.nan, math.inf, -math.inf, True, "3", *huge]
    if f"{name}.{field}" in ANY_FINITE:
        bad.append(-huge[0])
    else:
        bad += [-1, -(10**9)] + ([] if kind is int else [-1e-3])
    if kind is int:
        bad.append(1.5)
    listed = f"{name}.{field}" == "ContentConfig.hidden" or field in ("ks", "fan_out")
    for value in bad:
        with pytest.raises(InputError, match=field.partition("_")[0]) as caught:
            made(name, **{field: (value,) if listed else value})
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)


NAMES = fields_of(typing.Literal, str)


@pytest.mark.parametrize(("name", "field", "kind"), NAMES,
                         ids=[f"{name}.{field}" for name, field, _ in NAMES])
def test_a_name_that_nobody_knows_is_refused(name: str, field: str, kind: Any) -> None:
    if kind is str and field in FREE_NAMES:
        return
    with pytest.raises(InputError, match=field):
        made(name, **{field: "nonsense"})


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_allowed_is_taken(name: str) -> None:
    made(name)


@pytest.mark.parametrize(("settings", "field"), [
    ({"b1": 1.0}, "b1"), ({"b2": 1.0}, "b2"), ({"clip": 0.0}, "clip"), ({"eps": 0.0}, "eps"),
    ({"final": 1.5}, "final"), ({"rate": 0}, "rate"), ({"schedule": "linear"}, "schedule")])
def test_the_ends_of_the_ranges_of_adam(settings: dict[str, Any], field: str) -> None:
    for name in ("OptimizerConfig", "RowOptimizerConfig"):
        known = {each.name for each in dataclasses.fields(CLASSES[name])}
        if field in known:
            with pytest.raises(InputError, match=rf"optimizer\.{field} is .*expected"):
                made(name, **settings)


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_row_optimizers_that_do_not_divide_by_eps_alone_take_none(kind: str) -> None:
    assert made("RowOptimizerConfig", kind=kind, eps=0.0).eps == 0


@pytest.mark.parametrize("kind", sorted({"next_item", "masked_item", "sampled_softmax", "in_batch",
                                         "hard_negatives"}))
def test_a_backend_is_one_of_the_kernels(kind: str) -> None:
    for known in ("auto", "xla", "native", "reference", "mosaic_gpu", "mosaic_tpu"):
        assert made(kind, backend=known).backend == known
    with pytest.raises(InputError, match=r"objective\.backend is 'nonsense'; expected one of"):
        made(kind, backend="nonsense")


def test_dropout_of_nearly_everything_is_refused() -> None:
    for name in ("hstu", "transformer"):
        with pytest.raises(InputError, match=r"dropout is 0\.99999; expected at least 0 and"):
            made(name, dropout=0.99999)


def test_a_field_without_a_range_still_takes_no_nan() -> None:
    @dataclasses.dataclass(frozen=True)
    class Third:
        rate: float = 1.0
        count: int | None = None

        def __post_init__(self) -> None:
            check(self, "third.", count=at_least(1))

    assert Third(-5.0).rate == -5
    with pytest.raises(InputError, match=r"third\.rate is nan; expected a number"):
        Third(math.nan)
    with pytest.raises(InputError, match=r"third\.count is 3000000000; expected at most 2"):
        Third(count=3 * 10**9)
