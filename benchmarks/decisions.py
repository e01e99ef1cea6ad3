"""What learning to decide costs and reaches: simulated users, policy gradients and Q-learning.

    python benchmarks/decisions.py choc_kale  --out benchmarks/results/decisions_choc_kale.json
    python benchmarks/decisions.py scale      --out benchmarks/results/decisions_scale.json
    python benchmarks/decisions.py throughput --out benchmarks/results/decisions_throughput.json

choc_kale: REINFORCE, DQN, SQN and SA2C, looking at the next reward alone and far ahead, over
seeds, held against the optimum of the environment by dynamic programming; learning curves beside it
as PNG, with those of an earlier record (`--beside`) that has other agents.
scale: the step of a policy gradient and of Q-learning beside that of the next item, over large
catalogues; turns are taken round by round, so that their ratios hold.
throughput: turns of users a second, beside the same environments as a loop in plain Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.plain_users import PlainChocKale, PlainInterest

from rec_jax import config as configs
from rec_jax import shipped, streams
from rec_jax.bench.record import record
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.model.encoder import build_encoder
from rec_jax.model.encoders import transformer
from rec_jax.objectives import next_item, policy_gradient, q_learning
from rec_jax.simulate.acting import any_items
from rec_jax.simulate.agent import build_agent, evaluated, make_player
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.environments import choc_kale, interest
from rec_jax.simulate.rollout import play
from rec_jax.tables import ITEMS, RowOptimizerConfig, TableConfig, init_table, row_optimizer
from rec_jax.train.state import init_state
from rec_jax.train.step import make_train_step, place_batch

DISCOUNTS = (0.0, 0.95)
_TWO_HEADS = ['objective.kind="supervised_q"', 'acting.policy="sample"']
AGENTS: dict[str, tuple[str, list[str]]] = {
    "reinforce": ("choc_kale_reinforce", []),
    "dqn": ("choc_kale_dqn", []),
    # The same store, targets and average; what acts is the softmax of what was taken.
    "sqn": ("choc_kale_dqn", [*_TWO_HEADS, 'objective.form="sqn"']),
    "advantage": ("choc_kale_dqn", [*_TWO_HEADS, 'objective.form="advantage"']),
}
"""Of each a shipped config, and what differs from it."""
# Looking at the next reward alone, rewards and their differences are smaller: what keeps a policy
# from settling early is in their units, and values need no steps.
_VALUES = ["objective.steps=1", "objective.reward_scale=0.1"]
NEXT_REWARD = {"reinforce": ["objective.entropy=0.1"], "dqn": _VALUES, "sqn": _VALUES,
               "advantage": _VALUES}
KEYS = 8
"""Evaluations whose mean is what a run reached: of so many times `train.episodes` users."""


def optimum(config: choc_kale.Config, discount: float, cells: int = 801) -> float:
    """Mean return of the policy that is best for discounted rewards and knows the exposure: by
    dynamic programming over a grid of it, and 21 shares of chocolate."""
    chocolate = np.asarray(config.open().chocolate)
    share = np.quantile(chocolate, np.linspace(0, 1, 21))
    widest = 1 / (1 - config.memory)
    exposure = np.linspace(-widest - 0.5, widest + 0.5, cells)
    satisfaction = 1 / (1 + np.exp(-config.sensitivity * exposure))
    mean = share * config.choc_mean + (1 - share) * config.kale_mean
    deviation = share * config.choc_deviation + (1 - share) * config.kale_deviation
    reward = np.exp(satisfaction[:, None] * mean + deviation**2 / 2)
    after = config.memory * exposure[:, None] + 1 - 2 * share
    noise, weight = np.polynomial.hermite_e.hermegauss(5)
    weight = weight / weight.sum()

    def expected(values: np.ndarray) -> np.ndarray:
        return np.asarray(sum(w * np.interp(after + config.innovation * z, exposure, values)
                              for z, w in zip(noise, weight, strict=True)))

    value, earned = np.zeros(cells), np.zeros(cells)
    for _ in range(config.horizon):
        best = (reward + discount * expected(value)).argmax(axis=1)[:, None]
        value, earned = (np.take_along_axis(reward + factor * expected(of), best, axis=1)[:, 0]
                         for factor, of in ((discount, value), (1.0, earned)))
    begin = np.linspace(-0.5, 0.5, 4001) * widest
    return float(np.interp(begin, exposure, earned).mean())


def lines_of(agent: str, discount: float, seed: int) -> list[str]:
    """What a run of an agent has in its config beside the shipped one."""
    return [*AGENTS[agent][1], f"objective.discount={discount}", f"seed={seed}",
            *(NEXT_REWARD[agent] if discount == 0 else [])]


def learn_choc_kale(agents: list[str], seeds: int, steps: int | None) -> dict[str, Any]:
    """Returns by agent, discount and seed, with the curve of each."""
    found: dict[str, Any] = {"optimum": {}, "runs": []}
    for discount in DISCOUNTS:
        found["optimum"][str(discount)] = optimum(choc_kale.Config(), discount)
    for seed in range(seeds):
        for name in agents:
            for discount in DISCOUNTS:
                lines = lines_of(name, discount, seed)
                lines += [] if steps is None else [f"train.steps={steps}"]
                found["runs"].append({"agent": name, "discount": discount, "seed": seed,
                                      **learn(AGENTS[name][0], lines)})
                print(name, discount, seed, round(found["runs"][-1]["best_items"], 1),
                      file=sys.stderr, flush=True)
    return found


def learn(name: str, lines: list[str], began: float | None = None) -> dict[str, Any]:
    """One run of a shipped config: its curve, and what its last weights earn.

    A point of the curve is episodes, return of the best items, return of draws, and the seconds
    since `began` (time.time(); by default now), without those of evaluations.
    """
    began = time.time() if began is None else began
    config = configs.load(AgentConfig, shipped.locate(name), lines)
    agent = build_agent(config)
    state = agent.first()
    players = {policy: make_player(agent, policy)  # type: ignore[arg-type]
               for policy in ("greedy", "sample")}
    # Of an agent that plays its best items draws say nothing.
    shown = ["greedy", *(["sample"] if config.acting.policy == "sample" else [])]

    def earned(policy: str, stream: int) -> float:
        key = streams.of_run(stream + config.seed, streams.PLAY)
        return float(np.mean(np.asarray(players[policy](evaluated(state.training), key))))

    curve, seconds, start, apart = [], 0.0, 0.0, 0.0
    for done in range(1, config.train.steps + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(agent.step(state))
        seconds += (time.perf_counter() - begin) if done > 1 else 0.0  # the first one compiles
        start = time.time() - began if done == 1 else start
        if done % config.train.evaluate_every == 0 or done == config.train.steps:
            now = time.time()
            points = {policy: earned(policy, 1_000) for policy in shown}
            curve.append([done * config.acting.episodes, points["greedy"], points.get("sample"),
                          now - began - apart])
            apart += time.time() - now
    reached = {policy: float(np.mean([earned(policy, 2_000 + 1_000 * key) for key in range(KEYS)]))
               for policy in shown}
    return {"best_items": reached["greedy"], "draws": reached.get("sample"), "curve": curve,
            "steps": config.train.steps, "episodes": curve[-1][0], "seconds": seconds,
            "start_seconds": start, "evaluated_on": KEYS * config.train.episodes}


def draw_curves(found: dict[str, Any], beside: list[dict[str, Any]], path: Path) -> None:
    """A picture of all curves by discount, with the optimum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [*found["runs"], *(run for each in beside for run in each["runs"])]
    names = [name for name in AGENTS if any(run["agent"] == name for run in runs)]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, discount in zip(figure.subplots(1, len(DISCOUNTS)), DISCOUNTS, strict=True):
        for place, name in enumerate(names):
            own = [run["curve"] for run in runs
                   if (run["agent"], run["discount"]) == (name, discount)]
            for number, curve in enumerate(own):
                axis.plot([point[0] for point in curve], [point[1] for point in curve], lw=1,
                          color=f"C{place}", label=None if number else name)
        axis.axhline(found["optimum"][str(discount)], ls=":", color="k", label="optimum")
        axis.set(xlabel="episodes", ylabel="return of the best items",
                 title=f"discount {discount:g}", ylim=(0, None))
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def make_step(objective: Any, mode: str, items: int, rows: int, length: int, dim: int
              ) -> Callable[[], float]:
    """A function that does one step over `items` items and returns its seconds."""
    mesh = make_mesh(MeshConfig())
    config = TableConfig(dim=dim, optimizer=RowOptimizerConfig(kind="adagrad"))
    encoder, params = build_encoder(
        transformer.Config(layers=2, heads=2, dropout=0.1), dim=dim, length=length, causal=True,
        precision="f32", seed=0, heads=objective.needs.heads)
    optimizer = optax.adam(1e-3)
    table = init_table(config, items, 0, mesh, optimizer=row_optimizer(config.optimizer))
    held = [init_state(params, {ITEMS: table}, optimizer, modes={ITEMS: mode}, mesh=mesh, seed=0)]
    del table
    step = make_train_step(encoder, objective, optimizer, tables={ITEMS: config},
                           modes={ITEMS: mode}, mesh=mesh,  # type: ignore[dict-item]
                           rate=optax.constant_schedule(0.05))
    random = np.random.default_rng(items)
    shape = (1, rows, length)
    batch = place_batch({
        "items": random.integers(0, items, shape, np.int32),
        "targets": random.integers(0, items, shape, np.int32),
        "segments": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy(),
        "values/reward": random.random(shape, np.float32),
        "values/propensity": np.full(shape, 1 / items, np.float32)}, mesh)

    def once() -> float:
        begin = time.perf_counter()
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready((held[0], metrics))
        return time.perf_counter() - begin

    once()
    return once


