"""The figure that Open Bandit Pipeline's README shows, and a made log of the same kind.

Its sample of the Open Bandit Dataset (10,000 rows of a random policy on ZOZOTOWN) comes inside of
its wheel, under Apache-2.0: `pip download --no-deps obp==0.4.1`. Where REC_JAX_OBP names that file,
or the folder that it unpacks to, the figure is computed from it.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rec_jax import JudgeConfig, LogColumns, off_policy
from rec_jax.simulate.feedback import from_actions
from rec_jax.simulate.off_policy import estimators

FIGURE = 1.1981263
"""Value of Bernoulli Thompson sampling by IPW, to the mean click of the random policy."""
SAMPLES, POSITIONS = 100_000, 3
Read = Callable[[str], str]


@pytest.fixture(scope="module")
def read(request: pytest.FixtureRequest) -> Read:
    """Gives the text of a file of obp 0.4.1."""
    place = os.environ.get("REC_JAX_OBP")
    if place is None or not Path(place).exists():
        pytest.skip("obp 0.4.1 is not here: REC_JAX_OBP names no wheel or folder of it")
    path = Path(place)
    if path.is_dir():
        return lambda name: (path / name).read_text()
    archive = zipfile.ZipFile(path)
    request.addfinalizer(archive.close)
    return lambda name: archive.read(name).decode()


def prior(text: str, name: str) -> np.ndarray:
    """alpha or beta `[A]` of the campaign `all`, whose YAML is a mapping of lists of numbers."""
    campaign = re.search(r"^all:\n((?:  .*\n?)+)", text, re.M)
    assert campaign is not None
    values = re.search(rf"^  {name}:\n((?:    - .*\n?)+)", campaign[1], re.M)
    assert values is not None
    return np.array(re.findall(r"- (\S+)", values[1]), float)


def thompson(alpha: np.ndarray, beta: np.ndarray, seed: int, samples: int) -> np.ndarray:
    """Which action stands at which place how often, `[A, POSITIONS]`: obp draws a Beta variable
    for each action, sorts, and counts."""
    # Its figure hangs on this generator's stream.
    drawn = np.random.RandomState(seed).beta(alpha, beta, (samples, len(alpha)))
    best = np.argsort(drawn, axis=1)[:, ::-1][:, :POSITIONS]
    return np.stack([np.bincount(best[:, place], minlength=len(alpha))
                     for place in range(POSITIONS)], axis=1) / samples


def columns(text: str) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: np.array([float(row[name]) for row in rows])
            for name in ("item_id", "position", "click", "propensity_score")}


def test_the_figure_of_the_readme(read: Read, tmp_path: Path) -> None:
    priors = read("obp/policy/conf/prior_bts.yaml")
    policy = thompson(prior(priors, "alpha"), prior(priors, "beta"), 12345, SAMPLES)
    log = columns(read("obp/dataset/obd/random/all/all.csv"))
    item, place = log["item_id"].astype(int), log["position"].astype(int) - 1
    feedback = from_actions(log["click"], item, log["propensity_score"], policy[None],
                            position=place)
    found = estimators(feedback)
    assert feedback.rows == 10_000
    assert found["ips"].value / log["click"].mean() == pytest.approx(FIGURE, abs=1e-6)
    assert found["snips"].value == pytest.approx(0.0048, abs=5e-5)
    # The same through a file, as the command line does it.
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["click", "propensity_score", "p", "position"])
        writer.writerows(zip(log["click"], log["propensity_score"],
                             policy[item, place].tolist(), place, strict=True))
    told = off_policy(path, LogColumns("click", "propensity_score", "p", position="position"),
                      settings=JudgeConfig(resamples=200))
    ips = told["estimates"]["ips"]
    assert ips["relative"] == pytest.approx(FIGURE, abs=1e-6)
    # What Thompson sampling earned where it ran, in obp's other sample.
    truth = columns(read("obp/dataset/obd/bts/all/all.csv"))["click"].mean()
    assert truth == pytest.approx(0.0042)
    for low, high in (ips["bootstrap"], ips["normal"], told["bounds"]["empirical_bernstein"]):
        assert low <= truth <= high
    assert [row["position"] for row in told["positions"]] == [0, 1, 2]
    assert sum(row["rows"] * row["ips"] for row in told["positions"]) / 10_000 == pytest.approx(
        ips["value"])


def test_a_made_log_of_the_same_kind() -> None:
    """A uniform policy on 8 items and 3 places, and a Thompson policy whose value is known."""
    random = np.random.default_rng(5)
    policy = thompson(np.arange(1.0, 9), np.full(8, 20.0), 1, 2000)
    chance = random.uniform(0.05, 0.4, (8, POSITIONS))
    item, place = random.integers(0, 8, 60_000), random.integers(0, POSITIONS, 60_000)
    click = (random.random(60_000) < chance[item, place]).astype(float)
    told = off_policy({"click": click, "b": np.full(60_000, 1 / 8), "p": policy[item, place],
                       "place": place},
                      LogColumns("click", "b", "p", position="place"))
    direct = np.sum(policy[item, place] * 8 * click) / 60_000
    assert told["estimates"]["ips"]["value"] == pytest.approx(direct, abs=1e-12)
    truth = np.sum(policy * chance, axis=0)  # of each place
    for name in ("ips", "snips"):
        low, high = told["estimates"][name]["bootstrap"]
        assert low <= truth.mean() <= high and high - low < 0.03
    low, high = told["bounds"]["empirical_bernstein"]
    assert low <= truth.mean() <= high < 1
    for row, value in zip(told["positions"], truth, strict=True):
        assert row["snips"] == pytest.approx(value, abs=0.03)
