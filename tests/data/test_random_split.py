"""A split by chance loses nothing, keeps each part's order, and does not depend on chunks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax.data import arrays
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, Filters, PrepareConfig, SplitConfig, prepare
from rec_jax.data.values import open_values
from rec_jax.errors import InputError

Parts = dict[str, list[list[tuple[str, float]]]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    lines = ["user_id,item_id,rating,time"]
    lines += [f"u{int(40 * random.random() ** 2)},i{random.integers(50)},"
              f"{random.integers(1, 6)},{number * 7 % 3001}" for number in range(3000)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def made(log: Path, out: Path, **settings: Any) -> Dataset:
    split = SplitConfig("random", **settings)
    prepare(PrepareConfig(source=str(log), out=str(out), split=split, filters=Filters(item_core=2),
                          columns=Columns(time="time", rating="rating"), overwrite=True))
    return Dataset.open(out)


def parts(dataset: Dataset) -> Parts:
    """(item, rating) of each user by part, in order."""
    ids, found = dataset.item_ids().to_list(), {}
    ratings = open_values(["rating"], dataset)["rating"]
    bounds = [dataset.offsets[:-1], dataset.train_end, dataset.valid_end, dataset.offsets[1:]]
    for name, first, last in zip(("train", "valid", "test"), bounds[:3], bounds[1:], strict=True):
        found[name] = [list(zip([ids[item] for item in dataset.items[a:b]],
                                ratings(np.arange(a, b)).tolist(), strict=True))
                       for a, b in zip(first, last, strict=True)]
    return found


def test_every_interaction_is_in_one_part_in_its_old_order(log: Path, tmp_path: Path) -> None:
    dataset = made(log, tmp_path / "d", valid_share=0.2, test_share=0.3, seed=4)
    rows = [line.split(",") for line in log.read_text().splitlines()[1:]]
    order = sorted(range(len(rows)), key=lambda place: int(rows[place][3]))
    found, people = parts(dataset), dataset.user_ids().to_list()
    for index, user in enumerate(people):
        own = [(rows[place][1], float(rows[place][2])) for place in order
               if rows[place][0] == user]
        pieces = [found[name][index] for name in ("train", "valid", "test")]
        assert sorted(itertools.chain(*pieces)) == sorted(own)
        for piece in pieces:  # a part is a subsequence of the history
            rest = iter(own)
            assert all(entry in rest for entry in piece)
    sizes = {name: sum(map(len, found[name])) for name in found}
    for name, share in (("train", 0.5), ("valid", 0.2), ("test", 0.3)):
        assert abs(sizes[name] / len(rows) - share) < 0.04
    assert dataset.times is None and dataset.meta["split"] == {
        "kind": "random", "valid_share": 0.2, "test_share": 0.3, "seed": 4}
    counts = np.bincount(np.concatenate([dataset.items[a:b] for a, b in zip(
        dataset.offsets[:-1], dataset.train_end, strict=True)]), minlength=dataset.num_items)
    assert (np.diff(counts) <= 0).all()  # items are numbered by their training counts


def test_the_seed_decides_and_chunks_do_not(log: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(log, tmp_path / "one")
    assert made(log, tmp_path / "seed", seed=1).split_hash != one.split_hash
    monkeypatch.setattr(arrays, "CHUNK_ROWS", 61)
    assert made(log, tmp_path / "chunks").split_hash == one.split_hash


def test_shares_that_leave_a_part_empty_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\na,y\nb,x\n")
    with pytest.raises(InputError, match=r"leaves .* empty; expected larger shares"):
        prepare(PrepareConfig(source=str(tmp_path / "log.csv"), out=str(tmp_path / "d"),
                              split=SplitConfig("random")))
    with pytest.raises(InputError, match="a sum below 1"):
        SplitConfig("random", valid_share=0.5, test_share=0.5)
