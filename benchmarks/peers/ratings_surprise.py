"""RMSE and MAE of scikit-surprise on the folds of `ratings.py`: `ratings_surprise.py SOURCE OUT`.

SOURCE is the file that `ratings.py prepare` read, with the columns of MovieLens-100K; the folds are
drawn as there. All that is not a fold's test is trained on. SVD and SVD++ have the program's own
settings, by which its page has .934 and .92. OUT is the JSON file that `ratings.py --peers` reads.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

FOLDS, SEED = 5, 0


def main(source: str, out: str) -> None:
    from surprise import SVD, Dataset, Reader, SVDpp, accuracy

    with Path(source).open(newline="") as file:
        lines = list(csv.reader(file, delimiter="\t"))[1:]
    rows = [(user, item, float(rating)) for user, item, rating, *_ in lines]
    fold_of = np.random.default_rng(SEED).permutation(len(rows)) % FOLDS
    found = {"versions": {"scikit-surprise": version("scikit-surprise")}, "models": {}}
    for name, model in (("SVD", SVD), ("SVD++", SVDpp)):
        each = []
        for fold in range(FOLDS):
            train = [row for row, own in zip(rows, fold_of, strict=True) if own != fold]
            test = [row for row, own in zip(rows, fold_of, strict=True) if own == fold]
            begun = time.perf_counter()
            made = Dataset(Reader(rating_scale=(1, 5)))
            fitted = model(random_state=fold).fit(
                made.construct_trainset([(*row, None) for row in train]))
            seconds = time.perf_counter() - begun
            predictions = fitted.test(test)
            each.append({"fold": fold, "seconds": seconds,
                         "rmse": accuracy.rmse(predictions, verbose=False),
                         "mae": accuracy.mae(predictions, verbose=False)})
            print(name, each[-1], file=sys.stderr, flush=True)
        found["models"][name] = {
            "folds": each, **{key: statistics.fmean(one[key] for one in each)
                              for key in ("rmse", "mae")}}
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
