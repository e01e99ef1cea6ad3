"""One run, many processes: train, prune, compact, read and evaluate it at the same time.

    python benchmarks/together.py [--seconds 120] [--out FILE]

A training saves a checkpoint every few steps, most of them deltas. Beside it, processes of their
own evaluate, recommend and export from its best checkpoint, list and verify all of them, prune
them to one, and make the newest one full, over and over. Afterwards the driver checks that

  - every command was answered: no refusal, no traceback;
  - an evaluation gives what the training logged for the checkpoint that it read;
  - the training was stopped by its signal alone, with a complete checkpoint, and every byte of
    what is left is as it was written;
  - of two processes that go on with it one is refused, in one line, and the other one goes on
    from that checkpoint.

Results: benchmarks/results/together.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what these small programs cost.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false "
                      "--xla_backend_optimization_level=0")

import tomli_w

from rec_jax.bench.record import record

ROOT = Path(__file__).resolve().parents[1]
ITEMS, USERS = 2000, 150
WORKERS = {"evaluate": ("evaluate",), "read": ("recommend", "export", "list", "verify"),
           "change": ("prune", "compact", "list")}
START_SECONDS, END_SECONDS = 300, 120


def make_run(scratch: Path) -> Path:
    """A small dataset, and a config whose sparse table is saved as deltas; the config's path."""
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import Columns, PrepareConfig

    draw = random.Random(7)
    lines = ["user_id,item_id,time"]
    for user in range(USERS):
        place = draw.randrange(ITEMS)
        for when in range(draw.randint(3, 20)):
            place = (place + draw.choice([1, 1, 1, 2, 5])) % ITEMS
            lines.append(f"u{user},{place:04d},{1_000_000 + when}")
    (scratch / "interactions.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(source=str(scratch / "interactions.csv"), out=str(scratch / "dataset"),
                          columns=Columns(time="time")))
    path = scratch / "config.toml"
    path.write_text(tomli_w.dumps({
        "seed": 3, "data": {"path": str(scratch / "dataset"), "length": 12},
        "table": {"dim": 64, "update": "sparse"},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2, "hidden": 1, "dropout": 0.0,
                    "backend": "xla"},
        "objective": {"kind": "sampled_softmax", "count": 4, "backend": "xla"},
        "train": {"rows": 1, "steps": 10**7, "evaluate_every": 0.2, "checkpoint_every": 5,
                  "patience": "none", "log_every": 10},
        "checkpoint": {"full_every": 6, "keep": 2},
    }))
    return path


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "rec_jax.cli.app", "train", *arguments,
                                 "--json"], stdout=file, stderr=file)


def arguments_of(verb: str, run: Path, out: Path) -> list[str]:
    return {
        "evaluate": ["evaluate", str(run), "--split", "valid", "--json"],
        "recommend": ["recommend", str(run), "--user", "u3", "--json"],
        "export": ["export", str(run), "--out", str(out), "--json"],
        "list": ["checkpoint", "list", str(run), "--json"],
        "verify": ["checkpoint", "verify", str(run), "--json"],
        "prune": ["checkpoint", "prune", str(run), "--keep", "1", "--json"],
        "compact": ["checkpoint", "compact", str(run), "--json"],
    }[verb]


def work(verbs: tuple[str, ...], run: Path, out: Path, stop: Any, answers: Any) -> None:
    """One process: these verbs again and again; what each answered goes to `answers`."""
    from rec_jax.cli.app import app
    from rec_jax.errors import InputError

    number = 0
    while not stop.is_set():
        verb = verbs[number % len(verbs)]
        number += 1
        said = io.StringIO()
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(said):
                app(arguments_of(verb, run, out / f"{verb}{number}"), standalone_mode=False)
            found: dict[str, Any] = {"answer": json.loads(said.getvalue())}
        except InputError as error:
            found = {"refused": str(error)}
        except BaseException:
            found = {"traceback": traceback.format_exc()}
        answers.put({"verb": verb, "seconds": time.monotonic() - began, **found})
    answers.put(None)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        if process.poll() is not None:
            return what()
        time.sleep(0.02)
    return False


def logged(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def beside(run: Path, scratch: Path, seconds: float,
           training: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """All that the other processes were answered in that time."""
    spawn = multiprocessing.get_context("spawn")
    stop, answers = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=work, args=(verbs, run, scratch / "exports", stop, answers))
               for verbs in WORKERS.values()]
    for worker in workers:
        worker.start()
    found, left, end = [], len(workers), time.monotonic() + seconds
    while left:
        if time.monotonic() > end or training.poll() is not None:
            stop.set()
        with contextlib.suppress(multiprocessing.queues.Empty):
            one = answers.get(timeout=0.2)
            left -= one is None
            found += [] if one is None else [one]
    for worker in workers:
        worker.join()
    return found


