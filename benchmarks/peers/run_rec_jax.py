"""This project's own training step and ranker: packed or padded, f32 or bf16."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from typing import Any

import numpy as np
import worker


def micro_batches(rows: int) -> int:
    """Equal parts of about 32 rows, whose arrays the caches of a CPU can hold."""
    return next(count for count in range(max(1, rows // 32), 0, -1) if rows % count == 0)


class RecJax:
    """What `rec-jax train` runs: the batches, the step, the ranker of `rec_jax`."""

    def __init__(self, task: worker.Task) -> None:
        from rec_jax import config
        from rec_jax.data.batches import prefetch
        from rec_jax.inference.evaluate import make_ranker
        from rec_jax.model.encoder import build_encoder
        from rec_jax.run import RunConfig
        from rec_jax.train.build import build
        from rec_jax.train.feed import whole_batches

        settings = config.build(RunConfig, {
            "seed": task.seed,
            "data": {"path": task.dataset, "length": task.length, "pack": task.pack},
            "table": {"dim": task.dim},
            "encoder": {"kind": "transformer", "layers": task.layers, "heads": task.heads,
                        "hidden": 4, "dropout": task.dropout},
            "optimizer": {"rate": task.rate, "schedule": "constant", "warmup": 0},
            "train": {"rows": task.batch, "accumulate": micro_batches(task.batch),
                      "steps": 1_000_000, "precision": task.precision},
        })
        self.task, self.settings = task, settings
        self.built = build(settings)
        self.state = self.built.state
        self.batches = prefetch(whole_batches(self.built.stream, micro_batches(task.batch),
                                              self.built.log_share))
        encoder, _ = build_encoder(
            settings.encoder, dim=task.dim, length=task.length,
            causal=settings.objective.causal, precision=settings.train.precision, seed=task.seed)
        self.ranker = make_ranker(encoder, self.built.dataset.num_items, self.built.mesh,
                                  filter_seen=True)

    def about(self) -> dict[str, Any]:
        layout = "histories share rows" if self.task.pack else "one history a row"
        return {"version": importlib.metadata.version("rec-jax"),
                "loss": "softmax over all items, streamed",
                "targets_per_epoch": self.built.stream.targets_per_epoch,
                "notes": f"{layout}; {self.task.precision}; table {self.built.choice.mode}; a step "
                         f"in {micro_batches(self.task.batch)} micro-batches, the same update"}

    def train(self, steps: int) -> worker.Trained:
        import jax

        from rec_jax.train.step import place_batch

        measured, sequences = [], 0
        start = time.perf_counter()
        for batch, histories in itertools.islice(self.batches, steps):
            sequences += histories
            self.state, metrics = self.built.step(self.state, place_batch(batch, self.built.mesh))
            measured.append(metrics.positions)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        return worker.Trained(seconds, int(sum(map(float, measured))), sequences)

    def ranks(self) -> np.ndarray:
        from rec_jax.inference.evaluate import choose_users, rank_users
        from rec_jax.inference.served import reading_of
        from rec_jax.train.state import served

        dataset = self.built.dataset
        users, targets, ends = choose_users(dataset, "valid", None, self.task.seed)
        params, rows = served(self.state)
        return rank_users(self.ranker, params, rows, dataset, users, targets, ends,
                          reading=reading_of(self.settings), batch=self.settings.evaluate.batch)


if __name__ == "__main__":
    from rec_jax.allocator import restart_with_tuned_malloc

    restart_with_tuned_malloc()  # as the command line does
    worker.serve(RecJax)
