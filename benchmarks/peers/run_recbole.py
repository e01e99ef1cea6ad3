"""RecBole's SASRec, trained by its own trainer on its own augmented samples."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import worker

_NAME = "peers"


class RecBole:
    """RecBole makes a sample of every prefix, so a sequence that is encoded has one target."""

    def __init__(self, task: worker.Task) -> None:
        import torch
        from recbole.config import Config
        from recbole.data import create_dataset
        from recbole.data.dataloader import TrainDataLoader
        from recbole.model.sequential_recommender import SASRec
        from recbole.trainer import Trainer
        from recbole.utils import init_seed

        torch.set_num_threads(task.threads)
        self.torch, self.task, self.data = torch, task, worker.open_interchange(task.data)
        self._write(Path(_NAME))
        self.config = Config(model="SASRec", dataset=_NAME, config_dict={
            "data_path": ".", "use_gpu": False, "state": "WARNING", "show_progress": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": task.length, "train_batch_size": task.batch,
            "n_layers": task.layers, "n_heads": task.heads, "hidden_size": task.dim,
            "inner_size": 4 * task.dim, "hidden_dropout_prob": task.dropout,
            "attn_dropout_prob": task.dropout, "loss_type": "CE", "train_neg_sample_args": None,
            "learning_rate": task.rate, "seed": task.seed,
            "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "TO", "group_by": "user",
                          "mode": "full"}})
        init_seed(task.seed, self.config["reproducibility"])
        dataset = create_dataset(self.config)
        self.samples = dataset.build()[0]
        self.loader = TrainDataLoader(self.config, self.samples, None, shuffle=True)
        self.model = SASRec(self.config, self.samples)
        self.trainer = Trainer(self.config, self.model)
        tokens = dataset.field2id_token["item_id"]  # [PAD] first
        self.known = np.array([int(token) for token in tokens[1:]])  # our item of their item i + 1
        self.theirs = np.zeros(self.data.num_items, np.int64)
        self.theirs[self.known] = np.arange(1, len(tokens))
        self.sequences = 0
        self.stream = self._batches()

    def about(self) -> dict[str, Any]:
        return {"version": importlib.metadata.version("recbole"),
                "loss": "softmax over all items, dense scores at the last position",
                "targets_per_epoch": len(self.samples),
                "notes": "every prefix is a sample; ranks counted from its full_sort_predict"}

    def train(self, steps: int) -> worker.Trained:
        self.sequences = 0
        start = time.perf_counter()
        self.trainer._train_epoch(itertools.islice(self.stream, steps), 0)
        seconds = time.perf_counter() - start
        return worker.Trained(seconds, self.sequences, self.sequences)

    def ranks(self) -> np.ndarray:
        from recbole.data.interaction import Interaction

        torch, model = self.torch, self.model
        model.eval()
        found = []
        with torch.inference_mode():
            for items, last, which in worker.history_batches(self.data, self.task.length, 256):
                places = np.arange(items.shape[1]) <= last[:, None]
                scores = model.full_sort_predict(Interaction({
                    model.ITEM_SEQ: torch.from_numpy(np.where(places, self.theirs[items], 0)),
                    model.ITEM_SEQ_LEN: torch.from_numpy(last + 1)}))
                ours = np.full((which.stop - which.start, self.data.num_items), -np.inf,
                               np.float32)
                ours[:, self.known] = scores.numpy()[:len(ours), 1:]
                found.append(worker.count_ranks(ours, self.data, which))
        return np.concatenate(found)

    def _batches(self) -> Iterator[Any]:
        while True:
            for batch in self.loader:
                self.sequences += len(batch)
                yield batch

    def _write(self, folder: Path) -> None:
        """The training part as RecBole's atomic file; the order within a user is the time."""
        folder.mkdir(exist_ok=True)
        data = self.data
        users = np.repeat(np.arange(len(data.offsets) - 1), np.diff(data.offsets))
        times = np.arange(len(users)) - data.offsets[users]
        with open(folder / f"{_NAME}.inter", "w") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            file.writelines(f"{user}\t{item}\t{when}\n" for user, item, when in zip(
                users.tolist(), data.items.tolist(), times.tolist(), strict=True))


if __name__ == "__main__":
    worker.serve(RecBole)
