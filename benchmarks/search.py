"""Known-item search, as JSON: the items' own texts without 1 to 3 words as queries, and MRR@10 by a
text encoder, by BM25 and by both, on one or several datasets with item vectors.

    python benchmarks/search.py --model models/all-MiniLM-L6-v2 --out search.json \\
        --catalogue data/ml-1m films.csv item_id title \\
        --catalogue data/online-retail items.csv item text
    python benchmarks/search.py ... --run runs/ml1m_content   # of the first catalogue

A catalogue is a dataset, the table of its texts, the column of ids and that of the texts. Every
second item chooses what a point of BM25 is worth (`choose_lexical`); figures are of the others, the
mean of the seeds of the queries. Ties count against the item, and in `ties_shared` half of them.
`whitened`: cosines of the item vectors' principal components, each with variance 1. `projected`:
through the matrix of the run's `[[content]]` to its vectors of the items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rec_jax
from rec_jax.bench.record import record
from rec_jax.inference.search import item_space
from rec_jax.text.item_texts import texts_of
from rec_jax.text.known_items import (
    Floats,
    choose_lexical,
    known_item_queries,
    mixed,
    ranks_of,
    reciprocal_ranks,
)
from rec_jax.text.projection import fit
from rec_jax.text.search import LEXICAL, SearchConfig, open_index, unit

SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder of the item vectors")
    parser.add_argument("--catalogue", nargs=4, action="append", required=True,
                        metavar=("DATASET", "TABLE", "ID", "COLUMN"))
    parser.add_argument("--run", help="trained on the first catalogue with its vectors as content")
    parser.add_argument("--out", required=True, help="JSON file to write")
    options = parser.parse_args()
    catalogues = [measure(options.model, given, options.run if place == 0 else None)
                  for place, given in enumerate(options.catalogue)]
    record(options.out, {
        "search": catalogues, "seeds": list(SEEDS), "dropped_words": "1 to 3, at least one stays",
        "metric": "mrr@10", "ties": "against the item", "model": Path(options.model).name,
        "lexical_by_default": LEXICAL})
    print(json.dumps({"out": options.out, "mrr@10": [each["mrr@10"] for each in catalogues]}))


def measure(model: str, given: Sequence[str], run: str | None) -> dict[str, Any]:
    """MRR@10 of each way to search a catalogue, the mean of the seeds."""
    folder, table, id, column = given
    dataset = rec_jax.Dataset.open(folder)
    index = open_index(dataset, SearchConfig(model, table=table, id=id, columns=(column,)))
    assert index.encode is not None and index.vectors is not None and index.words is not None
    texts = [text for block in texts_of(dataset, table, id, (column,)).blocks() for text in block]
    vectors, has = index.vectors, index.has
    whiten = fit(lambda: iter([(vectors, has)]), vectors.shape[1], None, True)
    white = unit(whiten(vectors))
    space = None if run is None else item_space(rec_jax.load(run).served, None)
    found: list[dict[str, dict[str, float]]] = []
    for seed in SEEDS:
        items, queries = known_item_queries(texts, seed)
        encoded = unit(index.encode(queries))
        cosines, words = encoded @ vectors.T, index.words.scores(queries)
        learns = items % 2 == 0
        share = choose_lexical(cosines[learns], words[learns], items[learns])
        ways = {"encoder": cosines, "encoder, whitened": unit(whiten(encoded)) @ white.T,
                "BM25": words, "both": mixed(cosines, words, LEXICAL),
                "both, learned share": mixed(cosines, words, share)}
        if space is not None:
            ways["projected"] = unit(space.lead(encoded)) @ unit(space.vectors).T
            ways["projected and BM25"] = mixed(ways["projected"], words, LEXICAL)
        found.append(rates({name: scores[~learns] for name, scores in ways.items()},
                           items[~learns]) | {"learned": {"share": share}})
    mean = {name: float(np.mean([one["mrr@10"][name] for one in found]))
            for name in found[0]["mrr@10"]}
    shared = {name: float(np.mean([one["ties_shared"][name] for one in found]))
              for name in found[0]["ties_shared"]}
    return {"dataset": dataset.folder.name, "split_hash": dataset.split_hash,
            "items": dataset.num_items, "queries": int((~learns).sum()), "mrr@10": mean,
            "ties_shared": shared, "by_seed": found}


def rates(ways: Mapping[str, Floats], items: Any) -> dict[str, dict[str, float]]:
    """MRR@10 of scores `[n, V]` by name, by both rules of ties."""
    return {name: {way: float(reciprocal_ranks(ranks_of(scores, items, ties=ties)).mean())
                   for way, scores in ways.items()}
            for name, ties in (("mrr@10", 1.0), ("ties_shared", 0.5))}


if __name__ == "__main__":
    main()
