"""A backend is chosen in a visible order, and one that cannot run says why."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax.numpy as jnp
import pytest

from rec_jax.kernels import Backend, Problem, dispatch, explain, softmax_loss, top_k
from rec_jax.kernels.dispatch import BACKENDS, PREFERENCE, choose, load
from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.primitives import Backend as BackendType

CPU = Problem("softmax_loss", "cpu", 8, 100, 16, "float32", "float32")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_named_backend_can_be_loaded(name: str) -> None:
    assert isinstance(load(name), BackendType)


def test_preferences_name_backends_and_end_with_one_that_always_runs() -> None:
    for order in PREFERENCE.values():
        assert set(order) <= set(BACKENDS)
        assert order[-1] == "xla"


def test_cpu_takes_the_native_backend_where_it_can_be_built() -> None:
    reason = native_build.problem()
    expected = ("native", []) if reason is None else ("xla", [f"native: {reason}"])
    for op in ("softmax_loss", "softmax_entropy", "softmax_entropy_update", "target_rank", "top_k"):
        assert explain(replace(CPU, op=op)) == expected


def test_a_refusal_is_passed_over_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Backend("picky", lambda problem: f"d is {problem.dim}", *[lambda: None] * 6)
    monkeypatch.setitem(PREFERENCE, "cpu", ("picky", "xla"))
    monkeypatch.setattr(dispatch, "load", lambda name: refusing if name == "picky" else
                        load(name))
    assert explain(CPU) == ("xla", ["picky: d is 16"])
    with pytest.raises(ValueError, match="backend picky cannot run softmax_loss: d is 16"):
        choose(CPU, refusing)


def test_a_missing_fold_is_a_refusal() -> None:
    partial = Backend("partial", lambda problem: None, forward=load("xla").forward)
    with pytest.raises(ValueError, match="cannot run softmax_loss: it has no item_grad"):
        choose(CPU, partial)
    with pytest.raises(ValueError, match="cannot run top_k: it has no top_k"):
        top_k(jnp.ones((2, 4)), jnp.ones((9, 4)), 1, backend=partial)


@pytest.mark.parametrize("name", ["mosaic_gpu", "mosaic_tpu"])
def test_a_device_backend_that_is_asked_for_on_cpu_fails_loudly(name: str) -> None:
    with pytest.raises(ValueError, match=f"backend {name} cannot run softmax_loss: "):
        softmax_loss(jnp.ones((2, 64)), jnp.ones((9, 64)), jnp.zeros(2, jnp.int32),
                     backend=name)


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    chosen = explain(CPU)[0]
    with caplog.at_level(logging.DEBUG, logger="rec_jax.kernels"):
        softmax_loss(jnp.ones((2, 4)), jnp.ones((9, 4)), jnp.zeros(2, jnp.int32))
    assert f"softmax_loss on cpu [9 x 4, 2 queries, float32]: {chosen}" in caplog.text
