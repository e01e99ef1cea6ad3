"""LightGCN here and in PyTorch Geometric: the same vectors, and the same losses of a training.

    python benchmarks/peers/setup.py pytorch_geometric
    python benchmarks/gowalla.py prepare train.parquet test.parquet --out data/gowalla
    python benchmarks/lightgcn_peer.py data/gowalla --out benchmarks/results/lightgcn_peer.json

Both programs get the same interactions, first rows, users, items and drawn items of every step; the
loss is that of `bpr` with one drawn item, the optimizer Adam. Of the first rows each makes vectors:
`vectors` has the largest difference between the two, and between each and f64 by SciPy's sparse
products. Then each learns for `--epochs`; `losses` has the means of each epoch and the largest
relative difference of a step. The programs run one after the other; ours draws the items in its
step, the other one is given them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from peers.setup import environment

from rec_jax import config as configs
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.data.interaction_graph import Edges, interaction_edges
from rec_jax.model.propagation import open_graph, propagate_now
from rec_jax.objectives.base import keys_of_step
from rec_jax.objectives.sampled import NEGATIVES
from rec_jax.run import RunConfig
from rec_jax.tables import ITEMS, USERS
from rec_jax.train.build import Built, build
from rec_jax.train.feed import whole_batches
from rec_jax.train.step import place_batch

HERE = Path(__file__).resolve().parent


def settings(data: str, rows: int, epochs: float, layers: int, dim: int, rate: float) -> RunConfig:
    """The run of ours."""
    return configs.build(RunConfig, {
        "data": {"path": data, "length": 64, "window": "chunks", "pack": False},
        "table": {"dim": dim, "init_scale": 0.1, "update": "dense"},
        "encoder": {"kind": "lightgcn", "layers": layers},
        "objective": {"kind": "bpr", "count": 1},
        "optimizer": {"rate": rate, "schedule": "constant", "warmup": 0, "weight_decay": 0.0},
        "train": {"rows": rows, "epochs": epochs, "evaluate_every": 1e6}})


def draws(built: Built, batch: Any, step: int, key: np.ndarray) -> dict[str, np.ndarray]:
    """int32 `[n]` each: users, their items, and the items that the step draws to hold against."""
    keys = keys_of_step(jax.random.wrap_key_data(jnp.asarray(key)), jnp.int32(step),
                        len(batch["targets"]))
    task = built.config.objective.plan(batch, keys, built.dataset.num_items).settled()
    there = np.asarray(task.present).ravel()
    users = np.broadcast_to(np.asarray(batch["users"]).reshape(*batch["targets"].shape[:2], -1),
                            batch["targets"].shape)
    return {"users": users.ravel()[there], "items": np.asarray(task.targets).ravel()[there],
            "drawn": np.asarray(task.reads[NEGATIVES].ids).ravel()[there]}


def exact(edges: Edges, rows: np.ndarray, users: int, layers: int) -> np.ndarray:
    """The vectors f64 `[U + V, d]` of rows, by sparse products."""
    count = len(rows)
    graph = scipy.sparse.coo_array((np.ones(len(edges.users)),
                                    (edges.users, edges.items + users)), (count, count)).tocsr()
    graph = graph + graph.T
    each = scipy.sparse.diags_array(np.maximum(graph.sum(axis=1), 1) ** -0.5)
    layer = total = rows.astype(np.float64)
    for _ in range(layers):
        layer = each @ (graph @ (each @ layer))
        total = total + layer
    return total / (layers + 1)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the top of the file says."""
    config = settings(options.dataset, options.rows, options.epochs, options.layers, options.dim,
                      options.rate)
    built = build(config)
    dataset, edges = built.dataset, interaction_edges(built.dataset)
    users, items = dataset.num_users, dataset.num_items
    state, total = built.state, built.horizon.total
    key = np.asarray(state.key).copy()  # a step takes the state
    stored = {USERS: state.tables[USERS].rows, ITEMS: state.tables[ITEMS].rows}
    first = np.concatenate([np.asarray(stored[USERS])[:users], np.asarray(stored[ITEMS])[:items]])
    made = propagate_now(jax.tree.map(jnp.asarray, open_graph(dataset, options.layers)), stored,
                         built.mesh, state.items.over)
    vectors = np.concatenate([np.asarray(made[USERS])[:users], np.asarray(made[ITEMS])[:items]])

    batches = whole_batches(built.stream, config.train.accumulate, built.log_share)
    taken, losses, seconds = [], [], 0.0
    for step in range(total):
        batch = next(batches)[0]
        begun = time.perf_counter()
        state, metrics = built.step(state, place_batch(batch, built.mesh))
        losses.append(float(metrics.loss))
        seconds += (time.perf_counter() - begun) * (step > 0)  # the first one compiles
        taken.append(draws(built, batch, step, key))
    given = folder / "given.npz"
    np.savez(given, rows=first, edges=np.stack([edges.users, edges.items]), users=users,
             layers=options.layers, rate=options.rate, seconds=seconds,
             ends=np.cumsum([len(each["users"]) for each in taken]),
             **{f"each_{name}": np.concatenate([each[name] for each in taken])
                for name in taken[0]})
    python = Path(options.python) if options.python else (
        environment("pytorch_geometric") / "bin" / "python")
    subprocess.run([str(python), str(HERE / "peers" / "run_pytorch_geometric.py"), str(given),
                    str(folder / "peer")], check=True)
    peer = np.load(folder / "peer.npz")
    truth = exact(edges, first, users, options.layers)
    theirs = peer["losses"]
    epoch = np.minimum(np.arange(total) // built.horizon.per_epoch, options.epochs - 1).astype(int)
    ours = np.asarray(losses)
    means = [[float(each[epoch == number].mean()) for number in np.unique(epoch)]
             for each in (ours, theirs)]
    return {
        "dataset": dataset.split_hash, "edges": len(edges.users), "steps": total,
        "settings": {name: getattr(options, name) for name in
                     ("rows", "epochs", "layers", "dim", "rate")},
        "peer": json.loads(str(peer["versions"])),
        "vectors": {"ours - peer": largest(vectors, peer["vectors"]),
                    "ours - f64": largest(vectors, truth),
                    "peer - f64": largest(peer["vectors"], truth), "scale": largest(truth, 0)},
        "losses": {"ours": means[0], "peer": means[1],
                   "largest_relative_difference": float(np.max(np.abs(ours / theirs - 1)))},
        "seconds_per_epoch": {"ours": seconds / max(total - 1, 1) * built.horizon.per_epoch,
                              "peer": float(peer["seconds"]) * built.horizon.per_epoch}}


def largest(one: Any, other: Any) -> float:
    """The largest absolute difference."""
    return float(np.max(np.abs(np.asarray(one, np.float64) - other)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1500, help="of a step, each of 64 interactions")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--python", help="interpreter that has PyTorch Geometric")
    parser.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    with tempfile.TemporaryDirectory() as folder:
        record(options.out, compare(options, Path(folder)))


if __name__ == "__main__":
    main()
