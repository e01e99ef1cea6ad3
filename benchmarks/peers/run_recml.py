"""RecML's SASRec layer on JAX, compiled and trained by Keras."""

from __future__ import annotations

import importlib.metadata
import os
import time
from typing import Any

import numpy as np
import worker


class RecML:
    """The layer without its head, then its own rows again: scores at every position."""

    def __init__(self, task: worker.Task) -> None:
        os.environ["KERAS_BACKEND"] = "jax"
        import keras
        from recml.layers.keras.sasrec import SASRec

        keras.utils.set_random_seed(task.seed)
        self.task, self.data = task, worker.open_interchange(task.data)
        self.layer = SASRec(
            vocab_size=self.data.num_items, max_positions=task.length, model_dim=task.dim,
            mlp_dim=4 * task.dim, num_heads=task.heads, num_layers=task.layers,
            dropout=task.dropout, add_head=False)
        items = keras.Input((task.length,), dtype="int32")
        queries = self.layer(items)
        scores = self.layer.item_embedding(queries, reverse=True)
        self.encoder = keras.Model(items, queries)
        self.model = keras.Model(items, scores)
        self.model.compile(
            optimizer=keras.optimizers.Adam(task.rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        self.batches = worker.padded_batches(self.data, task.length, task.batch, task.seed)

    def about(self) -> dict[str, Any]:
        return {"version": importlib.metadata.version("recml"),
                "loss": "softmax over all items, dense scores at every position",
                "targets_per_epoch": worker.targets_per_epoch(self.data, self.task.length),
                "notes": "its Keras layer on JAX " + importlib.metadata.version("jax")
                + ", trained by keras.Model.train_on_batch"}

    def train(self, steps: int) -> worker.Trained:
        counted = sequences = 0
        start = time.perf_counter()
        for _ in range(steps):
            items, targets = next(self.batches)
            scored = targets >= 0
            self.model.train_on_batch(items, np.maximum(targets, 0),
                                      sample_weight=scored.astype(np.float32))
            counted += int(scored.sum())
            sequences += len(items)
        return worker.Trained(time.perf_counter() - start, counted, sequences)

    def ranks(self) -> np.ndarray:
        rows = np.asarray(self.layer.item_embedding.embeddings)
        found = []
        for items, last, which in worker.history_batches(self.data, self.task.length, 256):
            hidden = np.asarray(self.encoder.predict_on_batch(items))
            scores = hidden[np.arange(len(last)), last] @ rows.T
            found.append(worker.count_ranks(scores[:which.stop - which.start], self.data, which))
        return np.concatenate(found)


if __name__ == "__main__":
    worker.serve(RecML)
