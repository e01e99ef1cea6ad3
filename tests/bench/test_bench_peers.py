"""A comparison with other programs: what they are given, what is counted, what is shown.

The runners of real programs need environments of their own; a small one stands in for them here.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rec_jax.bench import peers as bench_peers
from rec_jax.bench import peers_report as bench_peers_report
from rec_jax.bench.contender import figures
from rec_jax.bench.peers import Shapes, choose_peers, write_interchange
from rec_jax.cli.app import app
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.metrics import MISSED, rank_metrics

RUNNERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
SHAPES = Shapes(length=12, dim=8, layers=1, heads=2, batch=8, threads=1)

# A program that always puts item 0 first, then 1, ..: popularity, as items are numbered by it.
POPULAR = '''
import numpy as np, worker

class Popular:
    def __init__(self, task):
        print("a program that talks on stdout")
        self.data, self.batches = worker.open_interchange(task.data), None
        self.batches = worker.padded_batches(self.data, task.length, task.batch, task.seed)
        self.length = task.length

    def about(self):
        return {"version": "1.0", "loss": "none", "notes": "popularity",
                "targets_per_epoch": worker.targets_per_epoch(self.data, self.length)}

    def train(self, steps):
        taken = [next(self.batches) for _ in range(steps)]
        return worker.Trained(0.5, sum(int((t >= 0).sum()) for _, t in taken),
                              sum(len(t) for _, t in taken))

    def ranks(self):
        users = len(self.data.users)
        scores = np.tile(-np.arange(self.data.num_items, dtype=np.float32), (users, 1))
        return worker.count_ranks(scores, self.data, slice(0, users))

worker.serve(Popular)
'''


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_worker", RUNNERS / "worker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers_worker"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return Dataset.open(tiny_dataset)


@pytest.fixture(scope="module")
def data(worker: ModuleType, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("interchange")
    write_interchange(dataset, folder)
    return worker.open_interchange(folder)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runners: one that works, one that fails while it trains, one not set up."""
    folder = tmp_path_factory.mktemp("peers")
    for name in ("worker.py", "run_rec_jax.py"):
        shutil.copy(RUNNERS / name, folder)
    (folder / "run_popular.py").write_text(POPULAR)
    (folder / "run_broken.py").write_text(
        POPULAR.replace("def train(self, steps):", "def train(self, steps):\n        1 / 0"))
    (folder / "run_absent.py").write_text(POPULAR)
    for name in ("popular", "broken"):
        binary = folder / "envs" / name / "bin"
        binary.mkdir(parents=True)
        (binary / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (binary / "python").chmod(0o755)
        (folder / "envs" / name / "installed.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def result(peers: Path, tiny_dataset: Path) -> dict[str, Any]:
    return bench_peers.run(tiny_dataset, folder=peers, ours=["rec_jax packed"], shapes=SHAPES,
                           steps=2, rounds=2, quality=0.5)


def test_the_interchange_is_the_training_part_and_the_validation_items(
        data: Any, dataset: Dataset) -> None:
    held = dict(zip(data.users.tolist(), data.targets.tolist(), strict=True))
    for user in range(dataset.num_users):
        start, end = dataset.offsets[user], dataset.train_end[user]
        np.testing.assert_array_equal(data.history(user), dataset.items[start:end])
        has = dataset.valid_end[user] > end
        assert held.get(user) == (dataset.items[end] if has else None)
    assert data.num_items == dataset.num_items and len(held) < dataset.num_users
    assert (data.items.dtype, data.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("length", [1, 3, 12, 100])
def test_targets_of_an_epoch_are_those_of_the_batches(
        worker: ModuleType, data: Any, dataset: Dataset, length: int) -> None:
    stream = BatchStream(dataset, length=length, rows=4)
    assert worker.targets_per_epoch(data, length) == stream.targets_per_epoch


def test_an_epoch_of_padded_batches_has_every_last_target_once(
        worker: ModuleType, data: Any) -> None:
    length, users = 5, np.flatnonzero(np.diff(data.offsets) >= 2)
    batches = worker.padded_batches(data, length, batch=1, seed=0)
    found = sorted((row[row >= 0].tolist(), items[0, :(row >= 0).sum()].tolist())
                   for items, (row,) in itertools.islice(batches, len(users)))
    wanted = sorted((data.history(user)[1:][-length:].tolist(),
                     data.history(user)[:-1][-length:].tolist()) for user in users)
    assert found == wanted


def test_history_batches_end_at_the_newest_item(worker: ModuleType, data: Any) -> None:
    users = 0
    for items, last, which in worker.history_batches(data, length=4, batch=7):
        for row, user in enumerate(data.users[which]):
            wanted = data.history(user)[-4:]
            np.testing.assert_array_equal(items[row, :last[row] + 1], wanted)
            users += 1
        assert items.shape == (7, 4)
    assert users == len(data.users)


def test_ranks_count_unseen_items_that_are_not_worse(worker: ModuleType, data: Any) -> None:
    scores = np.random.default_rng(3).integers(0, 5, (len(data.users), data.num_items)).astype(
        np.float32)  # many ties
    scores[0] = np.nan
    data = data._replace(targets=data.targets.copy())
    data.targets[1] = data.history(data.users[1])[0]
    ranks = worker.count_ranks(scores, data, slice(0, len(data.users)))
    assert worker.MISSED == MISSED
    for row, (user, target) in enumerate(zip(data.users, data.targets, strict=True)):
        seen = set(data.history(user).tolist())
        rivals = set(range(data.num_items)) - seen - {int(target)}
        rank = 1 + sum(not scores[row, one] < scores[row, target] for one in rivals)
        assert ranks[row] == (MISSED if target in seen else rank)
    assert ranks[1] == MISSED


def test_ranks_of_lists(worker: ModuleType) -> None:
    lists = np.array([[4, 2, 7], [7, 4, -1], [1, 2, 3], [-1, -1, -1]])
    np.testing.assert_array_equal(worker.ranks_of_lists(lists, np.array([4, 4, 9, 0])),
                                  [1, 2, 4, 4])


def test_every_contender_runs_and_a_failing_one_stops_nobody(result: dict[str, Any]) -> None:
    json.dumps(result)
    ours, broken, popular = result["contenders"]
    assert [one["name"] for one in (ours, broken, popular)] == [
        "rec_jax packed", "broken", "popular"]
    assert broken["failed"] == "ZeroDivisionError: division by zero"
    assert len(ours["runs"]) == len(popular["runs"]) == 2
    assert ours["targets_per_epoch"] == popular["targets_per_epoch"]
    # A step of the slow one is later than all moments; of the other one not always.
    assert len(popular["curve"]) == 1 < len(ours["curve"]) <= len(bench_peers.moments(1))


def test_metrics_are_those_of_the_ranks(
        result: dict[str, Any], worker: ModuleType, data: Any) -> None:
    users = len(data.users)
    scores = np.tile(-np.arange(data.num_items, dtype=np.float32), (users, 1))
    wanted = rank_metrics(worker.count_ranks(scores, data, slice(0, users)), (10,))
    point = result["contenders"][2]["curve"][-1]
    assert (point["hr"], point["ndcg"]) == (wanted["hr@10"], wanted["ndcg@10"])
    # Three rounds of half a second and as much again, by the runner's own clock.
    assert point["seconds"] == pytest.approx(2.0)


def test_a_curve_ends_where_the_goal_is_reached(peers: Path, tiny_dataset: Path) -> None:
    found = {}
    for goal in (0.01, 1.0):
        found[goal] = bench_peers.run(
            tiny_dataset, folder=peers, ours=[], peers=["popular"], shapes=SHAPES, steps=2,
            rounds=1, quality=2.0, goal=goal)
    reached, missed = (one["contenders"][0] for one in found.values())
    assert len(reached["curve"]) == 1 and reached["seconds_to_goal"] == pytest.approx(1.5)
    assert len(missed["curve"]) == 4 and missed["seconds_to_goal"] is None
    assert missed["curve"][-1]["seconds"] == pytest.approx(3.0, abs=0.5)
    assert "| 2 |" in bench_peers_report.markdown(found[0.01])
    assert "| not reached |" in bench_peers_report.markdown(found[1.0])


def test_a_variant_that_we_do_not_have_is_refused(peers: Path, tiny_dataset: Path) -> None:
    with pytest.raises(InputError, match="'rec_jax fast' is unknown; expected some of"):
        bench_peers.run(tiny_dataset, folder=peers, ours=["rec_jax fast"])


def test_a_goal_needs_time_to_reach_it(peers: Path, tiny_dataset: Path) -> None:
    for settings in ({"goal": 0.1}, {"goal": 0.0, "quality": 1.0}):
        with pytest.raises(InputError, match="expected a positive goal and the seconds"):
            bench_peers.run(tiny_dataset, folder=peers, **settings)


def test_figures_are_medians_over_rounds() -> None:
    trained = [{"seconds": 2.0, "targets": targets, "sequences": 8} for targets in (20, 60, 40)]
    ranked = [{"seconds": seconds, "users": 30} for seconds in (1.0, 3.0, 2.0)]
    assert figures(trained, ranked, targets_per_epoch=400) == {
        "targets_per_second": 20.0, "runs": [10.0, 30.0, 20.0], "sequences_per_second": 4.0,
        "seconds_per_epoch": 20.0, "users_ranked_per_second": 15.0}


def test_the_table_has_a_row_for_each_and_says_who_failed(result: dict[str, Any]) -> None:
    text = bench_peers_report.markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 and len({row.count("|") for row in rows}) == 1
    speeds = {one["name"]: one["targets_per_second"] for one in result["contenders"]
              if "failed" not in one}
    first = max(speeds, key=lambda name: speeds[name])
    assert rows[2].startswith(f"| {first} |") and f"{speeds[first]:,.0f}" in rows[2]
    ratio = speeds["rec_jax packed"] / speeds["popular"]
    assert f" {ratio:.2f} " in next(row for row in rows if "rec_jax" in row)
    assert "failed: ZeroDivisionError" in rows[-1]


def test_the_plot_is_written_with_and_without_curves(
        result: dict[str, Any], tmp_path: Path) -> None:
    flat = {**result, "contenders": [{key: value for key, value in one.items() if key != "curve"}
                                     for one in result["contenders"]]}
    sizes = []
    for number, one in enumerate((result, flat)):
        image = bench_peers_report.plot(one, tmp_path / f"{number}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(image[16:20], "big"))
    assert sizes[0] > sizes[1]  # the curves stand beside the bars


def test_the_verb_writes_json_table_and_plot(
        result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(dataset: str, **settings: Any) -> dict[str, Any]:
        asked.update(settings, dataset=dataset)
        return result

    monkeypatch.setattr(bench_peers, "run", run)
    shown = CliRunner().invoke(app, [
        "bench", "peers", "somewhere", "--peers", "torch, recbole", "--threads", "3",
        "--set", "length=50", "--out", str(tmp_path / "x.json"), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["contenders"] == result["contenders"]
    assert asked["peers"] == ["torch", "recbole"]
    assert asked["shapes"] == Shapes(length=50, threads=3)
    assert (tmp_path / "x.md").read_text() == bench_peers_report.markdown(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md", "x.png"]


def test_peers_are_those_set_up_unless_named(peers: Path, tmp_path: Path) -> None:
    assert choose_peers(peers, None) == ["broken", "popular"]
    assert choose_peers(peers, ["popular"]) == ["popular"]
    with pytest.raises(InputError, match=r"'absent' is not set up; python .*setup.py absent"):
        choose_peers(peers, ["absent"])
    with pytest.raises(InputError, match="'nobody' is unknown; ready: broken, popular"):
        choose_peers(peers, ["nobody"])
    with pytest.raises(InputError, match="holds no runners"):
        choose_peers(tmp_path, None)


def test_every_peer_that_can_be_set_up_has_a_runner() -> None:
    wanted = {path.stem for path in (RUNNERS / "requirements").glob("*.txt")}
    runners = {path.stem.partition("_")[2]  # trainers, text encoders, agents
               for kind in ("run", "embed", "play") for path in RUNNERS.glob(f"{kind}_*.py")}
    assert wanted and runners == wanted | {"rec_jax"}


@pytest.mark.parametrize("settings", [{"length": 0}, {"threads": 0}, {"heads": 3, "dim": 8}])
def test_impossible_shapes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Shapes(**settings)