def check(found: list[dict[str, Any]], run: Path) -> list[str]:
    """What is wrong with the answers."""
    wrong = [f"{one['verb']}: {one.get('refused') or one['traceback']}" for one in found
             if "answer" not in one]
    valid = {line["step"]: line["ndcg@10"] for line in logged(run) if line["kind"] == "valid"}
    for one in found:
        if one["verb"] == "evaluate" and "answer" in one:
            step, value = one["answer"]["step"], one["answer"]["metrics"]["ndcg@10"]
            if abs(value - valid.get(step, -1.0)) > 1e-6:
                wrong.append(f"evaluate of step {step}: ndcg@10 is {value}, the training had "
                             f"{valid.get(step)}")
    return [*wrong, *(f"no {verb} ran" for verbs in WORKERS.values() for verb in verbs
                      if not any(one["verb"] == verb for one in found))]


def two_resume(run: Path, scratch: Path, step: int) -> list[str]:
    """Start two processes that go on with the run; what is wrong with what they do."""
    both = [start("--resume", str(run), log=scratch / f"resume{number}.log") for number in (0, 1)]

    def one_is_left() -> bool:
        return (any(process.poll() is not None for process in both)
                and logged(run)[-1]["step"] > step)

    wrong = [] if wait_for(one_is_left, subprocess.Popen(["sleep", str(START_SECONDS)]),
                           START_SECONDS) else ["nobody went on with the run"]
    for process in both:
        process.send_signal(signal.SIGTERM)
    codes = sorted(process.wait(END_SECONDS) for process in both)
    texts = [(scratch / f"resume{number}.log").read_text() for number in (0, 1)]
    if codes != [2, 75] or not any("another process works in" in text for text in texts):
        wrong.append(f"two that resume: exit codes {codes}, {[text[-1000:] for text in texts]}")
    steps = [line["step"] for line in logged(run) if line["kind"] == "train"]
    if steps != sorted(set(steps)):
        wrong.append("the log of the resumed run has lines twice")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "together.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        config, run = make_run(scratch), scratch / "run"
        training = start(str(config), "--run", str(run), log=scratch / "train.log")
        begun = wait_for(lambda: any((run / "checkpoints").glob("step_*[0-9]")), training,
                         START_SECONDS)
        assert begun, (scratch / "train.log").read_text()
        began = time.monotonic()
        found = beside(run, scratch, options.seconds, training)
        lasted = time.monotonic() - began
        wrong = [] if training.poll() is None else ["the training ended before it was asked to"]
        training.send_signal(signal.SIGTERM)
        if (code := training.wait(END_SECONDS)) != 75:
            wrong.append(f"the training ended with code {code}: "
                         f"{(scratch / 'train.log').read_text()[-3000:]}")
        wrong += check(found, run)
        last = logged(run)[-1]["step"]
        listed = answer("list", run)
        if listed["checkpoints"][-1]["step"] != last or listed["leftovers"]:
            wrong.append(f"after step {last} there is {listed}")
        wrong += [one["problem"] for one in answer("verify", run)["checkpoints"] if one["problem"]]
        wrong += two_resume(run, scratch, last)
        answered = [one for one in found if "answer" in one]
        payload = {
            "seconds": round(lasted, 1), "steps": last,
            "answered": dict(Counter(one["verb"] for one in answered)),
            "evaluated_steps": len({one["answer"]["step"] for one in answered
                                    if one["verb"] == "evaluate"}),
            "removed_by_prune": sum(len(one["answer"]["removed"]) for one in answered
                                    if one["verb"] == "prune"),
            "made_full_by_compact": sum(one["answer"]["base_before"] is not None
                                        for one in answered if one["verb"] == "compact"),
            "longest_seconds": {verb: round(max(one["seconds"] for one in answered
                                                if one["verb"] == verb), 2)
                                for verb in sorted({one["verb"] for one in answered})},
            "violations": wrong,
        }
    print(json.dumps(payload, indent=1))
    record(options.out, payload)
    if wrong:
        raise SystemExit(1)


def answer(verb: str, run: Path) -> Any:
    """What one command says, when nothing else runs."""
    done = subprocess.run([sys.executable, "-m", "rec_jax.cli.app",
                           *arguments_of(verb, run, run / "out")], capture_output=True, text=True,
                          check=False)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
