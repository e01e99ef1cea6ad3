"""Other programs beside this one: same data, shapes, loss and threads, in turn.

Each contender is a process in an environment of its own (`benchmarks/peers/`), so that versions
do not meet; all are started first, and then each trains some steps and ranks the held-out items
in turn, round after round. Ranks come back as files, and the metrics are counted here for all.
A contender that fails is reported as failed, and the others go on. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.metrics import rank_metrics

log = logging.getLogger("rec_jax.bench")

OURS: dict[str, dict[str, Any]] = {
    "rec_jax packed": {"pack": True, "precision": "f32"},
    "rec_jax packed bf16": {"pack": True, "precision": "bf16"},
    "rec_jax padded": {"pack": False, "precision": "f32"},
}
"""Our own contenders: whether histories share rows, and the type of products."""

_K = 10  # the cut-off of the metrics; runners promise exact ranks up to it
_MOMENTS, _GROWTH = 24, 1.15  # measurements along a quality curve, each so many times as late


@dataclass(frozen=True)
class Shapes:
    """What all contenders have in common.

    length: positions of a row; dim: width; layers, heads: of the transformer; batch: rows of a
    step; dropout: rate; rate: of Adam; threads: cores of each process; seed: of everything.
    """

    length: int = 200
    dim: int = 64
    layers: int = 2
    heads: int = 2
    batch: int = 128
    dropout: float = 0.2
    rate: float = 1e-3
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "dim", "layers", "heads", "batch", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.dim % self.heads:
            raise InputError(f"heads = {self.heads} does not divide dim = {self.dim}")


def write_interchange(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """The training part and the held-out (validation) items as plain files.

    items.npy int32 [N] and offsets.npy int64 [U+1]: user u trains on items[offsets[u]:
    offsets[u+1]], oldest first; users.npy int64 [M] rising, targets.npy int32 [M]: the item that
    follows the training part of those users; meta.json: what is returned, counts and the split.

    Raises:
      InputError: nobody has a validation item.
    """
    users, targets, _ = dataset.targets("valid")
    if not len(users):
        raise InputError(f"dataset {dataset.folder} has no user to validate on")
    lengths = dataset.train_end - dataset.offsets[:-1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    kept = np.repeat(dataset.offsets[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "items": np.asarray(dataset.items[kept], np.int32), "offsets": offsets,
        "users": np.asarray(users, np.int64), "targets": np.asarray(targets, np.int32)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    meta = {"name": dataset.folder.resolve().name, "num_items": dataset.num_items,
            "num_users": dataset.num_users, "training_interactions": int(offsets[-1]),
            "held_out": len(users), "split_hash": dataset.split_hash}
    (folder / "meta.json").write_text(json.dumps(meta))
    return meta


def ready_peers(folder: Path) -> list[str]:
    """Names of the peers whose environment is complete and which have a runner."""
    return sorted(path.parent.name for path in folder.glob("envs/*/installed.txt")
                  if (folder / f"run_{path.parent.name}.py").is_file())


def choose_peers(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    """The peers to run: those asked for, or all that are set up.

    Raises:
      InputError: the folder holds no runners, or a peer is unknown or not set up.
    """
    if not (folder / "worker.py").is_file():
        raise InputError(f"{folder} holds no runners of other programs; expected the folder "
                         "benchmarks/peers of a checkout (--folder)")
    ready = ready_peers(folder)
    for name in wanted or ():
        if not (folder / f"run_{name}.py").is_file():
            raise InputError(f"peer {name!r} is unknown; ready: {', '.join(ready) or 'none'}")
        if name not in ready:
            raise InputError(f"peer {name!r} is not set up; python {folder}/setup.py {name}")
    return ready if wanted is None else list(wanted)


def run(dataset_path: Path | str, *, folder: Path | str = "benchmarks/peers",
        peers: Sequence[str] | None = None, ours: Sequence[str] = tuple(OURS),
        shapes: Shapes | None = None, steps: int = 10, rounds: int = 3,
        quality: float | None = None, goal: float | None = None) -> dict[str, Any]:
    """Compare on the training part of a dataset.

    peers: names; all that are set up by default. ours: some of `OURS`. steps: of a contender in
      a round.
    quality: then train each for up to so many seconds more, and rank at `moments` of them.
    goal: a program's curve ends where its NDCG@10 is that high.

    Returns:
      what `bench_record.record` writes: `data`, `shapes`, `protocol`, and `contenders`, each with
      `name` and either `failed` (why) or what `figures` says and, with `quality`, `curve`; with
      `goal` also `seconds_to_goal`, None where it was not reached.

    Raises:
      InputError: dataset or peers are not as they should be.
    """
    if steps < 1 or rounds < 1 or (quality is not None and quality <= 0):
        raise InputError(f"steps = {steps}, rounds = {rounds}, quality = {quality}; expected "
                         "positive numbers")
    if goal is not None and (quality is None or goal <= 0):
        raise InputError(f"goal = {goal}, quality = {quality}; expected a positive goal and the "
                         "seconds to reach it in")
    for name in ours:
        if name not in OURS:
            raise InputError(f"{name!r} is unknown; expected some of {', '.join(OURS)}")
    shapes, folder = shapes or Shapes(), Path(folder).resolve()
    dataset = Dataset.open(dataset_path)
    names = choose_peers(folder, peers)
    with tempfile.TemporaryDirectory(prefix="rec-jax-peers-") as work, ExitStack() as stack:
        meta = write_interchange(dataset, Path(work) / "data")
        task = {"data": str(Path(work) / "data"),
                "dataset": str(dataset.folder.resolve()), **asdict(shapes)}
        contenders = [
            *(_Contender(name, [sys.executable, str(folder / "run_rec_jax.py")],
                         {**task, **OURS[name]}, Path(work)) for name in ours),
            *(_Contender(name, [str(folder / "envs" / name / "bin" / "python"),
                                str(folder / f"run_{name}.py")], task, Path(work))
              for name in names)]
        for one in contenders:
            stack.callback(one.close)
            one.begin()
        for number in range(rounds + 1):  # the first round warms up
            for one in contenders:
                one.round(steps, counted=number > 0)
        if quality is not None:
            for moment in moments(quality):
                for one in contenders:
                    if goal is None or one.seconds_to(goal) is None:
                        one.learn(moment)
        results = [one.result(goal) for one in contenders]
    return {"data": meta, "shapes": asdict(shapes), "steps_a_round": steps, "rounds": rounds,
            "quality_seconds": quality, "quality_goal": goal, "protocol": _PROTOCOL,
            "contenders": results}


def moments(seconds: float) -> list[float]:
    """When to rank in so much training: ever later, so that a fast program and a slow one are seen
    with the same relative precision."""
    return [seconds / _GROWTH ** number for number in reversed(range(_MOMENTS))]


_PROTOCOL = {
    "trained_on": "the training part; a user's last `length` targets where the program takes a "
                  "sequence, every prefix where it takes samples",
    "targets": "positions that have a next item, counted from the data; padding never counts",
    "held_out": "the validation item of each user, ranked among all items, seen items left out",
    "metrics": "counted here from ranks or lists of ten that each program wrote",
    "rounds": "each contender trains and ranks in turn on the CPU; one round warms up; medians",
}


class _Failed(Exception):
    """The process of a contender ended or gave no answer."""


class _Contender:
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