def scale(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Median seconds of a step, and its ratio to that of the next item (streamed)."""
    objectives = {
        "next_item": (next_item.Config(), "streamed"),
        "policy_gradient": (policy_gradient.Config(
            behaviour="propensity", slate=4, discount=0.9, baseline="mean"), "streamed"),
        "policy_gradient with entropy": (policy_gradient.Config(entropy=0.01), "streamed"),
        "q_learning": (q_learning.Config(), "sparse"),
        "q_learning conservative": (q_learning.Config(conservative=1.0), "streamed"),
    }
    found: dict[str, Any] = {"rows": 8, "length": 50, "dim": 32, "sizes": {}}
    for items in sizes:
        seconds: dict[str, list[float]] = {name: [] for name in objectives}
        for name, (objective, mode) in objectives.items():
            # One table of the largest size at a time is what a laptop holds.
            once, plain = (make_step(each, how, items, 8, 50, 32) for each, how in (
                (objective, mode), objectives["next_item"]))
            own, base = zip(*((once(), plain()) for _ in range(rounds)), strict=True)
            seconds[name] = [median(own), median(base)]
            del once, plain
        found["sizes"][str(items)] = {name: {
            "seconds": own, "next_item_seconds": base, "ratio": own / base}
            for name, (own, base) in seconds.items()}
    return found


def throughput(users: int, seconds: float) -> dict[str, Any]:
    """Turns of users a second, any items shown."""
    found: dict[str, Any] = {"users": users}
    for name, config in (("choc_kale", choc_kale.Config()), ("interest", interest.Config())):
        environment: Any = config.open()

        def choose(items: Any, place: Any, seed: Any, of: Any = environment) -> Any:
            return any_items(items.shape[0], of.slate, of.num_items, seed)

        def run(key: Any, of: Any = environment, choose: Any = choose) -> Any:
            played = play(of, choose, key, users)
            # Rewards are asked for, too: XLA leaves out what nobody reads.
            return jnp.sum(played.segments), jnp.sum(played.returns)

        run = jax.jit(run)
        jax.block_until_ready(run(jax.random.key(0)))
        turns, begin, number = 0, time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            number += 1
            done, _ = jax.block_until_ready(run(jax.random.key(number)))
            turns += int(done)
        found[name] = turns / (time.perf_counter() - begin)
    kale, moved = choc_kale.Config(), interest.Config()
    topics = moved.open()
    for name, plain in (
            ("choc_kale", PlainChocKale(kale, np.asarray(kale.open().chocolate), 0)),
            ("interest", PlainInterest(moved, np.asarray(topics.topic),
                                       np.asarray(topics.quality), 0))):
        found[f"{name}_python_loop"] = loop(plain, seconds)
        found[f"{name}_times_the_loop"] = found[name] / found[f"{name}_python_loop"]
    return found


def loop(user: PlainChocKale | PlainInterest, seconds: float) -> float:
    """Turns a second of one user after the other, any items shown."""
    items = user.config.items
    slate = getattr(user.config, "slate", 1)
    turns, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        user.reset()
        done = False
        while not done:
            _, done = user.step(user.random.integers(items, size=slate).tolist())
            turns += 1
    return turns / (time.perf_counter() - begin)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["choc_kale", "scale", "throughput"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="JSON",
                        help="records of other agents, whose curves are drawn too")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a choc_kale run; its config's by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    if given.what == "choc_kale":
        found = learn_choc_kale(given.agents, given.seeds, given.steps)
        draw_curves(found, [json.loads(path.read_text()) for path in given.beside],
                    given.out.with_suffix(".png"))
    elif given.what == "scale":
        found = scale(given.sizes, given.rounds)
    else:
        found = throughput(given.users, given.seconds)
    record(given.out, found)


if __name__ == "__main__":
    main()
