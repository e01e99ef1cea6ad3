"""A training computes with the same backends for its whole life, and says where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAfter, Stopped

from rec_jax import config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.kernels import auto, dispatch
from rec_jax.kernels.native import build as native_build
from rec_jax.run import Run, RunConfig
from rec_jax.train import backends
from rec_jax.train.log import read_metrics
from rec_jax.train.loop import run_training

Mapping = Callable[..., dict[str, Any]]
FOLDS = ("softmax", "rank", "attention", "feed_forward")
NATIVE = {"platform": "cpu", **dict.fromkeys(FOLDS, "native")}
XLA = {"platform": "cpu", **dict.fromkeys(FOLDS, "xla")}
SETTINGS = ("train.steps=12", "train.log_every=1", "train.checkpoint_every=3")

built = pytest.mark.skipif(native_build.problem() is not None, reason="no native library")


class Said(StopAfter):
    """Keeps the lines, and stops after so many steps."""

    def __init__(self, steps: int = 10**9) -> None:
        super().__init__(steps)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def about_backends(self) -> list[str]:
        return [line for line in self.lines if line.startswith("backends")]


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has logged nothing yet."""
    auto._unusable.cache_clear()
    yield
    auto._unusable.cache_clear()


def run_of(mapping: Mapping, folder: Path, *lines: str) -> tuple[Run, RunConfig]:
    return Run(folder), config.build(RunConfig, mapping(*SETTINGS, *lines))


def train(run: Run, settings: RunConfig, said: Said | None = None, **more: Any) -> dict[str, Any]:
    return run_training(run, settings, said or Said(), **more)


def recorded(run: Run) -> Any:
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        return checkpoints.open(step).info.extra["position"]["backends"]


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_path) if line["kind"] == "train"]


@pytest.mark.slow
@built
def test_a_resume_takes_the_backends_of_the_run_and_its_bits(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """"auto" finds something else now, as it may on a machine that was busy when it measured."""
    monkeypatch.delenv(auto.VARIABLE)
    found = dict.fromkeys(FOLDS, "xla")
    monkeypatch.setattr(auto, "choices", lambda **_: found)
    monkeypatch.setattr(auto, "ready", lambda *_: True)
    whole, settings = run_of(tiny_mapping, tmp_path / "whole")
    summary = train(whole, settings)
    assert summary["backends"] == "xla" and recorded(whole) == XLA
    run, _ = run_of(tiny_mapping, tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, settings, Said(4))
    found = dict.fromkeys(FOLDS, "native")
    said = Said()
    assert train(run, settings, said)["backends"] == "xla" and recorded(run) == XLA
    assert said.about_backends == []
    assert losses(run) == losses(whole)
    other, _ = run_of(tiny_mapping, tmp_path / "other")
    train(other, settings)
    assert recorded(other) == NATIVE and losses(other) != losses(whole)


@built
def test_what_cannot_be_taken_again_is_one_line(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        fresh: None) -> None:
    run, settings = run_of(tiny_mapping, tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, settings, Said(4))
    assert recorded(run) == NATIVE
    monkeypatch.setattr(native_build, "problem", lambda: "no C++ compiler was found")
    auto._unusable.cache_clear()  # as another process
    said = Said()
    assert train(run, settings, said)["backends"] == "xla" and recorded(run) == XLA
    assert said.about_backends == [
        "backends: xla, where the checkpoint was computed by native (no C++ compiler was found); "
        "the last bits may differ"]


@pytest.mark.parametrize(("old", "told", "expected", "line"), [
    (None, None, XLA, None),
    ("odd", None, XLA, None),
    (NATIVE, None, NATIVE, None),
    (NATIVE | {"rank": "xla"}, None, NATIVE | {"rank": "xla"}, None),
    (NATIVE, "native", NATIVE, None),
    (NATIVE | {"rank": "xla"}, "xla", XLA,
     "by softmax native, rank xla, attention native, feed_forward native ($REC_JAX_AUTO is xla)"),
    (XLA, "native", XLA, "by xla ($REC_JAX_AUTO is native)"),
    (NATIVE | {"platform": "tpu"}, None, XLA, "by native (that was on tpu, this is cpu)"),
    (NATIVE | {"rank": "quantum"}, None, XLA, "(this version has no such backend)"),
    (NATIVE | {"rank": 3}, None, XLA, "(this version has no such backend)"),
    ({}, None, XLA, "(that was on None, this is cpu)"),
])
def test_old_other_and_odd_records(old: Any, told: str | None, expected: Any, line: str | None,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "problem", lambda: None)
    monkeypatch.setattr(auto, "ready", lambda *_: True)
    monkeypatch.setattr(auto, "choices", lambda **_: dict.fromkeys(FOLDS, "xla"))
    monkeypatch.setattr(auto, "decided", lambda: told)
    said = Said()
    assert backends.agree(old, said) == expected
    assert len(said.lines) == (line is not None)
    assert line is None or line in said.lines[0]


def test_a_process_without_the_library_takes_it_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "broadcast_text", lambda text: json.dumps(NATIVE))
    monkeypatch.setattr(backends, "gather_texts", lambda text: [text, "no C++ compiler was found"])
    monkeypatch.setattr(native_build, "problem", lambda: None)
    said = Said()
    assert backends.agree(None, said) == XLA
    assert said.lines == ["backends: xla for all, since a process has no native library: no C++ "
                          "compiler was found"]


def test_several_processes_do_not_wait_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(backends, "is_distributed", lambda: True)
    monkeypatch.setattr(auto, "ready", lambda seconds=0.0: asked.append(seconds) or False)
    monkeypatch.setattr(auto, "choices", lambda *, measured_here: dict.fromkeys(
        FOLDS, "xla" if measured_here else "native"))
    monkeypatch.setattr(native_build, "problem", lambda: None)
    assert backends.agree(None, Said()) == NATIVE
    assert max(asked) == backends._OTHERS_WAIT


def test_a_named_backend_decides_and_is_refused_where_it_cannot_run(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, fresh: None) -> None:
    """And nobody reads that xla is taken, which is not so."""
    monkeypatch.setattr(native_build, "problem", lambda: "false --version failed")
    for key in ("objective", "encoder"):
        run, settings = run_of(tiny_mapping, tmp_path / key, f"{key}.backend=native")
        with pytest.raises(InputError, match=rf"^{key}.backend = 'native' cannot be used: "
                                             r"false --version failed; expected 'auto'"):
            train(run, settings)
        assert not run.folder.exists() and caplog.messages == []
    run, settings = run_of(tiny_mapping, tmp_path / "gpu", "objective.backend=mosaic_gpu")
    with pytest.raises(InputError, match=r"objective.backend = 'mosaic_gpu' cannot be used"):
        train(run, settings)


@built
def test_a_named_backend_is_taken_whatever_is_pinned(
        tiny_mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda problem, backend: taken.append(
        (problem.op, choose(problem, backend).name)) or choose(problem, backend))
    monkeypatch.setenv(auto.VARIABLE, "xla")
    run, settings = run_of(tiny_mapping, tmp_path / "run", "objective.backend=native",
                           "train.steps=2")
    train(run, settings)
    assert ("softmax_loss", "native") in taken and ("target_rank", "xla") in taken
