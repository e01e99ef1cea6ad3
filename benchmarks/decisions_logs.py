"""Learning to decide from a log: what is shown earns more, and what is lost for it.

    python benchmarks/decisions_logs.py synthetic --out benchmarks/results/decisions_logs.json
    python benchmarks/decisions_logs.py retail --raw online_retail.parquet --work retail \\
        --out benchmarks/results/decisions_retail.json

synthetic: a policy that likes chocolate shows items to users of `choc_kale`, and writes down what
it showed, with which probability, and what came of it. The runs see that log alone; then each shows
its best items to users of the same environment, whose optimum is known, with the same chance. Where
a run has a head of values, `by_values` is what showing the items of the largest values would have
earned; `distance_from_log` says how far a run's softmax is from the policy that wrote.
retail: Online Retail, an invoice a user, in an order by chance; the reward of an item is its
quantity times its price. There are no propensities, so nothing is said of what a policy would have
earned: beside NDCG@10 stand the reward of the test items that the lists have, and what the listed
items earned on average in the training part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from decisions import optimum

import rec_jax
from rec_jax import config as configs
from rec_jax.bench.record import record
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare
from rec_jax.inference.served import Served, load_served
from rec_jax.kernels import top_k
from rec_jax.model.encoder import encode
from rec_jax.model.encoders import Inputs
from rec_jax.model.heads import apply_head
from rec_jax.objectives import supervised_q
from rec_jax.run import Run, RunConfig
from rec_jax.simulate.environments import choc_kale
from rec_jax.simulate.rollout import Episodes, play

ENVIRONMENT = choc_kale.Config(items=100, horizon=30)
DISCOUNT, LIKING = 0.95, 2.0
"""Of rewards; and of the logging policy, whose probabilities are in proportion to exp(LIKING c)."""

SYNTHETIC: dict[str, dict[str, Any]] = {
    "supervised": {"kind": "next_item"},
    "policy_gradient": {"kind": "policy_gradient", "behaviour": "propensity", "discount": DISCOUNT,
                        "baseline": "place", "cap": 10.0, "entropy": 1.0},
    **{form: {"kind": "supervised_q", "form": form, "discount": DISCOUNT, "reward_scale": 0.02,
              "steps": 5} for form in ("sqn", "sac", "advantage")},
    # With rewards less their mean a value is above 0 where an action is better than what is usual.
    "sac_centred": {"kind": "supervised_q", "form": "sac", "discount": DISCOUNT,
                    "reward_scale": 0.02, "steps": 5, "reward": "centred"},
    "q_learning_conservative": {"kind": "q_learning", "discount": DISCOUNT, "reward_scale": 0.02,
                                "steps": 5, "conservative": 0.1},
}
RETAIL: dict[str, dict[str, Any]] = {
    "supervised": {"kind": "next_item"},
    "policy_gradient": {"kind": "policy_gradient", "reward": "weight"},
    "sqn": {"kind": "supervised_q", "form": "sqn", "value_weight": 0.05},
    "sac": {"kind": "supervised_q", "form": "sac", "value_weight": 0.05, "reward": "weight"},
    "advantage": {"kind": "supervised_q", "form": "advantage", "value_weight": 0.05},
}
"""Values share the encoder: with a weight of 1 they cost 30 % of NDCG@10, of .05 less than 1 %."""


def logged(seed: int, users: int) -> tuple[Episodes, np.ndarray]:
    """What users of the environment did under the logging policy, and its probabilities `[V]`."""
    environment = ENVIRONMENT.open()
    logits = LIKING * environment.chocolate

    def choose(items: Any, place: Any, seed: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), place)
        return jax.random.categorical(key, logits, shape=(items.shape[0], 1))

    played = jax.jit(lambda key: play(environment, choose, key, users))(jax.random.key(seed))
    return jax.tree.map(np.asarray, played), np.asarray(jax.nn.softmax(logits))


def write_log(seed: int, users: int, folder: Path) -> Dataset:
    """The log as a dataset with values/reward and values/propensity."""
    played, chance = logged(seed, users)
    items = np.concatenate([played.items[:, :1], played.targets], axis=1)
    # Nobody was rewarded for the item that a user came by, and nobody chose it.
    rewards, centred = (np.concatenate([np.zeros((users, 1)), each], axis=1)
                        for each in (played.rewards, played.rewards - played.rewards.mean()))
    return write_dataset(folder, items.ravel().astype(str), np.repeat(
        np.arange(users), items.shape[1]).astype(str), {
            "reward": rewards.ravel(), "centred": centred.ravel(),
            "propensity": chance[items].ravel()})


def write_dataset(folder: Path, items: Any, users: Any, values: dict[str, np.ndarray]) -> Dataset:
    """A dataset of interactions in their order, users together, with numbers for each of them."""
    source = folder.with_suffix(".csv")
    pl.DataFrame({"user_id": users, "item_id": items, "time": np.arange(len(users))}).write_csv(
        source)
    prepare(PrepareConfig(source=str(source), out=str(folder), columns=Columns(time="time")))
    dataset = Dataset.open(folder)
    assert dataset.item_ids().gather(np.asarray(dataset.items)).to_list() == list(items)
    (folder / "values").mkdir()
    for name, each in values.items():
        np.save(folder / "values" / f"{name}.npy", each.astype(np.float32))
    return dataset


def trained(dataset: Dataset, objective: dict[str, Any], settings: dict[str, Any], folder: Path
            ) -> Served:
    """The last weights of a run: NDCG says nothing of what a policy earns."""
    config = configs.build(RunConfig, {**settings, "objective": objective, "data": {
        **settings["data"], "path": str(dataset.folder)}})
    run = rec_jax.train(config, run=folder)
    return load_served(Run(folder), step=run["steps"])


def best_items(served: Served, items: Any, place: Any, k: int, head: str | None = None) -> Any:
    """int32 `[B, k]` of histories `[B, L]` that are known up to `place [B]`, by item of the
    dataset; head: by whose queries, of a run that has two."""
    places = jnp.broadcast_to(jnp.arange(items.shape[1]), items.shape)
    inputs = Inputs((places <= place[:, None]).astype(jnp.int32), places)
    queries = encode(served.encoder, served.params, served.rows, items, inputs,
                     at=place[:, None])[:, 0]
    if head is not None:
        queries = apply_head(served.params, head, queries)
    return top_k(queries, served.rows, k, num_items=served.dataset.num_items)[1]


def true_return(served: Served, users: int, head: str | None = None) -> float:
    """Mean return of users who are shown a run's best items; the same users for every run."""
    environment = ENVIRONMENT.open()
    to_world = jnp.asarray(served.dataset.item_ids().cast(pl.Int32).to_numpy())
    to_run = jnp.zeros(environment.num_items, jnp.int32).at[to_world].set(
        jnp.arange(len(to_world)))

    def choose(items: Any, place: Any, seed: Any) -> Any:
        del seed
        return to_world[best_items(served, to_run[items], jnp.broadcast_to(place, len(items)), 1,
                                   head)]

    return float(jnp.mean(jax.jit(lambda key: play(environment, choose, key, users).returns)(
        jax.random.key(1_000))))


