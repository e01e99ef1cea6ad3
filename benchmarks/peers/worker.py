"""What every runner of a comparison shares: the data, the batches, the ranks, the conversation.

A runner is a script that is started with one JSON argument, a `Task`, in the environment of the
program that it runs. It makes that program ready and then answers requests, one JSON object a
line, until its input ends:

    {"op": "about"}                    -> what it is: version, loss, targets of an epoch, notes
    {"op": "train", "steps": k}        -> {"seconds", "targets", "sequences"} of about k steps
    {"op": "rank", "path": "x.npy"}    -> {"seconds", "users"}; int32 ranks of all users in the file
    {"op": "memory"}                   -> {"bytes"}: most memory that the process ever had

Targets are positions that have one, counted from the data, never padding. This file knows numpy
only: it runs in any environment.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

MISSED = np.iinfo(np.int32).max
"""Instead of a rank where nobody may be recommended the target: a hit for no cut-off."""


@dataclass(frozen=True)
class Task:
    """What to run: the interchange folder, the dataset it was made from, shapes and settings.

    pack, precision: of our own contenders: whether histories share rows, and of products.
    """

    data: str
    dataset: str
    length: int
    dim: int
    layers: int
    heads: int
    batch: int
    dropout: float
    rate: float
    threads: int
    seed: int
    pack: bool = False
    precision: str = "f32"


class Trained(NamedTuple):
    """What some steps did; seconds leave out what is no training, such as opening data."""

    seconds: float
    targets: int
    sequences: int


class Contender(Protocol):
    """A program that is ready to train."""

    def about(self) -> dict[str, Any]:
        """version, loss, targets_per_epoch, notes."""
        ...

    def train(self, steps: int) -> Trained:
        """Go on training for `steps` batches; returns when they are done."""
        ...

    def ranks(self) -> np.ndarray:
        """Rank of every held-out item among all items: int32 [M], 1 is best."""
        ...


class Interchange(NamedTuple):
    """Training histories and held-out items.

    items: int32 [N]; offsets: int64 [U+1], user u trains on [offsets[u], offsets[u+1]);
    users: int64 [M] and targets: int32 [M], whose next item is which; num_items: V.
    """

    items: np.ndarray
    offsets: np.ndarray
    users: np.ndarray
    targets: np.ndarray
    num_items: int

    def history(self, user: int) -> np.ndarray:
        """The training part of a user, oldest first."""
        return self.items[self.offsets[user]:self.offsets[user + 1]]


def open_interchange(folder: str | Path) -> Interchange:
    """Read what `rec_jax.bench.peers.write_interchange` wrote."""
    folder = Path(folder)
    arrays = {name: np.load(folder / f"{name}.npy")
              for name in ("items", "offsets", "users", "targets")}
    return Interchange(**arrays, num_items=json.loads(
        (folder / "meta.json").read_text())["num_items"])


def targets_per_epoch(data: Interchange, length: int) -> int:
    """Positions that have a target if each user gives the last `length` of them."""
    return int(np.clip(np.diff(data.offsets) - 1, 0, length).sum())


def padded_batches(data: Interchange, length: int, batch: int,
                   seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of one user a row, every epoch in a new order.

    Yields:
      items int32 [batch, length], 0 where there is none, from place 0; targets int32 alike, -1
      where there is none. The rest of an epoch that fills no batch is left out.
    """
    users = np.flatnonzero(np.diff(data.offsets) >= 2)
    random = np.random.default_rng(seed)
    batch = min(batch, len(users))
    while True:
        order = random.permutation(users)
        for first in range(0, len(order) - batch + 1, batch):
            items = np.zeros((batch, length), np.int32)
            targets = np.full((batch, length), -1, np.int32)
            for row, user in enumerate(order[first:first + batch]):
                history = data.history(user)[-length - 1:]
                items[row, :len(history) - 1] = history[:-1]
                targets[row, :len(history) - 1] = history[1:]
            yield items, targets


def history_batches(data: Interchange, length: int,
                    batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, slice]]:
    """The last `length` items of every held-out user, `batch` users at a time.

    Yields:
      items int32 [batch, length] from place 0 (the last batch is filled with empty rows); last
      int64 [batch], place of the newest item; which of the held-out users they are.
    """
    for first in range(0, len(data.users), batch):
        which = slice(first, min(first + batch, len(data.users)))
        items, last = np.zeros((batch, length), np.int32), np.zeros(batch, np.int64)
        for row, user in enumerate(data.users[which]):
            history = data.history(user)[-length:]
            items[row, :len(history)] = history
            last[row] = len(history) - 1
        yield items, last, which


def count_ranks(scores: np.ndarray, data: Interchange, which: slice) -> np.ndarray:
    """Ranks int32 [M'] from scores f32 [M', V]: 1 plus the unseen items that are not worse.

    Ties and NaN count against the target; items of the history do not compete, and a target that
    is one of them is MISSED, since no list would hold it.
    """
    targets = data.targets[which]
    rows = np.arange(len(targets))
    better = ~(scores < scores[rows, targets][:, None])
    better[rows, targets] = False
    seen = np.zeros(better.shape, bool)
    for row, user in enumerate(data.users[which]):
        seen[row, data.history(user)] = True
    ranks = np.sum(better & ~seen, axis=1) + 1
    return np.where(seen[rows, targets], MISSED, ranks).astype(np.int32)


def ranks_of_lists(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks int32 [M] in recommendation lists int [M, k] (-1: empty); k + 1 where it is not in."""
    hit = lists == targets[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, lists.shape[1] + 1).astype(np.int32)


def serve(make: Callable[[Task], Contender]) -> None:
    """Answer requests with the contender that `make` makes; what it prints goes to stderr."""
    task = Task(**json.loads(sys.argv[1]))
    _keep_to(task.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a program writes to stdout would be taken for an answer
    contender = make(task)
    for line in sys.stdin:
        print(json.dumps(_answer(contender, json.loads(line))), file=answers, flush=True)


def _answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    if request["op"] == "about":
        return contender.about()
    if request["op"] == "train":
        return contender.train(int(request["steps"]))._asdict()
    if request["op"] == "rank":
        start = time.perf_counter()
        ranks = contender.ranks()
        seconds = time.perf_counter() - start
        np.save(request["path"], ranks.astype(np.int32))
        return {"seconds": seconds, "users": len(ranks)}
    if request["op"] == "memory":
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"bytes": most if sys.platform == "darwin" else most * 1024}
    raise ValueError(f"unknown request {request}")


def _keep_to(threads: int) -> None:
    """Use `threads` cores, before any library counts them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
