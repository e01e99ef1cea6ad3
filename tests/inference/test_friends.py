"""People of whom only friends are known get what these and their friends took, by the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command import Command, one_object, refused

from rec_jax import api
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.friends import Friends, read_friends

PAIRS = [(0, 1), (1, 0), (1, 2), (2, 3), (4, 4), (1, 5)]
"""Of users by number: named in both directions once, and somebody who is their own friend."""


@pytest.fixture(scope="module")
def pairs(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = Dataset.open(tiny_dataset).user_ids()
    path = tmp_path_factory.mktemp("friends") / "friends.txt"
    path.write_text("".join(f"{ids[one]} {ids[other]}\n" for one, other in PAIRS)
                    + f"{ids[0]} stranger\nstranger other\n")
    return path


def by_hand(dataset: Dataset, of: list[int], hops: int, shrinkage: float, whole: bool,
            known: set[int]) -> np.ndarray:
    """One person after the other, in plain numbers."""
    circle: dict[int, set[int]] = {}
    for one, other in PAIRS:
        if one != other:
            circle.setdefault(one, set()).add(other)
            circle.setdefault(other, set()).add(one)
    weight = dict.fromkeys(of, 1.0)
    for friend in of if hops > 1 else ():
        for person in circle.get(friend, ()):
            weight[person] = weight.get(person, 0.0) + 1 / len(circle[friend])
    counts, total = np.zeros(dataset.num_items), np.zeros(dataset.num_items)
    ends = dataset.offsets[1:] if whole else dataset.train_end
    for user in range(dataset.num_users):
        for item in dataset.items[dataset.offsets[user]:ends[user]]:
            total[item] += user in known
            counts[item] += weight.get(user, 0.0) * (user in known)
    share = (total + 1) / (total + 1).sum()
    return np.log((counts + shrinkage * share) / (counts.sum() + shrinkage))


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("of", [[0], [1, 3], [4], [2, 0, 5]], ids=str)
def test_scores_are_those_of_the_formula(of: list[int], hops: int, tiny_dataset: Path, pairs: Path,
                                         ) -> None:
    dataset = Dataset.open(tiny_dataset)
    friends = read_friends(dataset, pairs)
    everybody = set(range(dataset.num_users))
    np.testing.assert_allclose(friends.scores(np.array(of), 3.0, hops),
                               by_hand(dataset, of, hops, 3.0, False, everybody), rtol=1e-10)
    mask = np.arange(dataset.num_users) % 3 > 0
    some = Friends(dataset, friends.friends, mask, whole=True)
    np.testing.assert_allclose(some.scores(np.array(of), 7.0, hops), by_hand(
        dataset, of, hops, 7.0, True, set(np.flatnonzero(mask).tolist())), rtol=1e-10)


def test_the_person_does_not_count_for_themselves(tiny_dataset: Path, pairs: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    friends = read_friends(dataset, pairs)
    own = friends.friends[[0]].indices.astype(np.int64)
    known = np.ones(dataset.num_users, bool)
    weights = friends.weights(own)
    assert weights[0] > 0  # a friend of a friend
    known[0] = False
    left = Friends(dataset, friends.friends, known).weights(own)
    assert left[0] == 0 and np.array_equal(left[1:], weights[1:])
    with_own, without = (friends.scores(own, leave_out=one) for one in (None, 0))
    seen = dataset.items[dataset.offsets[0]:dataset.train_end[0]]
    assert (without[seen] < with_own[seen]).any()


def test_tables_of_friendships_are_read_too(tiny_dataset: Path, pairs: Path, tmp_path: Path,
                                            ) -> None:
    dataset = Dataset.open(tiny_dataset)
    lines = [line.split() for line in pairs.read_text().splitlines()]
    table = tmp_path / "friends.parquet"
    pl.DataFrame({"friend": [line[1] for line in lines],
                  "user": [line[0] for line in lines]}).write_parquet(table)
    one, other = (read_friends(dataset, path).friends.toarray() for path in (pairs, table))
    assert np.array_equal(one, other) and np.array_equal(one, one.T) and one.max() == 1
    assert one.sum() == 8 and not one.diagonal().any()


def test_recommend_by_friends_needs_no_history(tiny_run: Path, tiny_dataset: Path, pairs: Path,
                                               ) -> None:
    dataset = Dataset.open(tiny_dataset)
    ids, items = dataset.user_ids(), dataset.item_ids()
    scores = read_friends(dataset, pairs).scores(np.array([1, 3]))
    found = api.recommend(tiny_run, friends=[ids[1], ids[3]], friendships=pairs, k=4)
    wanted = np.argsort(-scores, kind="stable")[:4]
    assert [row.item for row in found] == items.gather(wanted).to_list()
    alone = read_friends(dataset, None).scores(np.array([1]))
    assert [row.item for row in api.recommend(tiny_run, friends=[ids[1]], k=3)] == (
        items.gather(np.argsort(-alone, kind="stable")[:3]).to_list())


def test_what_cannot_be_is_refused(tiny_run: Path, tiny_dataset: Path, pairs: Path,
                                   tmp_path: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    name = dataset.user_ids()[0]
    with pytest.raises(InputError, match="friend 'nobody' is no user"):
        api.recommend(tiny_run, friends=["nobody"])
    with pytest.raises(InputError, match="each once"):
        api.recommend(tiny_run, friends=[name, name])
    with pytest.raises(InputError, match="without friends"):
        api.recommend(tiny_run, friendships=pairs)
    with pytest.raises(InputError, match="without a model; expected no history"):
        api.recommend(tiny_run, friends=[name], history=["x"])
    with pytest.raises(InputError, match="and no friends"):
        api.recommend(tiny_run, friends=[name], attributes={"sex": "F"}, users=pairs)
    with pytest.raises(InputError, match="k is 0"):
        api.recommend(tiny_run, friends=[name], k=0)
    strangers = tmp_path / "strangers.txt"
    strangers.write_text("a b\n")
    with pytest.raises(InputError, match="no friendship between two users"):
        read_friends(dataset, strangers)
    bad = tmp_path / "bad.txt"
    bad.write_text(f"{name} x\n{name}\n")
    with pytest.raises(InputError, match=r"bad\.txt:2 has no two ids"):
        read_friends(dataset, bad)


def test_the_verb_takes_friends(tiny_run: Path, tiny_dataset: Path, pairs: Path,
                                rec_jax: Command) -> None:
    name = Dataset.open(tiny_dataset).user_ids()[1]
    found = one_object(rec_jax("recommend", str(tiny_run), "--friend", name, "--friends",
                               str(pairs), "-k", "2", "--json"))
    wanted = api.recommend(tiny_run, friends=[name], friendships=pairs, k=2)
    assert [row["item"] for row in found["recommendations"]] == [row.item for row in wanted]
    assert "without friends" in refused(rec_jax("recommend", tiny_run, "--friends", pairs))
