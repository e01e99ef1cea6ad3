"""Wall time to the same return: this project's agents and Stable-Baselines3's DQN in `choc_kale`.

    python benchmarks/peers/setup.py stable_baselines3
    python benchmarks/decisions_peer.py --out benchmarks/results/decisions_peer.json

1,000 items, 60 turns, discount .95. Every contender is a process of its own that learns alone, and
they take turns seed by seed, so that none has the machine's better hour. Seconds begin when the
process is started (imports and compiling count) and leave out evaluations; `start` says when the
first step was done. A return is reached at the first evaluation that has it, of the best items on
256 users; a row of the table is a share of the optimum, a number in it the median over the seeds
that reach it.

`dqn` and `reinforce` are the shipped configs: they know what a user took. `sb3_state` is shown the
user's exposure and the time that is left, all that counts, which neither of ours knows;
`sb3_history` the last items by their ids, and the time. SETTINGS of Stable-Baselines3 are a first
guess that nobody tuned, so that its figures are a lower bound of what it can do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from decisions import AGENTS, learn, lines_of, optimum

from rec_jax.bench.record import record
from rec_jax.simulate.environments import choc_kale

HERE = Path(__file__).resolve().parent
DISCOUNT, USERS = 0.95, 256
SHARES = (0.8, 0.9, 0.94, 0.96, 0.98)
"""Of the optimum; showing kale alone has .94."""
SETTINGS: dict[str, Any] = {
    "envs": 16, "reward_scale": 0.01, "layers": [64, 64], "learning_rate": 1e-3,
    "buffer_size": 100_000, "learning_starts": 2_000, "batch_size": 256, "gamma": DISCOUNT,
    "train_freq": 1, "gradient_steps": 1, "target_update_interval": 500,
    "exploration_fraction": 0.4, "exploration_final_eps": 0.05}
TURNS = 240_000


def ours(agent: str, seed: int) -> None:
    """Learn, and write a JSON object; for a process of its own."""
    began = float(os.environ["BEGAN"])
    found = learn(AGENTS[agent][0], lines_of(agent, DISCOUNT, seed), began)
    print(json.dumps({"start_seconds": found["start_seconds"], "curve": [
        [60 * episodes, earned, seconds] for episodes, earned, _, seconds in found["curve"]]}))


def peer(python: Path, sees: str, seed: int, turns: int, threads: int) -> list[str]:
    """The command of Stable-Baselines3."""
    environment = choc_kale.Config()
    chocolate = Path(tempfile.gettempdir()) / "choc_kale_chocolate.npy"
    np.save(chocolate, np.asarray(environment.open().chocolate, np.float64))
    return [str(python), str(HERE / "peers" / "play_stable_baselines3.py"), json.dumps({
        "environment": {**asdict(environment), "chocolate": str(chocolate)}, "sees": sees,
        "settings": SETTINGS, "seed": seed, "turns": turns, "every": turns // 15, "users": USERS,
        "threads": threads, "began": time.time()})]


def run(command: list[str]) -> dict[str, Any]:
    """What a contender wrote last."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "BEGAN": repr(time.time())})
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def seconds_to(curve: list[list[float]], wanted: float) -> float | None:
    """Of the first point that has so much."""
    return next((seconds for _, earned, seconds in curve if earned >= wanted), None)


def compare(python: Path, names: list[str], first: int, seeds: int, turns: int, threads: int
            ) -> dict[str, Any]:
    """Curves by contender and seed, and the time to shares of the optimum."""
    best = optimum(choc_kale.Config(), DISCOUNT)
    found: dict[str, Any] = {"optimum": best, "discount": DISCOUNT, "settings_of_sb3": SETTINGS,
                             "turns_of_sb3": turns, "users": USERS, "runs": []}
    for seed in range(first, first + seeds):
        for name in names:
            command = ([sys.executable, __file__, "--ours", name, "--first", str(seed)]
                       if name in AGENTS else
                       peer(python, name.removeprefix("sb3_"), seed, turns, threads))
            one = run(command)
            found["runs"].append({"contender": name, "seed": seed, **one,
                                  "best": max(point[1] for point in one["curve"]),
                                  "last": one["curve"][-1][1], "seconds": one["curve"][-1][2]})
            print(name, seed, *(round(found["runs"][-1][key], 1) for key in (
                "start_seconds", "best", "last", "seconds")), file=sys.stderr, flush=True)
    found["seconds_to_share"] = {name: {str(share): summary([
        seconds_to(one["curve"], share * best) for one in found["runs"]
        if one["contender"] == name]) for share in SHARES} for name in names}
    return found


def summary(times: list[float | None]) -> dict[str, Any]:
    """How many seeds got there, and the median of their seconds."""
    there = [each for each in times if each is not None]
    return {"seeds": len(there), "seconds": median(there) if there else None}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ours", choices=list(AGENTS), help="learn in this process, and no more")
    parser.add_argument("--contenders", nargs="+",
                        default=["dqn", "sb3_state", "reinforce", "sb3_history"])
    parser.add_argument("--python", type=Path, help="the peer's interpreter",
                        default=HERE / "peers" / "envs" / "stable_baselines3" / "bin" / "python")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=TURNS, help="of Stable-Baselines3")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if given.ours:
        ours(given.ours, given.first)
        return
    if given.out is None:
        parser.error("expected --out")
    record(given.out, compare(given.python, given.contenders, given.first, given.seeds,
                              given.turns, given.threads))


if __name__ == "__main__":
    main()
