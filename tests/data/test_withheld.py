"""Withheld items are in no part of the split, and nothing of their interactions is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, refused

from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import (
    Columns,
    Filters,
    PrepareConfig,
    SplitConfig,
    Withheld,
    prepare,
)
from rec_jax.data.withheld import draw_items
from rec_jax.errors import InputError


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    lines = ["user_id,item_id,time"]
    lines += [f"u{int(40 * random.random() ** 2)},i{random.integers(50)},{number * 7 % 3001}"
              for number in range(1500)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def made(log: Path, out: Path, share: float = 0.2, seed: int = 0, **split: Any) -> Dataset:
    prepare(PrepareConfig(source=str(log), out=str(out), columns=Columns(time="time"),
                          filters=Filters(item_core=2), split=SplitConfig(**split),
                          withheld=Withheld(share, seed), overwrite=True))
    return Dataset.open(out)


def histories(dataset: Dataset, items: Any, offsets: Any) -> dict[str, list[str]]:
    ids, users = dataset.item_ids().to_list(), dataset.user_ids().to_list()
    return {user: [ids[item] for item in items[offsets[u]:offsets[u + 1]]]
            for u, user in enumerate(users)}


@pytest.mark.parametrize("split", [{}, {"kind": "time"}], ids=str)
def test_what_is_withheld_and_what_is_left_is_all(log: Path, tmp_path: Path, split: Any) -> None:
    whole, cut = made(log, tmp_path / "a", 0.0, **split), made(log, tmp_path / "b", **split)
    assert whole.withheld is None and not whole.is_withheld().any()
    out = {item for item, is_out in zip(cut.item_ids(), cut.is_withheld(), strict=True) if is_out}
    assert len(out) == round(0.2 * whole.num_items) and cut.num_items == whole.num_items
    before = histories(whole, whole.items, whole.offsets)
    left = histories(cut, cut.items, cut.offsets)
    taken = histories(cut, cut.withheld, cut.withheld_offsets)
    assert left.keys() <= before.keys()
    for user, items in before.items():
        kept = [item for item in items if item not in out]
        assert (user in left) == bool(kept)
        if kept:
            assert left[user] == kept
            assert taken[user] == [item for item in items if item in out]
    assert not cut.popularity()[cut.is_withheld()].any()
    assert set(np.unique(cut.items)).isdisjoint(np.flatnonzero(cut.is_withheld()))
    if not split:  # the last items that are left are validation and test
        enough = np.diff(cut.offsets) >= 3
        np.testing.assert_array_equal(cut.offsets[1:] - cut.train_end, 2 * enough)


def test_a_random_split_withholds_the_same_items(log: Path, tmp_path: Path) -> None:
    one, other = made(log, tmp_path / "a"), made(log, tmp_path / "b", kind="random")
    pairs = [histories(each, each.withheld, each.withheld_offsets) for each in (one, other)]
    assert pairs[0].keys() == pairs[1].keys()
    assert all(sorted(pairs[0][user]) == sorted(pairs[1][user]) for user in pairs[0])
    whole = histories(other, other.items, other.offsets)
    assert {user: sorted(items) for user, items in whole.items()} == {
        user: sorted(items) for user, items in histories(one, one.items, one.offsets).items()}


def test_seeds_draw_different_items(log: Path, tmp_path: Path) -> None:
    sets = [set(np.array(each.item_ids())[each.is_withheld()]) for each in (
        made(log, tmp_path / "a", seed=0), made(log, tmp_path / "b", seed=1),
        made(log, tmp_path / "c", seed=0))]
    assert sets[0] == sets[2] != sets[1]
    drawn = np.random.default_rng(3).permutation(10)[:3]
    np.testing.assert_array_equal(np.flatnonzero(draw_items(10, Withheld(0.3, 3))), np.sort(drawn))


def test_a_user_of_withheld_items_alone_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("a x y z x\nb x\nc y\nd z\n")
    prepare(PrepareConfig(source=str(log), out=str(tmp_path / "d"), format="lists",
                          withheld=Withheld(0.34)))
    dataset = Dataset.open(tmp_path / "d")
    out = np.array(dataset.item_ids())[dataset.is_withheld()].tolist()
    assert len(out) == 1 and dataset.num_users == 3 and len(dataset.user_ids()) == 3
    assert {"x": "b", "y": "c", "z": "d"}[out[0]] not in dataset.user_ids()
    with pytest.raises(InputError, match="nothing to withhold"):
        prepare(PrepareConfig(source=str(log), out=str(tmp_path / "e"), format="lists",
                              withheld=Withheld(0.1)))
    with pytest.raises(InputError, match=r"withheld\.share"):
        Withheld(1.0)


def test_the_hash_knows_what_is_withheld_and_damage_is_found(log: Path, tmp_path: Path) -> None:
    assert made(log, tmp_path / "a").split_hash != made(log, tmp_path / "b", seed=1).split_hash
    folder = tmp_path / "a"
    kept = (folder / "withheld.npy").read_bytes()
    (folder / "withheld.npy").write_bytes(kept[:-4])
    with pytest.raises(InputError, match=r"withheld\.npy"):
        Dataset.open(folder)
    (folder / "withheld.npy").write_bytes(kept[:-4] + np.int32(10**6).tobytes())
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"] = None  # as of a folder of before there were checksums
    meta["hashes"] = {}
    meta["checksum"] = None
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"withheld\.npy has values from .* to 1000000"):
        Dataset.open(folder)


def test_the_command_line_withholds(log: Path, tmp_path: Path, rec_jax: Command) -> None:
    ended = rec_jax("prepare", log, "--time", "time", "--withhold", "0.2", "--set",
                    "withheld.seed=3", "--set", "filters.item_core=2", "--out", tmp_path / "d")
    assert ended.code == 0
    assert Dataset.open(tmp_path / "d").split_hash == made(log, tmp_path / "e", seed=3).split_hash
    assert "--withhold is 1.5" in refused(
        rec_jax("prepare", log, "--withhold", "1.5", "--out", tmp_path / "f"))
