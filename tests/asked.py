"""A dataset and runs whose answers are the same on every mesh, if all is well.

The catalogue fills all shards, and its rows repeat, so that every target ties with items of other
shards; users fill two tiles and a part of a third.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax import config
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.prepare import Columns, ItemFeature, PrepareConfig, prepare
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import build
from rec_jax.train.state import to_items

USERS, ITEMS, DIM, LENGTH = 70, 720, 16, 8
TOTAL, SHARD = 768, 96  # rows of the table, and of each of eight devices


def write_dataset(folder: Path) -> Path:
    """Histories of 1 to 40 items, in which some items repeat and some are cold."""
    random = np.random.default_rng(5)
    lines = ["user_id,item_id,time,stars,kind"]
    every = random.permutation(ITEMS)
    for user in range(USERS):
        own = np.append(every[user::USERS], random.integers(0, ITEMS, random.integers(0, 30)))
        for place, item in enumerate(random.permutation(own).tolist()):
            when = 1_000_000 + 3600 * place * (user + 1)
            lines.append(f"u{user},i{item},{when},{random.integers(1, 6)},{'abc'[item % 3]}")
    (folder / "log.csv").write_text("\n".join(lines))
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                          columns=Columns(time="time", rating="stars"),
                          item_features=(ItemFeature("kind"),)))
    return folder / "made"


def settings(dataset: Path, **parts: Any) -> RunConfig:
    """A small run on mesh 2x4, with other sections of its config."""
    return config.build(RunConfig, {
        "data": {"path": str(dataset), "length": LENGTH}, "table": {"dim": DIM},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2, "hidden": 1},
        "train": {"rows": 8, "steps": 1}, "mesh": {"data": 2, "items": 4}, **parts})


def save(run: RunConfig, folder: Path) -> Path:
    """A run whose one checkpoint was saved from its mesh; its rows repeat."""
    built = build(run)
    total, random = built.state.items.rows.shape[0], np.random.default_rng(1)

    def repeated(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "['tables']" in name:
            pool = random.standard_normal((60, leaf.shape[1]))
            rows = pool[random.integers(0, 60, total)] * (np.arange(total) < ITEMS)[:, None]
            return jax.device_put(jnp.asarray(rows, leaf.dtype), leaf.sharding)
        if leaf.ndim == 2:  # initial weights are too small to tell users apart
            return leaf * 10
        return leaf

    items = {name: jax.tree.map_with_path(repeated, tree)
             for name, tree in to_items(built.state).items() if name in ("model", "average")}
    made = Run(folder)
    made.create(run)
    with Checkpoints(made.checkpoints) as checkpoints:
        checkpoints.save(1, items, {"dataset": built.dataset.split_hash,
                                    "tables": sorted(built.state.tables)}, 0.5)
    return folder
