"""RecTools' SASRec, trained by its own Lightning loop and evaluated by its own recommend()."""

from __future__ import annotations

import importlib.metadata
import threading
import time
import traceback
from typing import Any

import numpy as np
import worker

_LIST = 10  # items recommended: ranks past it are not told apart, and HR@10 needs no more


class RecTools:
    """`fit` runs in a thread of its own and waits between batches until steps are asked for.

    So the loop, the data loader and the optimizer are those of RecTools from beginning to end,
    whatever the comparison does in between.
    """

    def __init__(self, task: worker.Task) -> None:
        import pandas as pd
        import torch
        from rectools import Columns
        from rectools.dataset import Dataset
        from rectools.models import SASRecModel

        torch.manual_seed(task.seed)
        torch.set_num_threads(task.threads)
        self.task, self.data = task, worker.open_interchange(task.data)
        data = self.data
        lengths = np.diff(data.offsets)
        within = np.arange(len(data.items)) - np.repeat(data.offsets[:-1], lengths)
        self.dataset = Dataset.construct(pd.DataFrame({
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: data.items, Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(within, unit="s")}))
        self.gate = _Gate()
        self.model = SASRecModel(
            n_blocks=task.layers, n_heads=task.heads, n_factors=task.dim,
            dropout_rate=task.dropout, session_max_len=task.length, loss="softmax",
            lr=task.rate, batch_size=task.batch, recommend_batch_size=256,
            recommend_torch_device="cpu", recommend_n_threads=task.threads,
            get_trainer_func=self._trainer)
        self.thread = threading.Thread(target=self._fit, daemon=True)

    def about(self) -> dict[str, Any]:
        return {"version": importlib.metadata.version("rectools"),
                "loss": "softmax over all items, dense scores at every position",
                "targets_per_epoch": worker.targets_per_epoch(self.data, self.task.length),
                "notes": f"its Lightning loop; ranks from its lists of {_LIST}"}

    def train(self, steps: int) -> worker.Trained:
        if not self.thread.is_alive():
            self.thread.start()
        return self.gate.run(steps)

    def ranks(self) -> np.ndarray:
        self.model.is_fitted = True  # the loop is between two batches
        # Its filter takes seen items out, a target that is one of them as well: that is a miss.
        ranks = worker.ranks_of_lists(self._lists(self.data.users, _LIST), self.data.targets)
        self.model.lightning_model.train()
        return ranks

    def _lists(self, users: np.ndarray, k: int) -> np.ndarray:
        """Its recommendations for rising users, best first: int64 [M, k], -1 where it has none."""
        frame = self.model.recommend(users, self.dataset, k=k, filter_viewed=True,
                                     on_unsupported_targets="ignore")
        lists = np.full((len(users), k), -1, np.int64)
        row = np.searchsorted(users, frame["user_id"].to_numpy())
        lists[row, frame["rank"].to_numpy() - 1] = frame["item_id"].to_numpy()
        return lists

    def _fit(self) -> None:
        try:
            self.model.fit(self.dataset)
        except BaseException:
            self.gate.fail(traceback.format_exc())

    def _trainer(self) -> Any:
        from pytorch_lightning import Callback, Trainer

        gate = self.gate

        class Steps(Callback):
            """Lets batches through the gate, and counts them."""

            def __deepcopy__(self, memo: Any) -> Steps:
                return self  # RecTools copies the trainer, and there is one gate

            def on_train_batch_start(self, *_: Any) -> None:
                gate.enter()

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any,
                                   index: int) -> None:
                gate.leave(int((batch["yw"] > 0).sum()), len(batch["yw"]))

        return Trainer(max_epochs=1_000_000, accelerator="cpu", devices=1, logger=False,
                       enable_progress_bar=False, enable_model_summary=False,
                       enable_checkpointing=False, callbacks=[Steps()])


class _Gate:
    """Two threads take turns: one asks for steps, the other does them."""

    def __init__(self) -> None:
        self.turn = threading.Condition()
        self.left = self.targets = self.sequences = 0
        self.start: float | None = None
        self.seconds = 0.0
        self.failure: str | None = None

    def run(self, steps: int) -> worker.Trained:
        """Let `steps` batches through and wait for them; timed from the first one's start."""
        with self.turn:
            self.left, self.targets, self.sequences, self.start = steps, 0, 0, None
            self.turn.notify_all()
            self.turn.wait_for(lambda: not self.left or self.failure)
            if self.failure:
                raise RuntimeError(self.failure)
            return worker.Trained(self.seconds, self.targets, self.sequences)

    def enter(self) -> None:
        with self.turn:
            self.turn.wait_for(lambda: self.left)
            if self.start is None:
                self.start = time.perf_counter()

    def leave(self, targets: int, sequences: int) -> None:
        with self.turn:
            self.targets, self.sequences = self.targets + targets, self.sequences + sequences
            assert self.start is not None
            self.seconds = time.perf_counter() - self.start
            self.left -= 1
            self.turn.notify_all()

    def fail(self, reason: str) -> None:
        with self.turn:
            self.failure = reason
            self.turn.notify_all()


if __name__ == "__main__":
    worker.serve(RecTools)
