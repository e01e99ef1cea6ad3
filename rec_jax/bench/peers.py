"""Other programs beside this one: same data, shapes, loss and threads, in turn.

Each contender is a process in an environment of its own (`benchmarks/peers/`), so that versions
do not meet; all are started first, and then each trains some steps and ranks the held-out items
in turn, round after round. Ranks come back as files, and the metrics are counted here for all.
A contender that fails is reported as failed, and the others go on. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rec_jax.bench.contender import Contender
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError

OURS: dict[str, dict[str, Any]] = {
    "rec_jax packed": {"pack": True, "precision": "f32"},
    "rec_jax packed bf16": {"pack": True, "precision": "bf16"},
    "rec_jax padded": {"pack": False, "precision": "f32"},
}
"""Our own contenders: whether histories share rows, and the type of products."""

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
      `name` and either `failed` (why) or what `contender.figures` says and, with `quality`,
      `curve`; with `goal` also `seconds_to_goal`, None where it was not reached.

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
            *(Contender(name, [sys.executable, str(folder / "run_rec_jax.py")],
                         {**task, **OURS[name]}, Path(work)) for name in ours),
            *(Contender(name, [str(folder / "envs" / name / "bin" / "python"),
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
