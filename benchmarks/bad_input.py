"""Mutated inputs of every verb: each works, or is refused in one line; nothing else is touched.

    python benchmarks/bad_input.py [--examples 1000] [--verbs train,export] [--out FILE]

Hypothesis draws a mutation: a value of another type or size, a key that is missing or unknown, a
file cut, emptied, overwritten, deleted or with a bit flipped; of datasets and checkpoints also
one with an index and checksums that were made to fit, as a hostile one would have. Then a verb
runs in this process, as the command line would run it. It must end well, with one JSON object
that has no NaN; or with exit code 2 and one line. A snapshot of the file system before and after
says what it changed: only its own output where it ended well, and nothing where it was refused.

A training may also end by its own line and exit code 1, where the mutated numbers make its loss
infinite. Sizes of a model that is built are mutated to small ones only: that a machine has too
little memory is no answer to bad input.

Results: benchmarks/results/bad_input.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the work, of programs that then run for milliseconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import tomli_w
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rec_jax import config
from rec_jax.bench.record import record
from rec_jax.checkpoint.manifest import write_manifest
from rec_jax.cli import app as cli
from rec_jax.data.dataset_files import checksum
from rec_jax.data.prepare_config import PrepareConfig
from rec_jax.files import file_hash
from rec_jax.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 180  # a verb that takes longer hangs
SMALL = st.one_of(
    st.integers(-3, 3), st.booleans(), st.sampled_from([0.5, -1.5, float("nan"), float("inf")]),
    st.text(max_size=8), st.just([]), st.just({}), st.just([-1]), st.just("none"),
    st.just("../../../etc/passwd"), st.just("a\0b"), st.just("/dev/full"), st.just("os.path"))
ANY = st.one_of(
    SMALL, st.sampled_from([2**31, 2**62, 2**63, -2**63, 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.just([2**40, 2**40]), st.just([1, 1, 1, 1, 1, 1, 1, 1, 1]))
BYTES = st.tuples(st.sampled_from(["cut", "empty", "flip", "flip", "overwrite", "delete",
                                   "append", "folder"]),
                  st.floats(0, 1, exclude_max=True), st.integers(0, 7))

USERS, ITEMS = 24, 30


@dataclass
class Case:
    """A verb on a mutated copy. may_change: what it may change, relative to the root, where it
    ends well; changes_in_place: it may change that as well where it is refused."""

    verb: str
    arguments: list[str]
    may_change: list[str] = field(default_factory=list)
    changes_in_place: bool = False


@dataclass
class Ended:
    code: int
    out: str
    err: str
    trace: str = ""


class TooLong(BaseException):
    """A verb hangs."""


def make_clean(root: Path) -> None:
    """A log, a dataset with everything that one can have, and a run with deltas."""
    draw = np.random.default_rng(0)
    lines = [f"u{user},i{item},{1000 + 10 * place},{item % 5 + 1}" for user in range(USERS)
             for place, item in enumerate(draw.integers(0, ITEMS, 6))]
    (root / "log.csv").write_text("user,item,time,rating\n" + "\n".join(lines) + "\n")
    (root / "items.csv").write_text("item_id,title,kind\n" + "".join(
        f"i{item},Film {item},k{item % 3}\n" for item in range(ITEMS)))
    made = config.build(PrepareConfig, {
        "source": str(root / "log.csv"), "out": str(root / "dataset"),
        "columns": {"user": "user", "item": "item", "time": "time", "rating": "rating"},
        "item_file": {"path": str(root / "items.csv"), "title": "title"},
        "item_features": [{"column": "kind"}]})
    config.save(made, root / "prepare.toml")
    must(["prepare", "--config", str(root / "prepare.toml")])
    config.save(config.build(RunConfig, {
        "data": {"path": str(root / "dataset"), "length": 8},
        "table": {"dim": 8, "update": "sparse"},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 1, "backend": "xla"},
        "objective": {"kind": "sampled_softmax", "count": 4, "backend": "xla"},
        "features": [{"kind": "item_category", "name": "kind"}],
        "checkpoint": {"full_every": 2, "keep": 3},
        "train": {"rows": 1, "steps": 6, "checkpoint_every": 2, "evaluate_every": 100.0,
                  "log_every": 1}}), root / "config.toml")
    must(["train", str(root / "config.toml"), "--run", str(root / "run")])
    shutil.rmtree(root / "run" / "checkpoints" / "step_6")  # so that a resumed run has work


def must(arguments: list[str]) -> None:
    ended = call([*arguments, "--json"], seconds=1800)  # a first use may build a library
    if ended.code or ended.trace:
        raise SystemExit(f"the clean inputs do not work: {ended}")


# Mutations: each gets the folder of the copies and hypothesis' draw.


def hurt(path: Path, how: tuple[str, float, int]) -> None:
    """Change a file's bytes, or what it is."""
    kind, where, bit = how
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    if kind in ("delete", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
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


def change(tree: Any, draw: Any, values: st.SearchStrategy[Any]) -> None:
    """Give one place of nested values another value or name, drop it, or add an unknown one."""
    path = draw(st.sampled_from(places(tree)))
    for key in path[:-1]:
        tree = tree[key]
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "rename"]))
    if how == "drop":
        del tree[path[-1]]
    elif how == "add" and isinstance(tree, dict):
        tree["unknown"] = draw(values)
    elif how == "rename" and isinstance(tree, dict):
        outside = str(Path(tempfile.gettempdir()) / "x")
        tree[draw(st.sampled_from(["../../x", outside, "", "a b"]))] = tree.pop(path[-1])
    else:
        tree[path[-1]] = draw(values)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file())


