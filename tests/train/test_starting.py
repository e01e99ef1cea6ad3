"""A start's parts add up, and compiling is one of them wherever it happens."""

from __future__ import annotations

import time

import jax
import pytest

from rec_jax.train.starting import StartClock, process_began


def test_compiling_is_taken_out_of_the_part_it_happened_in(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    event = "/jax/core/compile/backend_compile_duration"
    with StartClock(since=98.0) as clock:
        now = 103.0
        jax.monitoring.record_event_duration_secs(event, 2.0)
        jax.monitoring.record_event_duration_secs("/jax/another", 9.0)
        clock.mark("data")
        now = 104.0
        clock.mark("library")
        now = 110.0
        jax.monitoring.record_event_duration_secs(event, 4.0)
        clock.mark("tracing")
    jax.monitoring.record_event_duration_secs(event, 50.0)
    clock.mark("step")
    assert clock.figures() == {"imports": 2.0, "data": 1.0, "library": 1.0, "tracing": 2.0,
                               "compiling": 6.0, "step": 0.0}
    assert clock.line() == ("first step after 12.0 s: imports 2.0, data 1.0, library 1.0, "
                            "tracing 2.0, step 0.0, compiling 6.0")


def test_a_process_began_before_now() -> None:
    assert 0 < time.perf_counter() - process_began() < 86_400
