"""Embed texts with sentence-transformers: `embed_sentence_transformers.py MODEL TEXTS OUT THREADS`.

TEXTS is a JSON list; vectors go to OUT (npy). Two passes over all texts are timed, of which the
second has nothing left to warm up. One JSON object on stdout says the seconds.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np


def main(model: str, texts: str, out: str, threads: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    begun = time.perf_counter()
    encoder = SentenceTransformer(model, device="cpu")
    wanted = json.loads(Path(texts).read_text())
    loaded = time.perf_counter() - begun
    passes = []
    for _ in range(2):
        begun = time.perf_counter()
        vectors = encoder.encode(wanted, show_progress_bar=False)
        passes.append(time.perf_counter() - begun)
    np.save(out, vectors)
    print(json.dumps({"load_seconds": loaded, "pass_seconds": passes, "versions": {
        name: version(name) for name in ("sentence-transformers", "transformers", "torch")}}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
