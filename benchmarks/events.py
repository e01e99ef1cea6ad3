"""Events with types, as JSON: a made log in which purchases follow carts, and NDCG@10 of purchases
by a model that ignores types, one that reads them, and one whose labels are purchases alone.

    python benchmarks/events.py --out benchmarks/results/events.json

A shopper looks at some items by chance; one of them is put into the cart, and after that comes the
purchase of the item that goes with the carted one (a fixed permutation of the catalogue). Who does
not know which of the items was in the cart cannot know what is bought. The last two purchases of
every shopper are held out, with all that came before them as history; the whole catalogue is
ranked, seen items too. All models are alike but for what is said of types.

    python benchmarks/events.py --queries --steps 200 --out benchmarks/results/queries.json

is of another log: somebody looks at two items by chance, searches, and buys the item that goes with
the text (another permutation). A text has a random vector of length 1. Two models are trained on
that one dataset, of which one reads what was searched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import rec_jax
from rec_jax import compilation_cache, config
from rec_jax.bench.record import record
from rec_jax.data.prepare_config import Columns, SplitConfig

SEEDS = (0, 1, 2)
USERS, ITEMS, VIEWS = 1000, 60, 4
SESSIONS = (3, 8)
SEARCHED, WIDTH = 2, 32
READ = {"features": [{"kind": "event"}]}
LABELS = {"targets": ["purchase"]}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "types ignored": ({}, {}), "types read": (READ, {}),
    "types read, purchases are labels": (READ, LABELS)}
WITH_QUERIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "queries not read": (READ, {}),
    "queries read": ({"features": [{"kind": "event"}, {"kind": "query", "name": "text"}]}, {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--queries", action="store_true", help="of the log with searches")
    options = parser.parse_args()
    ways = WITH_QUERIES if options.queries else WAYS
    compilation_cache.enable()  # the seeds share their programs
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    protocol: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            dataset = (make_searches if options.queries else make_log)(Path(folder), seed)
            for way, (more, data) in ways.items():
                run = Path(folder) / f"{way}-{seed}".replace(" ", "_")
                rec_jax.train(config.build(rec_jax.RunConfig, {
                    **settings(options.steps, seed), **more,
                    "data": {"path": str(dataset), "length": 32, **data}}), run=run)
                result = rec_jax.evaluate(run, tell=print)
                found[way].append(result["metrics"])
                protocol = result["protocol"]
                print(seed, way, result["metrics"]["ndcg@10"], flush=True)
    record(options.out, {
        "queries" if options.queries else "events": [
            {"model": way, "ndcg@10": float(np.mean([one["ndcg@10"] for one in each])),
             "lowest": min(one["ndcg@10"] for one in each),
             "highest": max(one["ndcg@10"] for one in each),
             "hr@10": float(np.mean([one["hr@10"] for one in each]))}
            for way, each in found.items()],
        "seeds": list(SEEDS), "steps": options.steps, "shoppers": USERS, "catalogue": ITEMS,
        **({"views_before_a_query": SEARCHED, "columns_of_a_text": WIDTH} if options.queries else
           {"views_before_a_cart": VIEWS}), "targets": "the last purchase of a shopper",
        "ties": protocol["ties"], "seen_items_filtered": protocol["seen_items_filtered"]})
    print(json.dumps({way: float(np.mean([one["ndcg@10"] for one in each]))
                      for way, each in found.items()}))


def make_log(folder: Path, seed: int) -> Path:
    """The dataset of the log of a seed."""
    random = np.random.default_rng(seed)
    partner = random.permutation(ITEMS)
    lines = ["user_id,item_id,time,event"]
    for user in range(USERS):
        when = 0
        for _ in range(random.integers(*SESSIONS)):
            looked = random.integers(ITEMS, size=VIEWS)
            carted = random.integers(VIEWS)
            kinds = ["cart" if place == carted else "view" for place in range(VIEWS)]
            for item, kind in [*zip(looked, kinds, strict=True),
                               (partner[looked[carted]], "purchase")]:
                lines.append(f"u{user},i{item},{when},{kind}")
                when += 1
    source = folder / f"log{seed}.csv"
    source.write_text("\n".join(lines) + "\n")
    out = folder / f"data{seed}"
    rec_jax.prepare(rec_jax.PrepareConfig(
        str(source), str(out), columns=Columns(time="time", event="event"),
        split=SplitConfig(event="purchase")))
    return out


def make_searches(folder: Path, seed: int) -> Path:
    """The dataset of the log with searches of a seed, and vectors of its texts."""
    random = np.random.default_rng(seed)
    goes_with = random.permutation(ITEMS)
    lines = ["user_id,item_id,time,event,text"]
    for user in range(USERS):
        rows = []
        for _ in range(random.integers(*SESSIONS)):
            text = random.integers(ITEMS)
            rows += [(f"i{item}", "view", "") for item in random.integers(ITEMS, size=SEARCHED)]
            rows += [("", "query", f"text {text}"), (f"i{goes_with[text]}", "purchase", "")]
        lines += [f"u{user},{item},{when},{kind},{text}"
                  for when, (item, kind, text) in enumerate(rows)]
    source, out = folder / f"log{seed}.csv", folder / f"data{seed}"
    source.write_text("\n".join(lines) + "\n")
    rec_jax.prepare(rec_jax.PrepareConfig(
        str(source), str(out), columns=Columns(time="time", event="event", query="text"),
        split=SplitConfig(event="purchase")))
    vectors = random.standard_normal((ITEMS, WIDTH)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    (folder / "texts.txt").write_text("\n".join(f"text {text}" for text in range(ITEMS)) + "\n")
    rec_jax.embed(out, what="queries", vectors=folder / "vectors.npy", ids=folder / "texts.txt")
    return out


def settings(steps: int, seed: int) -> dict[str, Any]:
    """What all models share."""
    return {"seed": seed, "table": {"dim": 32},
            "encoder": {"kind": "transformer", "layers": 2, "heads": 2, "hidden": 2,
                        "dropout": 0.0, "positions": "rotary"},
            "optimizer": {"rate": 3e-3, "warmup": 50},
            "train": {"rows": 32, "steps": steps, "evaluate_every": 1000.0, "log_every": 100},
            "evaluate": {"event": "purchase", "filter_seen": False}}


if __name__ == "__main__":
    main()
