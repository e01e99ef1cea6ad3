"""Torch's side of the softmax benchmark: a process that answers one JSON line with another.

Imports nothing but torch, so that it can run in an environment without this project.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prepare(n: int, v: int, d: int) -> dict[str, Any]:
    """Leaves of the graph and the targets of one cell."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(n, d, generator=generator).requires_grad_()
    items = (torch.randn(v, d, generator=generator) / d**0.5).requires_grad_()
    return {"queries": queries, "items": items,
            "targets": torch.randint(0, v, (n,), generator=generator), "before": peak()}


def run(cell: dict[str, Any]) -> float:
    """Seconds of one forward and backward pass of the dense cross-entropy."""
    queries, items = cell["queries"], cell["items"]
    queries.grad = items.grad = None
    start = time.perf_counter()
    torch.nn.functional.cross_entropy(queries @ items.T, cell["targets"]).backward()
    return time.perf_counter() - start


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__}), flush=True)
    cell: dict[str, Any] = {}
    for line in sys.stdin:
        message = json.loads(line)
        op = message.pop("op")
        answer: dict[str, Any] = {}
        if op == "prepare":
            cell = prepare(**message)
        elif op == "run":
            answer["seconds"] = run(cell)
        else:
            answer["bytes"] = peak() - cell["before"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
