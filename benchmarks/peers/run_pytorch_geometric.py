"""PyTorch Geometric's LightGCN on what `lightgcn_peer.py` gives, called with GIVEN and OUT.

GIVEN has the graph, the first rows, and the users, items and drawn items of each step. OUT.npz gets
the vectors of the first rows, the loss of each step, and seconds a step.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
import torch_geometric
from torch_geometric.nn.models import LightGCN


def main(given: str, out: str) -> None:
    data = np.load(given)
    torch.set_num_threads(2)
    users, items = (torch.from_numpy(each.astype(np.int64)) for each in data["edges"])
    items = items + int(data["users"])
    edges = torch.cat([torch.stack([users, items]), torch.stack([items, users])], dim=1)
    rows = torch.from_numpy(data["rows"])
    model = LightGCN(len(rows), rows.shape[1], int(data["layers"]))
    with torch.no_grad():
        model.embedding.weight.copy_(rows)
        vectors = model.get_embedding(edges).numpy()
    optimizer = torch.optim.Adam(model.parameters(), lr=float(data["rate"]))
    losses, seconds, begin = [], 0.0, 0
    for end in data["ends"]:
        own, taken, drawn = (torch.from_numpy(data[f"each_{name}"][begin:end].astype(np.int64))
                             for name in ("users", "items", "drawn"))
        begun = time.perf_counter()
        optimizer.zero_grad()
        found = model.get_embedding(edges)
        query = found[own]
        better = (query * found[taken + int(data["users"])]).sum(dim=1)
        worse = (query * found[drawn + int(data["users"])]).sum(dim=1)
        loss = model.recommendation_loss(better, worse, node_id=own, lambda_reg=0.0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds += (time.perf_counter() - begun) * (begin > 0)
        begin = end
    np.savez(out, vectors=vectors, losses=np.array(losses),
             seconds=seconds / max(len(losses) - 1, 1), versions=json.dumps(
                 {"torch": torch.__version__, "torch_geometric": torch_geometric.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