def distance_from_log(served: Served, users: int = 64) -> float:
    """Mean over places of the divergence KL(log's policy | softmax of the run)."""
    dataset, length = served.dataset, ENVIRONMENT.horizon
    items = np.asarray(dataset.items).reshape(-1, length + 1)[:users, :length]
    inputs = Inputs(jnp.ones(items.shape, jnp.int32),
                    jnp.broadcast_to(jnp.arange(length), items.shape))
    queries = encode(served.encoder, served.params, served.rows, jnp.asarray(items), inputs)
    logs = jax.nn.log_softmax(queries @ served.rows[:dataset.num_items].T)
    chance = np.zeros(dataset.num_items)
    chance[np.asarray(dataset.items)] = np.load(dataset.folder / "values" / "propensity.npy")
    chance = chance / chance.sum()  # of the items that the log has
    return float(jnp.mean(jnp.sum(chance * (np.log(chance) - logs), axis=-1)))


def synthetic(seeds: int, users: int, steps: int, names: list[str],
              save: Callable[[dict[str, Any]], None]) -> None:
    """True returns by objective and seed of the log and of the run, saved after each seed."""
    settings = {
        "data": {"length": ENVIRONMENT.horizon, "pack": False}, "table": {"dim": 16},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2, "hidden": 2, "dropout": 0.0},
        "optimizer": {"rate": 1e-2, "schedule": "cosine", "warmup": 0},
        "train": {"rows": 64, "steps": steps, "evaluate_every": 1e6}}
    found: dict[str, Any] = {
        "users": users, "items": ENVIRONMENT.items, "horizon": ENVIRONMENT.horizon,
        "discount": DISCOUNT, "liking": LIKING, "settings": settings,
        "optimum": optimum(ENVIRONMENT, DISCOUNT),
        "optimum_of_next_reward": optimum(ENVIRONMENT, 0.0),
        "objectives": {name: {"settings": SYNTHETIC[name], "returns": [], "by_values": [],
                              "distance_from_log": []} for name in names}}
    logs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_log(seed, users, Path(folder) / "log")
            logs.append(float(np.asarray(np.load(
                dataset.folder / "values" / "reward.npy")).sum() / users))
            for name in names:
                served = trained(dataset, SYNTHETIC[name], {**settings, "seed": seed},
                                 Path(folder) / name)
                earned = true_return(served, 1024)
                one = found["objectives"][name]
                one["returns"].append(earned)
                one["distance_from_log"].append(distance_from_log(served))
                if SYNTHETIC[name]["kind"] == "supervised_q":
                    one["by_values"].append(true_return(served, 1024, supervised_q.HEAD))
                print(seed, name, *(round(each[-1], 2) for each in (
                    one["returns"], one["by_values"], one["distance_from_log"]) if each),
                    file=sys.stderr, flush=True)
        for each in found["objectives"].values():
            each["mean"] = float(np.mean(each["returns"]))
        save({**found, "seeds": seed + 1, "log_return": float(np.mean(logs))})