def bad_toml(path: Path, cls: type, draw: Any, values: st.SearchStrategy[Any]) -> None:
    if draw(st.integers(0, 2)) == 0:
        hurt(path, draw(BYTES))
        return
    mapping = config.to_mapping(config.load(cls, path))
    change(mapping, draw, values)
    path.write_text(tomli_w.dumps(mapping))


def bad_config(work: Path, draw: Any, values: st.SearchStrategy[Any]) -> None:
    bad_toml(work / "run" / "config.toml", RunConfig, draw, values)
    if (work / "run" / "config.toml").is_file():
        shutil.copy(work / "run" / "config.toml", work / "config.toml")


def bad_job(work: Path, draw: Any, values: st.SearchStrategy[Any]) -> None:
    bad_toml(work / "prepare.toml", PrepareConfig, draw, values)


def bad_source(work: Path, draw: Any, values: st.SearchStrategy[Any]) -> None:
    hurt(work / draw(st.sampled_from(["log.csv", "items.csv"])), draw(BYTES))


def bad_dataset(work: Path, draw: Any, values: st.SearchStrategy[Any]) -> None:
    folder = work / "dataset"
    path = folder / draw(st.sampled_from(files_of(folder)))
    if draw(st.booleans()) and path.name != "meta.json":
        hurt(path, draw(BYTES))
        if draw(st.booleans()):
            fit_checksums(folder)
        return
    meta = folder / "meta.json"
    content = json.loads(meta.read_text())
    change(content, draw, values)
    meta.write_text(json.dumps(content))
    if draw(st.booleans()):
        fit_checksums(folder)


def fit_checksums(folder: Path) -> None:
    """As somebody hostile would, or a tool that wrote the folder anew."""
    meta = json.loads((folder / "meta.json").read_text())
    listed = meta.get("files")
    for name, about in listed.items() if isinstance(listed, dict) else ():
        if isinstance(about, dict) and "\0" not in name and (folder / name).is_file():
            about.update(bytes=(folder / name).stat().st_size, sha256=file_hash(folder / name))
    meta["checksum"] = checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def bad_checkpoint(work: Path, draw: Any, values: st.SearchStrategy[Any]) -> None:
    folder = work / "run" / "checkpoints"
    if draw(st.booleans()):
        hurt(folder / draw(st.sampled_from(files_of(folder))), draw(BYTES))
        return
    path = folder / draw(st.sampled_from(
        [name for name in files_of(folder) if name.endswith(".json")]))
    content = json.loads(path.read_text())
    change(content, draw, values)
    path.write_text(json.dumps(content))
    if path.name != "seal.json":
        write_manifest(folder / path.relative_to(folder).parts[0])  # as somebody hostile would


