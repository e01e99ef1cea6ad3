"""Kill, damage and starve a small training at random, again and again; it must lose nothing.

    python benchmarks/faults.py [--kills 100] [--seed 0] [--out FILE]

A training that checkpoints every few steps is run over and over by a driver which kills it with
SIGKILL, SIGTERM, or both at a random moment: anywhere from its start on, or aimed into a save.
Between kills it damages the newest checkpoint (a file cut, a bit flipped, the seal missing, a
file deleted), and runs into a full disk on a small tmpfs where it may mount one. After every
fault the driver checks that

  - the training goes on from the newest checkpoint that is whole, and names a damaged one;
  - a SIGTERM ends with code 75 and a checkpoint of the step that was reached;
  - a finished run's arrays equal, bit for bit, those of one that was left alone.

Each trial is a real process that dies. They are forked from a driver that has imported the
library but started no device, which saves the imports. Results: benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

from rec_jax import config
from rec_jax.bench.record import record
from rec_jax.checkpoint import Checkpoints
from rec_jax.checkpoint.layout import find_steps
from rec_jax.data.prepare import prepare
from rec_jax.data.prepare_config import Columns, PrepareConfig
from rec_jax.errors import Preempted, TrainingError
from rec_jax.progress import Silent
from rec_jax.run import Run, RunConfig
from rec_jax.train.loop import run_training

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY, DIM = 80, 4, 96
DAMAGE = ("cut", "bit", "seal", "deleted")


class Told(Silent):
    """Tells the driver, through a pipe, where the training starts."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def begin(self, total: int, done: int = 0) -> None:
        os.write(self._pipe, f"{done}\n".encode())


@dataclass
class Child:
    """A forked training. log: its stderr; begun: step it went on from, once it has said so."""

    pid: int
    pipe: int
    log: Path
    begun: int | None = None
    code: int | None = None

    def poll(self) -> bool:
        """Whether it is still running."""
        if self.begun is None:
            try:
                said = os.read(self.pipe, 100)
                self.begun = int(said) if said else None
            except BlockingIOError:
                pass
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self) -> int:
        while self.poll():
            time.sleep(0.002)
        self.poll()
        os.close(self.pipe)
        assert self.code is not None
        return self.code


@dataclass
class Log:
    """What happened; every violation is one line."""

    trials: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def check(self, good: bool, what: str) -> None:
        if not good:
            self.violations.append(f"trial {len(self.trials)}: {what}")
            print("VIOLATION", self.violations[-1], flush=True)