def invoices(raw: Path, seed: int) -> pl.DataFrame:
    """Lines of invoices of at least five items that occur five times, in an order by chance."""
    log = pl.read_parquet(raw).filter(
        pl.col("Description").is_not_null() & (pl.col("Description") != ""))
    log = log.with_columns(reward=pl.col("Quantity") * pl.col("UnitPrice"))
    log = log.group_by("InvoiceNo", "StockCode", "Quantity", "InvoiceDate").agg(
        pl.col("reward").mean())
    before = -1
    while log.height != before:
        before = log.height
        for column in ("InvoiceNo", "StockCode"):
            log = log.filter(pl.len().over(column) >= 5)
    log = log.sort("InvoiceNo", "StockCode", "Quantity")
    order = pl.Series("order", np.random.default_rng(seed).random(log.height))
    return log.with_columns(order).sort("InvoiceNo", "InvoiceDate", "order")


def write_retail(raw: Path, folder: Path) -> Dataset:
    """Online Retail with values/money (what an item earned), values/reward (its logarithm, for one
    line earns as much as 10,000 others) and values/weight (the same with the mean 1)."""
    log = invoices(raw, 0)
    money = log["reward"].to_numpy().astype(np.float64).clip(0)
    reward = np.log1p(money)
    return write_dataset(folder, log["StockCode"].to_numpy(), log["InvoiceNo"].to_numpy(), {
        "money": money, "reward": reward, "weight": reward / reward.mean()})


