"""Which backends of the kernels a training computes with: one answer for its whole life.

Backends differ in their last bits, and what "auto" takes is a measurement of the machine. So the
first start asks once, every checkpoint says the answer, and a resumed run takes it again or says
in one line why it cannot. Process 0 asks for all. Where a config names a backend, that one is
taken, whatever stands here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax

from rec_jax.errors import InputError
from rec_jax.kernels import Problem, auto, dispatch
from rec_jax.processes import broadcast_text, gather_texts, is_distributed
from rec_jax.progress import Reporter

Choices = dict[str, str]
"""By fold the name of a backend, and under `PLATFORM` that of the device."""

PLATFORM = "platform"
_OTHERS_WAIT = 15.0
"""Seconds that several processes wait for the first one's measurement: a collective operation that
takes longer ends them."""


def agree(recorded: object, reporter: Reporter) -> Choices:
    """What all processes of this training compute with from now on.

    recorded: of the checkpoint that it goes on from; None in a new run, and in one of an older
      version.
    """
    chosen = {}
    if jax.process_index() == 0:
        chosen = _chosen(recorded if isinstance(recorded, Mapping) else None, reporter)
    chosen = json.loads(broadcast_text(json.dumps(chosen)))
    refused = [line for line in gather_texts(_refusal(chosen) or "") if line]
    if refused:  # only where machines differ: process 0 has chosen what it can do itself
        reporter.say(f"backends: xla for all, since a process has no native library: {refused[0]}")
        chosen = {fold: backend if fold == PLATFORM else "xla"
                  for fold, backend in chosen.items()}
    return chosen


def said(choices: Mapping[str, str]) -> str:
    """`native`, or `softmax xla, rank native, ...` where folds differ."""
    folds = {fold: name for fold, name in choices.items() if fold != PLATFORM}
    names = set(folds.values())
    return names.pop() if len(names) == 1 else ", ".join(f"{fold} {name}"
                                                         for fold, name in folds.items())


def check_named(backend: Any, dim: int) -> None:
    """Refuse a backend that the objective names and that cannot run here.

    Raises:
      InputError: with the reason.
    """
    if not isinstance(backend, str) or backend == "auto":
        return
    why = dispatch.refusal(dispatch.load(backend), Problem(
        "softmax_loss", jax.default_backend(), 1024, 8192, dim, "float32", "float32"))
    if why is not None:
        raise InputError(f"objective.backend = {backend!r} cannot be used: {why}; expected 'auto', "
                         "or a backend that runs here")


def _chosen(recorded: Mapping[str, Any] | None, reporter: Reporter) -> Choices:
    platform = jax.default_backend()
    known = {fold: name for fold, name in (recorded or {}).items()
             if isinstance(name, str) and name in (*dispatch.BACKENDS, platform)}
    why = None
    if recorded is not None:
        why = _why_not(recorded, known, platform)
        if why is None:
            return known
    if not auto.ready(2.0):
        reporter.say("the native library for this CPU is built and measured, once on this machine")
    if is_distributed() and platform == "cpu":
        folds = auto.choices(measured_here=auto.ready(_OTHERS_WAIT))
    else:
        folds = dispatch.taken()
    chosen = {PLATFORM: platform, **folds}
    if why is not None:
        reporter.say(f"backends: {said(chosen)}, where the checkpoint was computed by "
                     f"{said({k: str(v) for k, v in (recorded or {}).items()})} ({why}); the last "
                     "bits may differ")
    return chosen


def _why_not(recorded: Mapping[str, Any], known: Choices, platform: str) -> str | None:
    """Why the recorded backends cannot be taken again, or None."""
    if recorded.get(PLATFORM) != platform:
        return f"that was on {recorded.get(PLATFORM)}, this is {platform}"
    if known.keys() != recorded.keys():
        return "this version has no such backend"
    if platform != "cpu":
        return None
    told = auto.decided()
    if told is not None and any(name != told for fold, name in known.items() if fold != PLATFORM):
        return f"${auto.VARIABLE} is {told}"
    return _refusal(known)


def _refusal(chosen: Choices) -> str | None:
    """Why this process cannot compute so, or None."""
    return auto.unusable(chosen) if chosen.get(PLATFORM) == "cpu" else None