def fork(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a process of its own with its stderr in `log`; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
        os.dup2(handle, 1)
        code = work()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(code)


def start(settings: RunConfig, folder: Path, log: Path) -> Child:
    """Begin or go on with the training in `folder`."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def work() -> int:
        try:
            run_training(Run(folder), settings, Told(writing))
            return 0
        except Preempted:
            return 75
        except TrainingError as error:
            os.write(2, f"TrainingError: {error}\n".encode())
            return 1

    pid = fork(work, log)
    os.close(writing)
    return Child(pid, reading, log)


def bits(folder: Path, scratch: Path) -> dict[str, str]:
    """Hash of every array of a finished run, read by a process of its own."""
    out = scratch / "bits.json"

    def work() -> int:
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            opened = checkpoints.open(max(checkpoints.steps()))
            out.write_text(json.dumps({"step": opened.info.step, **{
                name + path: hashlib.sha256(
                    source.read(0, (source.shape or (1,))[0]).tobytes()).hexdigest()
                for name, sources in opened.items.items() for path, source in sources.items()}}))
        return 0

    _, status = os.waitpid(fork(work, scratch / "bits.log"), 0)
    assert status == 0, (scratch / "bits.log").read_text()
    return dict(json.loads(out.read_text()))


def make_settings(scratch: Path) -> RunConfig:
    """A small dataset and a config whose table is stored in blocks, not packed."""
    source, out = scratch / "interactions.csv", scratch / "dataset"
    draw = random.Random(7)
    lines = ["user_id,item_id,time"]
    for user in range(40):
        place = draw.randrange(50)
        for when in range(draw.randint(3, 20)):
            place = (place + draw.choice([1, 1, 1, 2, 5])) % 50
            lines.append(f"u{user},{place:04d},{1_000_000 + when}")
    source.write_text("\n".join(lines) + "\n")

    def work() -> int:
        prepare(PrepareConfig(source=str(source), out=str(out), columns=Columns(time="time")))
        return 0

    _, status = os.waitpid(fork(work, scratch / "prepare.log"), 0)
    assert status == 0, (scratch / "prepare.log").read_text()
    return config.build(RunConfig, {
        "seed": 3, "data": {"path": str(out), "length": 12}, "table": {"dim": DIM},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2, "hidden": 1, "dropout": 0.1,
                    "backend": "xla"},
        "objective": {"kind": "next_item", "backend": "xla"},  # which kernels matters nothing here
        "optimizer": {"rate": 1e-3, "warmup": 4},
        "train": {"rows": 4, "steps": STEPS, "evaluate_every": 10, "checkpoint_every": EVERY,
                  "patience": "none", "log_every": 10},
    })


def hurt(checkpoint: Path, how: str, draw: random.Random) -> str:
    """Damage a checkpoint; the name of the file."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file()
                   and path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt"))
    if how == "seal":
        path = checkpoint / "seal.json"
    elif how == "deleted":
        path = draw.choice(files)
    else:  # of data: a change within the white space of an index would mean nothing
        path = draw.choice([path for path in files
                            if path.name == "packed.bin" or path.parent.parent.name == "c"])
    if how in ("seal", "deleted"):
        path.unlink()
    elif how == "cut":
        os.truncate(path, draw.randrange(path.stat().st_size))
    else:
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    return path.relative_to(checkpoint).as_posix()


def strike(child: Child, folder: Path, how: str, aim: str, span: float,
           draw: random.Random) -> bool:
    """Wait for the moment, then kill; whether a save was under way. False if it ended before."""
    def saving() -> bool:
        return bool(list((folder / "checkpoints").glob("*-tmp")))

    moment = time.monotonic() + draw.uniform(0, span)
    while child.poll() and time.monotonic() < moment:
        if aim != "anywhere" and child.begun is None:
            moment = time.monotonic() + draw.uniform(0, span)  # counted from the first step
        time.sleep(0.001)
    if aim == "save":
        while child.poll() and not saving():
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.03))
    if not child.poll():
        return False
    hit = saving()
    if how in ("SIGTERM", "both"):
        os.kill(child.pid, signal.SIGTERM)
        time.sleep(draw.uniform(0, 0.05) if how == "both" else 0)
    if how in ("SIGKILL", "both") and child.poll():
        os.kill(child.pid, signal.SIGKILL)
    return hit


def kills(settings: RunConfig, scratch: Path, count: int, draw: random.Random,
          expected: dict[str, str], span: float, log: Log) -> None:
    """`count` processes killed, with damage in between; finished runs are compared and redone."""
    folder, done, runs = scratch / "run", 0, 0
    damaged: str | None = None
    while True:
        before = list(find_steps(folder / "checkpoints"))
        wanted = before[-2] if damaged else (before[-1] if before else 0)
        child = start(settings, folder, scratch / "train.log")
        how = draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "both"])
        aim = draw.choice(["anywhere", "step", "save", "save"])
        last = done == count
        in_save = False if last else strike(child, folder, how, aim, span, draw)
        code = child.wait()
        text = child.log.read_text(errors="replace")
        after = list(find_steps(folder / "checkpoints"))
        trial = {"run": runs, "kill": None if code == 0 else how, "aim": aim, "in_save": in_save,
                 "code": code, "before": before, "damage": damaged, "went_on_from": child.begun,
                 "after": after}
        log.trials.append(trial)
        if child.begun is not None:
            log.check(child.begun == wanted, f"went on from {child.begun}, expected {wanted}")
            if damaged:
                log.check("DAMAGED CHECKPOINT" in text and f"step_{before[-1]}" in text,
                          "the damaged checkpoint was not named")
                damaged = None
        log.check(code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), f"exit code {code}: {text}")
        if code == 75:
            log.check("finishing the step" in text, "SIGTERM was not announced")
            log.check(bool(after) and after[-1] >= wanted, "SIGTERM lost steps")
        kept = wanted in after or not wanted or after[-1] > wanted
        log.check(kept, f"step {wanted} was lost, there is {after}")
        if code == 0:
            runs += 1
            log.check(bits(folder, scratch) == expected, "the finished run has other bits")
            shutil.rmtree(folder)
            if last:
                return
            continue
        done += 1
        if not damaged and len(after) >= 2 and draw.random() < 0.3:
            damaged = draw.choice(DAMAGE)
            newest = find_steps(folder / "checkpoints")[after[-1]]
            trial["then_damaged"] = [damaged, hurt(newest, damaged, draw)]
        if done % 10 == 0:
            print(f"{done} kills, {runs} runs finished, {len(log.violations)} violations",
                  flush=True)


