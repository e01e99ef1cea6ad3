"""One program of a comparison, in a process of its own that answers a JSON line with another."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rec_jax.metrics import rank_metrics

log = logging.getLogger("rec_jax.bench")

_K = 10  # the cut-off of the metrics; runners promise exact ranks up to it


class _Failed(Exception):
    """The process of a contender ended or gave no answer."""


class Contender:
    """One program in its process, and what it has done so far."""

    def __init__(self, name: str, command: list[str], task: dict[str, Any], work: Path) -> None:
        self.name, self.failure = name, ""
        self._folder = work / name.replace(" ", "-")
        self._folder.mkdir()
        self._command = [*command, json.dumps(task)]
        self._threads = str(task["threads"])
        self._process: subprocess.Popen[str] | None = None
        self._about: dict[str, Any] = {}
        self._trained: list[dict[str, Any]] = []
        self._ranked: list[dict[str, Any]] = []
        self._curve: list[dict[str, float]] = []
        self._pace = float("inf")  # seconds of a step, when last measured
        self._memory = 0

    def begin(self) -> None:
        """Start the process and wait until it is ready."""
        with self._watched():
            threads = {name: self._threads for name in (
                "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            with open(self._folder / "log.txt", "w") as output:
                self._process = subprocess.Popen(
                    self._command, cwd=self._folder, text=True, stderr=output,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env={**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "",
                         "JAX_PLATFORMS": "cpu"})
            self._about = self._ask(op="about")
            log.info("%s is ready: %s", self.name, self._about["version"])

    def round(self, steps: int, *, counted: bool) -> None:
        """Train `steps` steps and rank once."""
        with self._watched():
            trained = self._train(steps)
            ranked, metrics = self._rank()
            log.info("%s: %.0f targets/s, %s", self.name,
                     trained["targets"] / trained["seconds"], metrics)
            if counted:
                self._trained.append(trained)
                self._ranked.append(ranked)

    def learn(self, seconds: float) -> None:
        """Train until about `seconds` after the rounds, by the speed measured last; rank once."""
        if self.failure:
            return
        with self._watched():
            point = dict(self._curve[-1]) if self._curve else self._so_far()
            until = self._so_far()["seconds"] + seconds
            if point["seconds"] >= until and self._curve:  # a long step has seen to that
                return
            slack = 0.1 * (until - point["seconds"])
            while point["seconds"] < until - slack:
                steps = max(1, round((until - point["seconds"]) / self._pace))
                trained = self._train(steps)
                point["seconds"] += trained["seconds"]
                point["targets"] += trained["targets"]
            self._curve.append({**point, **self._rank()[1]})
            log.info("%s: %s", self.name, self._curve[-1])

    def seconds_to(self, goal: float) -> float | None:
        """Seconds of training when NDCG@10 was first seen that high."""
        return next((point["seconds"] for point in self._curve if point["ndcg"] >= goal), None)

    def result(self, goal: float | None) -> dict[str, Any]:
        """Everything about this contender, or why there is nothing."""
        with self._watched():
            self._memory = int(self._ask(op="memory")["bytes"])
        if self.failure:
            return {"name": self.name, "failed": self.failure}
        return {"name": self.name, **self._about, "peak_bytes": self._memory,
                **figures(self._trained, self._ranked, self._about["targets_per_epoch"]),
                **({"curve": self._curve} if self._curve else {}),
                **({"seconds_to_goal": self.seconds_to(goal)} if goal is not None else {})}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            with suppress(BrokenPipeError):  # a request that it did not live to read
                self._process.communicate()
            self._process = None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Does nothing after a failure, and keeps the first one."""
        try:
            yield
        except (_Failed, OSError, ValueError) as error:
            if not self.failure:
                self.failure = str(error) or type(error).__name__
                log.warning("%s failed: %s", self.name, self.failure)

    def _ask(self, **request: Any) -> dict[str, Any]:
        if self.failure or self._process is None:
            raise _Failed
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            said = (self._folder / "log.txt").read_text().strip().splitlines()
            raise _Failed(said[-1] if said else "its process ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _so_far(self) -> dict[str, float]:
        """What the rounds have trained; the first one at the others' speed, without compiling."""
        rounds = len(self._trained)
        return {name: sum(one[name] for one in self._trained) * (rounds + 1) / rounds
                for name in ("seconds", "targets")}

    def _train(self, steps: int) -> dict[str, Any]:
        trained = self._ask(op="train", steps=steps)
        self._pace = trained["seconds"] / steps
        return trained

    def _rank(self) -> tuple[dict[str, Any], dict[str, float]]:
        path = self._folder / "ranks.npy"
        answer = self._ask(op="rank", path=str(path))
        metrics = rank_metrics(np.load(path), (_K,))
        return answer, {name: metrics[f"{name}@{_K}"] for name in ("hr", "ndcg")}


def figures(trained: Sequence[dict[str, Any]], ranked: Sequence[dict[str, Any]],
            targets_per_epoch: int) -> dict[str, Any]:
    """Medians over rounds: `targets_per_second` (with all rounds in `runs`),
    `sequences_per_second`, `seconds_per_epoch`, `users_ranked_per_second`."""
    targets = [one["targets"] / one["seconds"] for one in trained]
    return {
        "targets_per_second": median(targets), "runs": targets,
        "sequences_per_second": median(one["sequences"] / one["seconds"] for one in trained),
        "seconds_per_epoch": targets_per_epoch / median(targets),
        "users_ranked_per_second": median(one["users"] / one["seconds"] for one in ranked),
    }