# Verbs, by what is mutated; `{}` stands for the folder of the copies.

OUT = ["work/out"]
IN_RUN = ["work/run"]
TRAIN = Case("train", ["train", "{}/config.toml", "--run", "{}/out", "--set", "train.steps=2"], OUT)
RESUME = Case("train --resume", ["train", "--resume", "{}/run"], IN_RUN,
              changes_in_place=True)
EVALUATE = Case("evaluate", ["evaluate", "{}/run"])
RECOMMEND = Case("recommend", ["recommend", "{}/run", "--user", "u3"])
EXPORT = Case("export", ["export", "{}/run", "--out", "{}/out"], OUT)
LOOK = [Case(f"checkpoint {verb}", ["checkpoint", verb, "{}/run"])
        for verb in ("list", "inspect", "verify")]
TEND = [Case(f"checkpoint {verb}", ["checkpoint", verb, "{}/run"], IN_RUN, changes_in_place=True)
        for verb in ("compact", "prune")]
PREPARE = Case("prepare", ["prepare", "--config", "{}/prepare.toml", "--out", "{}/out"], OUT)
AGAIN = Case("prepare --overwrite", ["prepare", "--config", "{}/prepare.toml", "--overwrite"],
             ["work/dataset"])
VERIFY = Case("data verify", ["data", "verify", "{}/dataset"])
PLAN = Case("plan", ["plan", "{}/config.toml", "--items", "1e4"])

Mutation = Callable[[Path, Any, st.SearchStrategy[Any]], None]
KINDS: Mapping[str, tuple[Mutation, st.SearchStrategy[Any], list[Case]]] = {
    "config of a model that is built": (bad_config, SMALL, [TRAIN, RESUME, EVALUATE, RECOMMEND]),
    "config": (bad_config, ANY, [PLAN, EXPORT, *LOOK, *TEND]),
    "dataset": (bad_dataset, ANY, [TRAIN, RESUME, EVALUATE, RECOMMEND, EXPORT, VERIFY, AGAIN]),
    "checkpoint": (bad_checkpoint, ANY, [RESUME, EVALUATE, RECOMMEND, EXPORT, *LOOK, *TEND]),
    "prepare.toml": (bad_job, ANY, [PREPARE]),
    "source": (bad_source, ANY, [PREPARE]),
}


