"""SASRec as one would write it in torch today: eager, fused attention, loss only at targets."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import worker


class TorchSASRec:
    """Pre-norm causal transformer, tied rows, exact softmax over all items from dense scores."""

    def __init__(self, task: worker.Task) -> None:
        import torch
        from torch_sasrec import SASRec

        torch.manual_seed(task.seed)
        torch.set_num_threads(task.threads)
        self.torch, self.task = torch, task
        self.data = worker.open_interchange(task.data)
        self.model = SASRec(self.data.num_items, task.length, task.dim, task.layers, task.heads,
                            task.dropout)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.rate)
        self.batches = worker.padded_batches(self.data, task.length, task.batch, task.seed)

    def about(self) -> dict[str, Any]:
        return {"version": self.torch.__version__,
                "loss": "softmax over all items, dense scores at positions with a target",
                "targets_per_epoch": worker.targets_per_epoch(self.data, self.task.length),
                "notes": "written for this comparison; eager mode, fused attention and Adam"}

    def train(self, steps: int) -> worker.Trained:
        torch = self.torch
        self.model.train()
        counted = sequences = 0
        start = time.perf_counter()
        for _ in range(steps):
            items, targets = next(self.batches)
            items, targets = torch.from_numpy(items).long(), torch.from_numpy(targets).long()
            scored = targets >= 0
            scores = self.model(items)[scored] @ self.model.rows.weight.T
            loss = torch.nn.functional.cross_entropy(scores, targets[scored])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            counted += int(scored.sum())
            sequences += len(items)
        return worker.Trained(time.perf_counter() - start, counted, sequences)

    def ranks(self) -> np.ndarray:
        torch = self.torch
        self.model.eval()
        found = []
        with torch.inference_mode():
            for items, last, which in worker.history_batches(self.data, self.task.length, 256):
                hidden = self.model(torch.from_numpy(items).long())
                queries = hidden[torch.arange(len(last)), torch.from_numpy(last)]
                scores = (queries @ self.model.rows.weight.T)[:which.stop - which.start]
                found.append(worker.count_ranks(scores.numpy(), self.data, which))
        return np.concatenate(found)


if __name__ == "__main__":
    worker.serve(TorchSASRec)