def lists(served: Served, length: int, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Test items int32 `[n]`, and lists int32 `[n, k]` of what a run shows before them."""
    dataset = served.dataset
    ends = np.asarray(dataset.offsets)[1:]
    asked = np.flatnonzero(np.diff(np.asarray(dataset.offsets)) >= 3)
    items, shown = np.asarray(dataset.items), []
    answer = jax.jit(lambda items, place: best_items(served, items, place, k))
    for begin in range(0, len(asked), 512):
        users = asked[begin:begin + 512]
        block, place = np.zeros((512, length), np.int32), np.zeros(512, np.int32)
        for row, user in enumerate(users):
            history = items[dataset.offsets[user]:ends[user] - 1][-length:]
            block[row, :len(history)], place[row] = history, len(history) - 1
        shown.append(np.asarray(answer(block, place))[:len(users)])
    return ends[asked] - 1, np.concatenate(shown)


def money_of_lists(served: Served, length: int) -> dict[str, float]:
    """hit_money: mean over users of what the test item earned, where it is listed; list_money: mean
    of what listed items earned each time that they are in the training part."""
    dataset = served.dataset
    money, items = (np.load(dataset.folder / "values" / "money.npy"), np.asarray(dataset.items))
    places, shown = lists(served, length)
    owner = np.searchsorted(np.asarray(dataset.offsets)[1:], np.arange(len(items)), side="right")
    part = np.arange(len(items)) < np.asarray(dataset.train_end)[owner]
    # One line in 500 earns more than a hundred others do; they are cut there.
    cut = np.minimum(money, np.quantile(money[part], 0.998))
    total, count = (np.bincount(items[part], weights, dataset.num_items)
                    for weights in (cut[part], None))
    hit = (shown == items[places][:, None]).any(axis=1)
    return {"hit_money@10": float(np.mean(cut[places] * hit)),
            "list_money@10": float(np.mean((total / np.maximum(count, 1))[shown])),
            "hr@10": float(np.mean(hit))}


def retail(raw: Path, work: Path, seeds: int, epochs: float, names: list[str],
           report: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> None:
    """NDCG@10 and money of the lists, by objective and seed, saved after each seed."""
    work.mkdir(parents=True, exist_ok=True)
    folder = work / "dataset"
    dataset = Dataset.open(folder) if folder.exists() else write_retail(raw, folder)
    settings: dict[str, Any] = {
        "data": {"length": 50}, "table": {"dim": 64},
        # The lines of an invoice have no order: a bag of items is better than a transformer.
        "encoder": {"kind": "bag", "power": 0.5, "linear": True, "dropout": 0.3},
        "optimizer": {"rate": 3e-3, "schedule": "cosine", "warmup": 50},
        "train": {"rows": 32, "epochs": epochs, "evaluate_every": 2, "patience": 5, "ema": 0.99},
        "evaluate": {"filter_seen": False}}
    found: dict[str, Any] = {"split_hash": dataset.split_hash, "settings": settings,
                             "objectives": {name: {"settings": RETAIL[name], "runs": []}
                                            for name in names}}
    for seed in range(seeds):
        for name in names:
            run = work / f"{name}-{seed}"
            config = configs.build(RunConfig, {
                **settings, "seed": seed, "objective": RETAIL[name],
                "data": {**settings["data"], "path": str(folder)}})
            rec_jax.train(config, run=run, resume="auto")
            test = rec_jax.evaluate(run, filter_seen=False)
            served = load_served(Run(run))
            one = {"seed": seed, "ndcg@10": test["metrics"]["ndcg@10"],
                   **money_of_lists(served, settings["data"]["length"])}
            found["objectives"][name]["runs"].append(one)
            report(f"{seed} {name} {one}")
        for each in found["objectives"].values():
            each["mean"] = {key: float(np.mean([run[key] for run in each["runs"]]))
                            for key in ("ndcg@10", "hit_money@10", "list_money@10", "hr@10")}
        save({**found, "seeds": seed + 1})


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["synthetic", "retail"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=1000, help="of a synthetic log")
    parser.add_argument("--steps", type=int, default=400, help="of a run on a synthetic log")
    parser.add_argument("--epochs", type=float, default=8.0, help="of a run on Online Retail")
    parser.add_argument("--objectives", nargs="+", choices=sorted({*SYNTHETIC, *RETAIL}))
    parser.add_argument("--raw", type=Path, help="online_retail.parquet")
    parser.add_argument("--work", type=Path, default=Path("retail"), help="dataset and runs")
    given = parser.parse_args()
    settings = SYNTHETIC if given.what == "synthetic" else RETAIL
    names = [name for name in given.objectives or settings if name in settings]

    def save(found: dict[str, Any]) -> None:
        record(given.out, found)

    if given.what == "synthetic":
        synthetic(given.seeds, given.users, given.steps, names, save)
    else:
        if given.raw is None:
            parser.error("retail needs --raw")
        retail(given.raw, given.work, given.seeds, given.epochs, names,
               lambda line: print(line, file=sys.stderr, flush=True), save)


if __name__ == "__main__":
    main()
