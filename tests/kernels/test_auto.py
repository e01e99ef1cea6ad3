"""What "auto" takes on a CPU was right and fast there; what was not costs a line, not the run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.kernels import Problem, auto, explain, measure, measured
from rec_jax.kernels.native import build as native_build
from rec_jax.model.encoders import transformer

CPU = Problem("softmax_loss", "cpu", 8, 100, 16, "float32", "float32")
GOOD: dict[str, Any] = {fold: {"native": 1.0, "xla": 2.0} for fold in
                        ("softmax", "rank", "attention", "feed_forward")}

built = pytest.mark.skipif(native_build.problem() is not None, reason="no native library")


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has measured nothing and is told nothing."""
    monkeypatch.delenv(auto.VARIABLE, raising=False)
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def forget() -> None:
    for answer in (auto._measured, auto._unusable, measured.found, measured._started):
        getattr(answer, "cache_clear", lambda: None)()


@pytest.fixture
def library(unpinned: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A library in a cache of its own, and a measurement that gives `GOOD`."""
    path = tmp_path / "native-x.so"
    unpinned.setattr(native_build, "planned", lambda: (["c++"], path))
    unpinned.setattr(native_build, "problem", lambda: None)
    unpinned.setattr(measured.native_cache, "temporary", lambda: tmp_path / "other")
    unpinned.setattr(measured, "measure", lambda: GOOD)
    return path


@pytest.mark.parametrize(("seconds", "reason"), [
    ({"native": 1.0, "xla": 2.0}, None),
    ({"native": 1.09, "xla": 1.0}, None),
    ({"native": 1.11, "xla": 1.0}, "slower here, 1.11e+03 ms and xla 1e+03 ms"),
    ({"native": "wrong here: off by 1", "xla": 1.0}, "wrong here: off by 1"),
    ({"native": 5.0, "xla": "wrong here"}, None),
    ({}, "not measured"),
])
def test_xla_is_taken_for_a_gain_or_where_native_is_wrong(seconds: dict[str, float | str],
                                                          reason: str | None) -> None:
    assert auto.verdict("softmax", {"softmax": seconds}) == reason


@built
def test_each_operation_has_its_own_verdict(unpinned: pytest.MonkeyPatch) -> None:
    slow = {"native": 9.0, "xla": 1.0}
    unpinned.setattr(auto, "_measured", lambda: GOOD | {"softmax": slow, "attention": slow})
    assert explain(CPU) == ("xla", ["native: slower here, 9e+03 ms and xla 1e+03 ms"])
    assert explain(replace(CPU, op="softmax_item_update"))[0] == "xla"
    assert explain(replace(CPU, op="target_rank")) == ("native", [])
    assert not transformer.Config(heads=1).native("attention")
    assert transformer.Config(heads=1).native("feed_forward")
    assert transformer.Config(heads=1, backend="native").native("attention")


@built
def test_a_pin_is_not_measured(unpinned: pytest.MonkeyPatch) -> None:
    unpinned.setattr(auto, "_measured", lambda: pytest.fail("it was measured"))
    unpinned.setenv(auto.VARIABLE, "native")
    assert explain(CPU)[0] == "native"
    unpinned.setenv(auto.VARIABLE, "xla")
    assert explain(CPU) == ("xla", ["native: $REC_JAX_AUTO is xla"])
    unpinned.setenv(auto.VARIABLE, "fastest")
    with pytest.raises(ValueError, match=r"\$REC_JAX_AUTO is 'fastest'; expected native or xla"):
        explain(CPU)


def test_several_processes_run_one_program(unpinned: pytest.MonkeyPatch) -> None:
    unpinned.setattr(auto, "_measured", lambda: pytest.fail("it was measured"))
    unpinned.setattr(auto.jax, "process_count", lambda: 2)
    assert auto.behind("softmax_loss") is None


def test_it_is_measured_once_and_said_in_one_line(library: Path, unpinned: pytest.MonkeyPatch,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rec_jax.kernels"):
        assert auto._measured() == GOOD
    assert caplog.messages == ["measured here: softmax by native, rank by native, "
                               "attention by native, feed_forward by native"]
    unpinned.setattr(measured, "measure", lambda: pytest.fail("it was measured again"))
    forget()
    assert auto._measured() == GOOD


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_text("{"), lambda path: path.write_text("[]"),
    lambda path: path.write_text('{"softmax": {}}'), lambda path: path.write_bytes(b"\xff"),
    lambda path: path.chmod(0o666)])
def test_a_verdict_that_is_not_whole_or_not_ours_is_not_read(library: Path, spoil: Any) -> None:
    auto._measured()
    kept, = library.parent.glob("auto-*.json")
    assert measured.read(kept) == GOOD
    spoil(kept)
    assert measured.read(kept) is None


def test_what_cannot_be_kept_is_used_all_the_same(library: Path,
                                                  unpinned: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError("no room")

    unpinned.setattr(measured.native_cache, "write", refuse)
    assert auto.verdict("rank", auto._measured()) is None
    assert not list(library.parent.glob("auto-*.json"))


def test_without_any_folder_xla_is_taken(library: Path, unpinned: pytest.MonkeyPatch,
                                         caplog: pytest.LogCaptureFixture) -> None:
    def refuse(folder: Path) -> Path:
        raise OSError("no room")

    unpinned.setattr(measured.native_cache, "writable", refuse)
    assert auto.choices() == dict.fromkeys(GOOD, "xla")
    assert caplog.messages == ["the native backend cannot be used, and xla is taken: no room"]


def test_who_is_not_ready_in_time_is_not_waited_for(unpinned: pytest.MonkeyPatch,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    """And one process has one answer, whatever becomes known after it was asked for."""
    go_on = threading.Event()

    def slow() -> Any:
        go_on.wait(60)
        return GOOD

    unpinned.setattr(measured, "_find", slow)
    unpinned.setattr(measured, "PATIENCE", 0.05)
    measured.begin()
    assert not measured.ready()
    assert auto.choices() == dict.fromkeys(GOOD, "xla")
    go_on.set()
    measured._started().result(60)
    assert auto.choices() == dict.fromkeys(GOOD, "xla")
    assert caplog.messages == ["the native backend cannot be used, and xla is taken: it was not "
                               "ready within 0 seconds"]


def test_pins_decide_in_their_context_alone(unpinned: pytest.MonkeyPatch) -> None:
    unpinned.setattr(auto, "_measured", lambda: GOOD)
    unpinned.setattr(auto, "_unusable", lambda: None)
    unpinned.setattr(native_build, "problem", lambda: None)
    mixed = {"softmax": "xla", "rank": "native", "attention": "native", "feed_forward": "xla"}

    def taken() -> dict[str, str]:
        return {fold: "native" if auto.takes_native(op) else "xla"
                for op, fold in auto.FOLDS.items()}

    with auto.pinned(mixed):
        assert taken() == mixed
        assert explain(CPU) == ("xla", ["native: the run takes xla"])
        with auto.pinned(None):
            assert taken() == dict.fromkeys(GOOD, "native")
        unpinned.setenv(auto.VARIABLE, "xla")  # whoever pins has heard it
        assert taken() == mixed
    assert taken() == dict.fromkeys(GOOD, "xla")


def program(path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


LINE = """echo 'a warning'; echo '{"softmax": {"native": 1.0, "xla": 2.0}}'"""


def test_a_crash_costs_what_was_not_measured_yet(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "crashing", monkeypatch, f"{LINE}; kill -SEGV $$")
    found = measured.measure()
    assert auto.verdict("softmax", found) is None
    assert auto.verdict("rank", found) == f"its check ended with code {-signal.SIGSEGV}"


def test_the_reason_why_there_is_no_library_is_that_of_all(
        tmp_path: Path, unpinned: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    program(tmp_path / "failing", unpinned, """echo '{"library": "c++ failed: no"}'""")
    unpinned.setenv("REC_JAX_CACHE", str(tmp_path))
    unpinned.setattr(native_build, "planned", lambda: (["c++"], tmp_path / "native-x.so"))
    assert auto.choices() == dict.fromkeys(GOOD, "xla")
    assert caplog.messages == ["the native backend cannot be used, and xla is taken: c++ failed: "
                               "no"]
    assert not list(tmp_path.glob("auto-*.json"))  # the next program tries again


def test_a_check_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "hanging", monkeypatch, f"{LINE}; exec sleep 600")
    monkeypatch.setattr(measured, "_SECONDS", 1.0 - native_build.LONGEST)
    found = measured.measure()
    assert auto.verdict("softmax", found) is None
    assert auto.verdict("attention", found) == "its check did not end within 1 seconds"


@built
@pytest.mark.parametrize("fold", measure.CASES)
def test_the_backends_of_this_machine_are_right(fold: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_RUNS", 1)
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    found = measure.tried(measure.CASES[fold]())
    assert {name: type(value) for name, value in found.items()} == {"native": float, "xla": float}


def test_a_wrong_result_and_an_error_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)

    def raising(x: Any) -> Any:
        raise ValueError("no\nsuch thing")

    case = measure.Case({"wrong": lambda x: (x + 0.1,), "nan": lambda x: (x * jnp.nan,),
                         "raising": raising, "right": lambda x: (x,)}, [jnp.ones(3)], [np.ones(3)])
    found = measure.tried(case)
    assert found["wrong"] == "wrong here: off by 1.0e-01"
    assert found["nan"] == "wrong here: off by nan"
    assert found["raising"] == "ValueError: no"
    assert isinstance(found["right"], float)


@built
@pytest.mark.slow
def test_the_program_measures_every_fold() -> None:
    found = measured.measure()
    assert set(found) == set(GOOD)
    assert all(isinstance(seconds["native"], float) for seconds in found.values())


@pytest.mark.parametrize(("age", "asked_again"), [(3600, False), (2 * 86_400, True)])
def test_a_check_that_was_late_is_made_again_after_a_day(
        library: Path, unpinned: pytest.MonkeyPatch, age: float, asked_again: bool) -> None:
    late = {"native": f"{measured._LATE} 420 seconds"}
    unpinned.setattr(measured, "measure", lambda: GOOD | {"rank": late})
    assert auto._measured()["rank"] == late
    (kept,) = library.parent.glob("auto-*.json")
    when = time.time() - age
    os.utime(kept, (when, when))
    forget()
    unpinned.setattr(measured, "measure", lambda: GOOD)
    assert (auto._measured() == GOOD) is asked_again