def call(arguments: list[str], seconds: int = SECONDS) -> Ended:
    """Run the command line here. code: of the exit, or -1 with what came instead."""
    out, err, old = StringIO(), StringIO(), sys.argv
    sys.argv = ["rec-jax", *arguments]
    try:
        with limited(seconds), redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return Ended(code, out.getvalue(), err.getvalue())
    except BaseException:
        return Ended(-1, out.getvalue(), err.getvalue(), traceback.format_exc())
    finally:
        sys.argv = old
    return Ended(0, out.getvalue(), err.getvalue())


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(root: Path) -> dict[str, Any]:
    """Everything under `root`: kind, size, inode, and time of the last change."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder) / name
            about = path.lstat()
            kind = stat.S_IFMT(about.st_mode)
            inside = () if stat.S_ISDIR(kind) else (about.st_size, about.st_mtime_ns)
            found[path.relative_to(root).as_posix()] = (kind, about.st_ino, *inside)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys()
                  if before.get(name) != after.get(name))


def judge(case: Case, ended: Ended, touched: list[str]) -> str:
    """"works", "refused" or "diverged"; anything else is a finding."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.trace:
        return f"no exit: {ended.trace}"
    if ended.code == 0:
        try:
            json.loads(ended.out, parse_constant=lambda text: 1 / 0)
        except (ValueError, ZeroDivisionError):
            return f"its output is no JSON: {ended.out[:300]}"
        verdict = "works"
    elif ended.code == 2 or (ended.code == 1 and case.verb.startswith("train")):
        if not lines or not lines[-1].startswith("rec-jax: ") or "Traceback" in ended.err:
            return f"exit code {ended.code} without its line: {ended.err[-1500:]}"
        if len(lines) > 1 and not case.changes_in_place and "checkpoint" not in lines[0]:
            return f"more than one line: {lines}"
        verdict = "refused" if ended.code == 2 else "diverged"
    else:
        return f"exit code {ended.code}: {ended.err[-1500:]}"
    allowed = case.may_change if verdict != "refused" or case.changes_in_place else []
    strange = [name for name in touched
               if not any(name == place or name.startswith(f"{place}/") for place in allowed)]
    return f"{verdict}, but it touched {strange}" if strange else verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default="", help="only these, separated by commas")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/bad_input.json"))
    options = parser.parse_args()
    options.out = os.path.abspath(options.out)
    only = [name for name in options.verbs.split(",") if name]
    pairs = [(kind, case) for kind, (_, _, cases) in KINDS.items() for case in cases
             if not only or case.verb in only]
    counts: dict[str, Counter[str]] = {f"{case.verb}: {kind}": Counter() for kind, case in pairs}
    findings: list[dict[str, str]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        # Deep, so that ../../ of it is seen as well.
        root = Path(name) / "root"
        clean, work, home = root / "clean", root / "work", root / "empty"
        for folder in (work, home):
            folder.mkdir(parents=True)
        # A mutated config gives the same programs over and over.
        jax.config.update("jax_compilation_cache_dir", str(Path(name) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        os.chdir(home)
        make_clean(work)
        work.rename(clean)

        def run_case(case: Case, mutate: Callable[[], None] | None = None) -> str:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(clean, work)
            if mutate:
                mutate()
            before = snapshot(root)
            ended = call([*(part.replace("{}", str(work)) for part in case.arguments), "--json"])
            return judge(case, ended, changed(before, snapshot(root)))

        def one(kind: str, case: Case, draw: Any) -> None:
            mutate, values, _ = KINDS[kind]
            found = run_case(case, lambda: mutate(work, draw, values))
            is_fine = found in ("works", "refused", "diverged")
            counts[f"{case.verb}: {kind}"][found if is_fine else "finding"] += 1
            if not is_fine:
                findings.append({"verb": case.verb, "input": kind,
                                 "what": found.replace(name, "")[-2500:]})

        def check(number: int, kind: str, case: Case) -> None:
            @seed(options.seed + number)
            @settings(max_examples=-(-options.examples // len(pairs)), deadline=None,
                      database=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))
            @given(data=st.data())
            def run(data: Any) -> None:
                one(kind, case, data.draw)

            run()
            print(f"{case.verb}: {kind}", dict(counts[f"{case.verb}: {kind}"]),
                  f"{time.monotonic() - began:.0f} s", flush=True)

        for case in {case.verb: case for _, case in pairs}.values():
            found = run_case(case)
            if found != "works":
                raise SystemExit(f"{case.verb} does not work on the clean inputs: {found}")
        for number, (kind, case) in enumerate(pairs):
            check(number, kind, case)
        os.chdir(ROOT)
    record(options.out, {
        "examples": sum(sum(count.values()) for count in counts.values()),
        "outcomes": {kind: dict(count) for kind, count in counts.items()},
        "findings": findings, "seconds": round(time.monotonic() - began, 1)})
    for finding in findings[:8]:
        print(finding["verb"], finding["input"], finding["what"][-1500:], sep="\n")
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    main()
