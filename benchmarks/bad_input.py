"""Mutated configs, datasets and checkpoints: each works, or is refused in one line.

    python benchmarks/bad_input.py [--examples 510] [--out FILE]

Hypothesis draws a mutation: a value of another type or size, a key that is missing or unknown, a
file cut, emptied, overwritten, deleted or with a bit flipped; of checkpoints also an index with
other values under a seal that was made to fit, as a hostile one would have. Then a verb runs in
this process: the config, the dataset or the checkpoint is read by `rec-jax export`, the config
also by `rec-jax plan`, and the checkpoint by `rec-jax checkpoint verify`. It must end well, or
raise the error that the command line turns into exit code 2, with one line; and a refused export
must leave nothing behind.

Results: benchmarks/results/bad_input.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec_jax import config
from rec_jax.bench_record import record
from rec_jax.checkpoint import Checkpoints, touched_rows
from rec_jax.checkpoint.seal import write_seal
from rec_jax.cli import app
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.errors import InputError
from rec_jax.model import build_encoder
from rec_jax.run import Run, RunConfig
from rec_jax.tables import init_table

ROOT = Path(__file__).resolve().parents[1]
VALUES = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**31, 2**62, 2**63, -2**63, 10**30]), st.booleans(),
    st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=8), st.just([]), st.just({}),
    st.just([-1]), st.just("../../../etc/passwd"), st.just("none"),
    st.just([2**40, 2**40]), st.just([1, 1, 1, 1, 1, 1, 1, 1, 1]))
BYTES = st.tuples(st.sampled_from(["cut", "empty", "flip", "overwrite", "delete", "append"]),
                  st.floats(0, 1, exclude_max=True), st.integers(0, 7))


def make_run(folder: Path) -> Path:
    """A run with two checkpoints, the second a delta; made without training."""
    draw = np.random.default_rng(0)
    lines = [f"{user},{item}" for user in range(30) for item in draw.integers(0, 40, 6)]
    (folder / "source.csv").write_text("user_id,item_id\n" + "\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(folder / "source.csv"), out=str(folder / "dataset")))
    made = config.build(RunConfig, {
        "data": {"path": str(folder / "dataset"), "length": 8}, "table": {"dim": 128},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2}})
    run = Run(folder / "run")
    run.create(made)
    dataset = Dataset.open(made.data.path)
    _, encoder = build_encoder(made.encoder, dim=128, length=8, causal=True, precision="f32",
                               seed=0)
    rows = init_table(made.table, dataset.num_items, 0).rows
    extra = {"dataset": dataset.split_hash, "config": config.to_mapping(made)}
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(5, {"model": {"encoder": encoder, "rows": rows}}, extra, 0.4)
        moved = touched_rows(rows * 2, np.asarray([1, 30], np.int64))
        checkpoints.save(6, {"model": {"encoder": encoder, "rows": moved}}, extra, 0.5, base=5)
    return run.folder


def hurt(path: Path, how: tuple[str, float, int]) -> None:
    """Change a file's bytes."""
    kind, where, bit = how
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    if kind == "delete":
        path.unlink()
        return
    if kind == "cut":
        del data[place:]
    elif kind == "empty":
        data.clear()
    elif kind == "flip" and data:
        data[place] ^= 1 << bit
    elif kind == "overwrite":
        data[place:place + 16] = b"\x80\x04.\x00{[\xff" * 2
    else:
        data += b"\n\x00 = ["
    path.write_bytes(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside nested dicts and lists."""
    inside = (value.items() if isinstance(value, dict)
              else enumerate(value) if isinstance(value, list) else ())
    return [found for key, below in inside
            for found in ((*path, key), *places(below, (*path, key)))]


def change(tree: Any, draw: Any) -> None:
    """Give one place of nested values another value, drop it, or add an unknown one."""
    path = draw(st.sampled_from(places(tree)))
    for key in path[:-1]:
        tree = tree[key]
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
    if how == "drop":
        del tree[path[-1]]
    elif how == "add" and isinstance(tree, dict):
        tree["unknown"] = draw(VALUES)
    else:
        tree[path[-1]] = draw(VALUES)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file())


def bad_config(work: Path, draw: Any) -> None:
    path = work / "run" / "config.toml"
    if draw(st.booleans()):
        hurt(path, draw(BYTES))
        return
    mapping = config.to_mapping(config.load(RunConfig, path))
    change(mapping, draw)
    path.write_text(tomli_w.dumps(mapping))


def bad_dataset(work: Path, draw: Any) -> None:
    meta = work / "dataset" / "meta.json"
    if draw(st.booleans()):
        hurt(work / "dataset" / draw(st.sampled_from(files_of(work / "dataset"))), draw(BYTES))
        return
    content = json.loads(meta.read_text())
    change(content, draw)
    meta.write_text(json.dumps(content))


def bad_checkpoint(work: Path, draw: Any) -> None:
    folder = work / "run" / "checkpoints"
    if draw(st.booleans()):
        hurt(folder / draw(st.sampled_from(files_of(folder))), draw(BYTES))
        return
    indices = [name for name in files_of(folder) if name.endswith(".json")]
    path = folder / draw(st.sampled_from(indices))
    content = json.loads(path.read_text())
    change(content, draw)
    path.write_text(json.dumps(content))
    if path.name != "seal.json":
        write_seal(folder / path.relative_to(folder).parts[0])  # as somebody hostile would


KINDS: dict[str, Callable[[Path, Any], None]] = {
    "config": bad_config, "dataset": bad_dataset, "checkpoint": bad_checkpoint}


def outcome(arguments: list[str]) -> str:
    """"works" or "refused"; anything else is a finding."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            app(arguments, standalone_mode=False)
    except InputError as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) == 1 and lines[0].strip() else f"not one line: {error!r}"
    except SystemExit as error:
        return "refused" if error.code == 2 else f"exit code {error.code}"
    except BaseException:
        return traceback.format_exc()
    return "works"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=510)
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/bad_input.json"))
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    findings: list[dict[str, str]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        clean, work = Path(name) / "clean", Path(name) / "work"
        clean.mkdir()
        make_run(clean)
        text = (clean / "run" / "config.toml").read_text().replace(str(clean), str(work))
        (clean / "run" / "config.toml").write_text(text)

        def one(kind: str, draw: Any) -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(clean, work)
            KINDS[kind](work, draw)
            before = files_of(work)
            arguments = ["export", str(work / "run"), "--out", str(work / "out"), "--json"]
            if kind == "config" and draw(st.booleans()):
                arguments = ["plan", str(work / "run" / "config.toml"), "--items", "1e4", "--json"]
            if kind == "checkpoint" and draw(st.booleans()):
                arguments = ["checkpoint", "verify", str(work / "run"), "--json"]
            found = outcome(arguments)
            left = [path for path in files_of(work) if path not in before]
            if found == "refused" and left:
                found = f"refused, but left {left}"
            counts[kind][found if found in ("works", "refused") else "finding"] += 1
            if found not in ("works", "refused"):
                findings.append({"kind": kind, "verb": " ".join(arguments[:2]),
                                 "what": found.replace(name, "")[-2000:]})

        def check(kind: str) -> None:
            @settings(max_examples=-(-options.examples // len(KINDS)), deadline=None,
                      derandomize=True, database=None,
                      suppress_health_check=list(HealthCheck))
            @given(data=st.data())
            def run(data: Any) -> None:
                one(kind, data.draw)

            run()
            print(kind, dict(counts[kind]), flush=True)

        for kind in KINDS:
            check(kind)
    record(options.out, {
        "examples": sum(sum(count.values()) for count in counts.values()),
        "outcomes": {kind: dict(count) for kind, count in counts.items()},
        "findings": findings, "seconds": round(time.monotonic() - began, 1)})
    for finding in findings[:5]:
        print(finding["kind"], finding["verb"], finding["what"][-1500:], sep="\n")
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    main()