def disk_full(settings: RunConfig, scratch: Path, expected: dict[str, str],
              log: Log) -> dict[str, Any]:
    """Run into the end of a small tmpfs, make room, go on."""
    disk = scratch / "disk"
    disk.mkdir()
    # A checkpoint and half of another one, of which the first must stay until the second stands.
    whole = next((scratch / "alone" / "checkpoints").glob("step_*"))
    size = int(1.5 * sum(file.stat().st_size for file in whole.rglob("*") if file.is_file()))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return {"ran": False, "why": "no right to mount a tmpfs"}
    try:
        child = start(settings, disk / "run", scratch / "full.log")
        code, text = child.wait(), child.log.read_text(errors="replace")
        steps = list(find_steps(disk / "run" / "checkpoints"))
        lines = [line for line in text.splitlines() if "TrainingError" in line]
        log.check(code == 1 and len(lines) == 1 and "No space left" in lines[0],
                  f"full disk: exit code {code}, {text[-2000:]}")
        log.check(bool(steps) and not list((disk / "run" / "checkpoints").glob("*tmp*")),
                  f"full disk: left {os.listdir(disk / 'run' / 'checkpoints')}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        child = start(settings, disk / "run", scratch / "room.log")
        code = child.wait()
        log.check(code == 0 and child.begun == steps[-1], f"after a full disk: exit code {code}, "
                  f"went on from {child.begun}, expected {steps}")
        log.check(bits(disk / "run", scratch) == expected, "after a full disk: other bits")
        said = lines[0].split("TrainingError: ")[-1].replace(str(disk), "DISK") if lines else text
        return {"ran": True, "stood_at": steps, "said": said}
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "faults.json"))
    options = parser.parse_args()
    draw, log, began = random.Random(options.seed), Log(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        settings = make_settings(scratch)
        for attempt in ("warm", "alone"):  # the first fills the cache of compiled programs
            child = start(settings, scratch / attempt, scratch / "alone.log")
            while child.poll() and child.begun is None:
                time.sleep(0.002)
            ready = time.monotonic()
            assert child.wait() == 0, child.log.read_text()
            span = time.monotonic() - ready
        expected = bits(scratch / "alone", scratch)
        assert bits(scratch / "warm", scratch) == expected
        full = disk_full(settings, scratch, expected, log)
        kills(settings, scratch, options.kills, draw, expected, 0.5 * span, log)
    hits = [trial for trial in log.trials if trial["kill"]]
    payload = {
        "kills": len(hits), "by_signal": dict(Counter(trial["kill"] for trial in hits)),
        "in_a_save": sum(trial["in_save"] for trial in hits),
        "exit_codes": dict(Counter(str(trial["code"]) for trial in log.trials)),
        "damaged": dict(Counter(trial["then_damaged"][0] for trial in hits
                                if "then_damaged" in trial)),
        "finished_runs_compared": sum(trial["code"] == 0 for trial in log.trials),
        "disk_full": full, "violations": log.violations, "seed": options.seed,
        "arrays_compared": len(expected) - 1, "steps": STEPS, "checkpoint_every": EVERY,
        "seconds": round(time.monotonic() - began, 1), "trials": log.trials,
    }
    record(options.out, payload)
    print(json.dumps({name: value for name, value in payload.items() if name != "trials"}))
    raise SystemExit(1 if log.violations else 0)


if __name__ == "__main__":
    main()
