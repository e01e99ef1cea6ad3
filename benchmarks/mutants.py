"""How many small faults in the code the tests would find: mutation testing by a random sample.

    OTHER/bin/python benchmarks/mutants.py draw --state STATE [--seed 0] [--count 400]
    python benchmarks/mutants.py run --state STATE [--jobs 1] [--minutes 45] [--again survived]
    python benchmarks/mutants.py summary --state STATE [--out FILE]

`draw` changes one thing in one file (`mutation/operators.py` says which things) and keeps the
changes as patches; it needs mutmut 3 (`pip install 'mutmut>=3.8'`, in an environment of its own
where you like). `run` first runs each test file unmutated, and then, in the order of the draw, the
tests of each mutant's module (`mutation/tests_of.py`) on a copy of the tree with that one patch.
A mutant is killed by a failing test, by a crash, or by five times the CPU time of the unmutated
tests. Every result is written at once, so `run` goes on where it stopped; the first n of a draw
are a random sample too. `--again survived` shows survivors the tests of today.

`summary` gives the share that dies, with the lower bound of Wilson's 95 % interval, and the
survivors with their patches. No mutant is left out as one that changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutation import trees
from mutation.tests_of import Imports, room_of

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rec_jax/tables", "rec_jax/train", "rec_jax/objectives", "rec_jax/inference", "kernels")
DEAD = ("killed", "timeout")
NORMAL = 1.959963984540054  # 97.5 % of a normal distribution lie below


class State:
    """A folder: `drawn.json`, and a line for each result and for each unmutated test file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()

    def drawn(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        path = self.folder / "drawn.json"
        if not path.exists():
            raise SystemExit(f"{path} is missing: `mutants.py draw` makes it")
        kept = json.loads(path.read_text())
        return kept["about"], kept["mutants"]

    def lines(self, name: str, key: str) -> dict[Any, dict[str, Any]]:
        """The last whole line of each key; a run that was killed may have cut its last one."""
        path, found = self.folder / name, {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[entry[key]] = entry
        return found

    def append(self, name: str, entry: dict[str, Any]) -> None:
        with open(self.folder / name, "a+") as file:
            file.seek(0)
            cut = file.read()[-1:] not in ("", "\n")
            file.write("\n" * cut + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    of = {name: verbs.add_parser(name) for name in ("draw", "run", "summary")}
    for one in of.values():
        one.add_argument("--state", type=Path, required=True)
        one.add_argument("--root", type=Path, default=ROOT, help="the source tree")
    of["draw"].add_argument("--seed", type=int, default=0)
    of["draw"].add_argument("--count", type=int, default=400)
    of["draw"].add_argument("--folders", nargs="+", default=FOLDERS)
    of["run"].add_argument("--jobs", type=int, default=1)
    of["run"].add_argument("--minutes", type=float, default=math.inf, help="start none after that")
    of["run"].add_argument("--again", choices=("survived", "killed", "timeout", "gone"))
    of["run"].add_argument("--preload", nargs="*", help="modules to import once, before the forks")
    of["summary"].add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mutants.json")
    args = parser.parse_args(arguments)
    {"draw": draw, "run": run, "summary": summary}[args.verb](State(args.state), args)


def draw(state: State, args: argparse.Namespace) -> None:
    from mutation.draw import draw as draw_mutants

    if (state.folder / "results.jsonl").exists():
        raise SystemExit(f"{state.folder} has results of an earlier draw: name another folder")
    about, mutants = draw_mutants(args.root, args.folders, args.count, args.seed)
    about = {**about, "folders": list(args.folders), "commit": commit(args.root)}
    (state.folder / "drawn.json").write_text(
        json.dumps({"about": about, "mutants": mutants}, indent=1) + "\n")
    print(f"{len(mutants)} of {about['mutations']} mutations in {about['files']} files")


def commit(root: Path) -> str:
    """Which sources these are, and whether they were changed since."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def run(state: State, args: argparse.Namespace) -> None:
    from mutation.running import PRELOAD, preload

    root, ends = args.root.resolve(), time.monotonic() + 60 * args.minutes
    _, mutants = state.drawn()
    done = state.lines("results.jsonl", "id")
    if args.again:
        mutants = [one for one in mutants if done.get(one["id"], {}).get("verdict") == args.again]
    else:
        mutants = [one for one in mutants if one["id"] not in done]
    preload(root / "tests" / "conftest.py", PRELOAD if args.preload is None else args.preload)
    # What is asked to end takes its children and copies with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the same command goes on"))
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        bench = Bench(state, root, Path(work), caches="jax" in sys.modules)
        try:
            for result in bench.results(mutants, args.jobs, ends):
                state.append("results.jsonl", result)
                print(f"{result['id']:4} {result['verdict']:9} {result['seconds']:6.1f} s  "
                      f"{result['file']}:{result['line']} {result['operator']}  "
                      f"{result.get('by', '')}", flush=True)
        finally:
            bench.end()


class Bench:
    """A snapshot of the tree, whose mutants are tested one after another or some at once."""

    def __init__(self, state: State, root: Path, work: Path, *, caches: bool) -> None:
        self._state, self._work, self._caches = state, work, caches
        self._commit, self._count = commit(root), 0
        self._names = trees.tracked(root)
        self._source = trees.copy(root, self._names, work / "source")
        self._imports = Imports(self._source)
        self._marked: Path | None = None
        self._plain = state.lines("unmutated.jsonl", "test")
        shared = [name for name in self._names if name.endswith(".py") and not name.startswith(
            ("tests/", "benchmarks/", "docs/"))]
        helpers = [name for name in self._names if name.startswith("tests/")
                   and not Path(name).name.startswith("test_")]
        self._shared = digest(self._source, shared + helpers)
        self._running: list[tuple[dict[str, Any], Any, Path]] = []

    def results(self, mutants: Sequence[dict[str, Any]], jobs: int,
                ends: float) -> Iterator[dict[str, Any]]:
        """A result for each mutant, as they come in; none starts after `ends`."""
        waiting = list(mutants)
        while waiting or self._running:
            if waiting and time.monotonic() > ends:
                waiting = []
            elif waiting and len(self._running) < jobs:
                early = self._begin(waiting.pop(0))
                if early:
                    yield early
            else:
                yield from self._ended(*self._wait())

    def end(self) -> None:
        for _, child, _ in self._running:
            child.kill()

    def _begin(self, mutant: dict[str, Any]) -> dict[str, Any] | None:
        """Starts a mutant's tests; gives its result where there is nothing to run."""
        source = (self._source / mutant["file"]).read_text()
        text = trees.patched(source, mutant)
        about = {"id": mutant["id"], "file": mutant["file"], "line": mutant["line"],
                 "operator": mutant["operator"], "commit": self._commit}
        if text is None:
            return {**about, "verdict": "gone", "seconds": 0.0}
        about["line"] = changed_line(source, text)
        function = trees.function_at(source, about["line"])
        entries = self._tests_of(mutant["file"], function)
        about |= {"function": function, "tests": [one["test"] for one in entries]}
        if not entries:
            return {**about, "verdict": "survived", "reached": False, "seconds": 0.0}
        work = self._folder()
        tree = trees.copy(self._source, self._names, work / "tree")
        (tree / mutant["file"]).write_text(text)
        cpu, wall = (sum(one[name] for one in entries) for name in ("cpu", "seconds"))
        self._running.append((about, self._start(tree, about["tests"], work, cpu, wall), work))
        return None

    def _tests_of(self, file: str, function: str | None) -> list[dict[str, Any]]:
        """The unmutated runs of a module's test files that enter the function, in their order."""
        found: list[dict[str, Any]] = []
        for group in self._imports.tests_of(file):
            entries = [self._unmutated(test) for test in group]
            found += sorted((one for one in entries if one["passed"]),
                            key=lambda one: one["cpu"])
        if not found:
            raise SystemExit(f"no tests of {file} pass without a mutant")
        # A file that enters nothing, or does not pass with the marks, may read the sources.
        return [one for one in found if function is None or not one["reached"]
                or f"{file}:{function}" in one["reached"]]

    def _unmutated(self, test: str) -> dict[str, Any]:
        """How a test file runs without a mutant, which is asked once; with its functions' marks,
        and without where these disturb it."""
        key = digest(self._source, [test]) + self._shared
        if self._plain.get(test, {}).get("digest") != key:
            entry = self._plain_run(test, key, marks=True)
            if not entry["passed"]:
                entry = self._plain_run(test, key, marks=False)
            self._state.append("unmutated.jsonl", entry)
            self._plain[test] = entry
            print(f"     {'passes' if entry['passed'] else 'fails':9} {entry['seconds']:6.1f} s  "
                  f"{test} {entry.get('why', '')}", flush=True)
        return self._plain[test]

    def _plain_run(self, test: str, key: str, *, marks: bool) -> dict[str, Any]:
        work = self._folder()
        if self._marked is None:
            self._marked = trees.copy(self._source, self._names, self._work / "marked")
            trees.mark_all(self._marked, [name for name in self._names if name.endswith(".py")
                                          and name.startswith(("rec_jax/", "kernels/"))])
        reached = work / "reached.txt"
        reached.touch()
        child = self._start(self._marked if marks else self._source, [test], work, 600, 3000,
                            plain=True, REACHED=str(reached))
        while not child.poll(wait()):
            pass
        entry = {"test": test, "digest": key, "passed": child.ended == 0, "code": child.ended,
                 "cpu": round(child.cpu, 2), "seconds": round(child.seconds(), 2),
                 "reached": sorted(set(reached.read_text().split())) if marks else None}
        if child.ended:
            entry["why"] = " ".join(child.said())
        shutil.rmtree(work)
        return entry

    def _start(self, tree: Path, tests: Sequence[str], work: Path, cpu: float, wall: float, *,
               plain: bool = False, **more: str) -> Any:
        from mutation.running import Limits, start

        (work / "tmp").mkdir()
        kept = self._state.folder / "cache"
        kept.mkdir(mode=0o700, exist_ok=True)
        # Only unmutated code may write what others will read.
        cache = kept if plain else work / "cache"
        if not plain:
            shutil.copytree(kept, cache)
        environment = {"TMPDIR": str(work / "tmp"), "REC_JAX_CACHE": str(cache), **more}
        settings: dict[str, Any] = {}
        if self._caches:
            settings = {"jax_compilation_cache_dir": str(self._state.folder / "programs"),
                        "jax_persistent_cache_min_entry_size_bytes": -1,
                        "jax_persistent_cache_min_compile_time_secs": 0 if plain else 1e9}
            environment |= {name.upper(): str(value) for name, value in settings.items()}
        limits = Limits(60 + 5 * cpu, 300 + 20 * wall)
        return start(tree, tests, work, limits, environment, settings)

    def _wait(self) -> tuple[dict[str, Any], Any, Path]:
        while True:
            tick = wait()
            for one in self._running:
                if one[1].poll(tick):
                    self._running.remove(one)
                    return one

    def _ended(self, about: dict[str, Any], child: Any, work: Path) -> Iterator[dict[str, Any]]:
        by, why = child.said()
        verdict = ("timeout" if child.ended == "timeout" else
                   "survived" if child.ended == 0 else "killed")
        result = {**about, "verdict": verdict, "seconds": round(child.seconds(), 2),
                  "cpu": round(child.cpu, 2)}
        if verdict == "killed":
            result |= {"by": by, "why": why, "code": child.ended}
        if verdict == "survived":
            result["reached"] = True
        shutil.rmtree(work, ignore_errors=True)
        yield result

    def _folder(self) -> Path:
        self._count += 1
        folder = self._work / str(self._count)
        folder.mkdir()
        return folder


def wait() -> float:
    """A short sleep, and how long it counts; a time for which this process was stopped does not."""
    from mutation.running import POLL

    time.sleep(POLL)
    return POLL


def digest(root: Path, names: Sequence[str]) -> str:
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode() + b"\0" + (root / name).read_bytes())
    return found.hexdigest()[:16]


def changed_line(source: str, text: str) -> int:
    """The first line, from 1, in which the two differ."""
    pairs = zip(source.splitlines(), text.splitlines(), strict=False)
    return next((at for at, (old, new) in enumerate(pairs, 1) if old != new),
                min(source.count("\n"), text.count("\n")) + 1)


def wilson(hits: int, trials: int) -> float:
    """The lower bound of Wilson's 95 % interval of a share."""
    if not trials:
        return 0.0
    share, square = hits / trials, NORMAL ** 2
    half = NORMAL * math.sqrt(share * (1 - share) / trials + square / (4 * trials ** 2))
    return max(0.0, (share + square / (2 * trials) - half) / (1 + square / trials))


def counts(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many died, and the share with its lower bound."""
    of = [one for one in results if one["verdict"] != "gone"]
    dead = sum(one["verdict"] in DEAD for one in of)
    return {"run": len(of), "killed": sum(one["verdict"] == "killed" for one in of),
            "timeout": sum(one["verdict"] == "timeout" for one in of),
            "survived": len(of) - dead, "share": round(dead / len(of), 4) if of else None,
            "share_at_least": round(wilson(dead, len(of)), 4)}


def summary(state: State, args: argparse.Namespace) -> None:
    from rec_jax.bench.record import record

    about, mutants = state.drawn()
    done = state.lines("results.jsonl", "id")
    results = [{**done[one["id"]], "diff": one["diff"]} for one in mutants if one["id"] in done]
    rooms = sorted({room_of(one["file"]) for one in mutants})
    unmutated = state.lines("unmutated.jsonl", "test")
    tests = Imports(args.root.resolve())
    payload = {
        "what": "the share of random small faults in the code that the tests of their module find",
        **about, "drawn": len(mutants), "finished": len(results) == len(mutants),
        "gone": sum(one["verdict"] == "gone" for one in results), **counts(results),
        "rooms": {room: counts([one for one in results if room_of(one["file"]) == room])
                  for room in rooms},
        "operators": {name: counts([one for one in results if one["operator"] == name])
                      for name in sorted({one["operator"] for one in mutants})},
        "survivors": [{key: one[key] for key in
                       ("id", "file", "line", "function", "operator", "reached", "diff", "commit")}
                      for one in results if one["verdict"] == "survived"],
        "test_seconds": {name: one["seconds"] for name, one in sorted(unmutated.items())},
        "tests_that_fail_unmutated": sorted(
            name for name, one in unmutated.items() if not one["passed"] and one["code"] != 5),
        "tests_of": {file: list(itertools.chain(*tests.tests_of(file)))
                     for file in sorted({one["file"] for one in mutants})},
    }
    path = record(args.out, payload)
    print(json.dumps(counts(results)), path)


if __name__ == "__main__":
    main()
