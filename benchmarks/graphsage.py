"""New items by who took them: GraphSAGE beside what content and popularity know, as JSON.

    python benchmarks/graphsage.py data/ml-1m-cold0 data/ml-1m-cold1 data/ml-1m-cold2 \\
        --config configs/ml1m_graphsage.toml --runs runs/graphsage \\
        --out benchmarks/results/graphsage_ml1m.json

Datasets of `rec-jax prepare --withhold 0.1` that differ in `withheld.seed` alone, with item vectors
(docs/content.md). A training never sees withheld items. Then half of the users give what they did
with these as edges, and the others are asked: all models are measured on those.

    graphsage          the vector of an item follows from its users, without training
    graphsage_content  the same model, whose cold items are filled by content in its place
    ease_content       EASE, whose cold columns are filled by content
    ease_edges         EASE that is fitted anew with the edges: what knowing them is worth
    popularity         among withheld items: by how many gave an edge

Run n has seed n. A run that is there and done is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse

import rec_jax
from rec_jax.allocator import restart_with_tuned_malloc
from rec_jax.bench.record import record
from rec_jax.data.dataset import Dataset
from rec_jax.inference.cold import ColdFill, fill_cold
from rec_jax.inference.cold_edges import given_edges, gives_edges
from rec_jax.inference.cold_evaluate import (
    cold_metrics,
    evaluate_cold,
    measure_cold,
    people_of,
)
from rec_jax.inference.cold_rule import ColdRule
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.run_sections import EvaluateConfig
from rec_jax.solvers import ease
from rec_jax.solvers.base import Training
from rec_jax.solvers.cold import asker_of, evaluate_cold_solver
from rec_jax.solvers.interactions import training_matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--ridge", type=float, default=500.0, help="of EASE")
    parser.add_argument("--set", action="append", default=[], help="a line laid over the config")
    parser.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    restart_with_tuned_malloc()
    results = [of_one(options, seed, dataset) for seed, dataset in enumerate(options.datasets)]
    found = {"config": options.config, "set": options.set, "ridge": options.ridge,
             "mean": mean_of([each["models"] for each in results]), "results": results}
    record(options.out, found)
    print(json.dumps({"out": options.out, "mean": found["mean"]}))


def of_one(options: argparse.Namespace, seed: int, path: str) -> dict[str, Any]:
    """All models on one dataset."""
    run, dataset = Path(options.runs) / Path(path).name, Dataset.open(path)
    if not (run / "report.html").exists():
        rec_jax.train(options.config, run=run, progress=True,
                      overrides=[*options.set, f"data.path='{path}'", f"seed={seed}"])
    model = rec_jax.load(run, data=path)
    settings, asked = model.served.config.evaluate, ~gives_edges(dataset)
    content = ColdFill(ColdRule("both"))
    found = {
        "graphsage": evaluate_cold(fill_cold(model.served, "edges")),
        "graphsage_content": evaluate_cold(fill_cold(model.served, content), asked=asked),
        **of_ease(dataset, options.ridge, content, settings, asked)}
    warm = rec_jax.evaluate(model, baseline=True)
    return {"dataset": Path(path).name, "seed": seed, "edges": len(given_edges(dataset).items),
            "protocol": found["graphsage"]["protocol"],
            "warm": {name: warm[name]["metrics"] if name == "baseline" else warm[name]
                     for name in ("metrics", "baseline") if name in warm},
            "models": {**{name: {"among_cold": each["among_cold"], "among_all":
                                 each["among_all"]["calibrated"]}
                          for name, each in found.items()},
                       "popularity": {"among_cold": by_popularity(dataset, asked, settings)}}}


def of_ease(dataset: Dataset, ridge: float, content: ColdFill, settings: EvaluateConfig,
            asked: np.ndarray) -> dict[str, Any]:
    """EASE with content, and fitted anew with the edges."""
    matrix, config = training_matrix(dataset), ease.Config(ridge=ridge)
    edges = given_edges(dataset)
    more = sparse.csr_matrix((np.ones(len(edges.users), matrix.dtype), (edges.users, edges.items)),
                             shape=matrix.shape)
    plain, knowing = (config.fit(Training(each, make_mesh(MeshConfig()), print))
                      for each in (matrix, sparse.csr_matrix(matrix + more)))
    return {
        "ease_content": evaluate_cold_solver(plain, dataset, content, split="test",
                                             settings=settings, asked=asked),
        "ease_edges": measure_cold(dataset, asker_of(knowing, dataset, settings), "test", settings,
                                   asked=asked, about={"cold_items": {"fill": "fitted anew"}})}


def by_popularity(dataset: Dataset, asked: np.ndarray, settings: EvaluateConfig
                  ) -> dict[str, float]:
    """Withheld items by how many edges each was given; ties count against the target."""
    first = dataset.num_trained
    count = np.bincount(given_edges(dataset).items - first, minlength=dataset.num_items - first)
    rising, people = np.sort(count), people_of(dataset, "test")
    people = people.take(asked[people.users])
    return cold_metrics([len(rising) - np.searchsorted(rising, count[items], side="left")
                         for items in people.cold], settings.ks)


def mean_of(trees: list[Any]) -> Any:
    """The mean of numbers in mappings of the same structure."""
    if not isinstance(trees[0], dict):
        return float(np.mean(trees))
    return {name: mean_of([tree[name] for tree in trees]) for name in trees[0]}


if __name__ == "__main__":
    main()
