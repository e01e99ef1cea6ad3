"""People without a history get what is popular among those like them, by the formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command import Command, one_object, refused

from rec_jax import api
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.newcomers import Attributes, group_scores, read_attributes


@pytest.fixture(scope="module")
def table(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attributes of all users but the first three; one more user that nobody knows."""
    random, users = np.random.default_rng(0), Dataset.open(tiny_dataset).user_ids()[3:]
    path = tmp_path_factory.mktemp("users") / "users.csv"
    pl.DataFrame({"user_id": [*users, "stranger"],
                  "sex": random.choice(["F", "M"], len(users) + 1),
                  "age": random.choice([10, 20, 30], len(users) + 1)}).write_csv(path)
    return path


def by_hand(dataset: Dataset, table: Path, given: dict[str, str], shrinkage: float,
            ends: np.ndarray) -> np.ndarray:
    """One user and one item after the other, in plain numbers."""
    rows = {row["user_id"]: row for row in pl.read_csv(table, infer_schema=False).to_dicts()}
    total = np.zeros(dataset.num_items)
    groups = {name: np.zeros(dataset.num_items) for name in given}
    for user, name in enumerate(dataset.user_ids()):
        for item in dataset.items[dataset.offsets[user]:ends[user]]:
            total[item] += 1
            for attribute, value in given.items():
                groups[attribute][item] += name in rows and rows[name][attribute] == value
    share = (total + 1) / (total + 1).sum()
    score = np.log(share)
    for counts in groups.values():
        shrunk = (counts + shrinkage * share) / (counts.sum() + shrinkage)
        score += np.log(shrunk / share) / len(given)
    return score


@pytest.mark.parametrize("given", [{}, {"sex": "F"}, {"sex": "M", "age": "20"}], ids=str)
@pytest.mark.parametrize("shrinkage", [3.0, 1000.0])
def test_scores_are_those_of_the_formulas(given: dict[str, str], shrinkage: float,
                                          tiny_dataset: Path, table: Path) -> None:
    dataset = Dataset.open(tiny_dataset)
    attributes = read_attributes(dataset, table, ["age", "sex"])
    np.testing.assert_allclose(attributes.scores(given, shrinkage), by_hand(
        dataset, table, given, shrinkage, dataset.train_end), rtol=1e-10)
    whole = Attributes(dataset, attributes.values, whole=True)
    np.testing.assert_allclose(whole.scores(given, shrinkage), by_hand(
        dataset, table, given, shrinkage, dataset.offsets[1:]), rtol=1e-10)
    some = np.arange(dataset.num_users) % 2 == 0
    half = Attributes(dataset, attributes.values, known=some)
    np.testing.assert_allclose(half.scores(given, shrinkage), by_hand(
        dataset, table, given, shrinkage,
        np.where(some, dataset.train_end, dataset.offsets[:-1])), rtol=1e-10)


def test_a_group_of_nobody_says_nothing_and_much_shrinkage_as_little() -> None:
    total = np.array([5, 0, 9, 1])
    plain = group_scores(total, [])
    np.testing.assert_allclose(group_scores(total, [np.zeros(4, np.int64)]), plain)
    np.testing.assert_allclose(group_scores(total, [np.array([3, 0, 0, 0])], 1e12), plain)
    assert group_scores(total, [np.array([3, 0, 0, 0])], 1.0).argmax() == 0
    assert plain.argmax() == 2


def test_recommend_by_attributes_needs_no_history(tiny_run: Path, tiny_dataset: Path, table: Path,
                                                  ) -> None:
    dataset = Dataset.open(tiny_dataset)
    scores = read_attributes(dataset, table, ["sex"]).scores({"sex": "F"})
    found = api.recommend(tiny_run, attributes={"sex": "F"}, users=table, k=5)
    assert [row.item for row in found] == [
        str(dataset.item_ids()[int(item)]) for item in np.argsort(-scores, kind="stable")[:5]]
    assert found[0].title and found[0].score == pytest.approx(scores.max())
    assert len(api.recommend(tiny_run, attributes={}, users=table, k=10**6)) == dataset.num_items


def test_the_command_line_asks_by_attributes(tiny_run: Path, table: Path, rec_jax: Command
                                             ) -> None:
    found = one_object(rec_jax("recommend", tiny_run, "--attributes", "sex=F", "--attributes",
                               "age=20", "--users", table, "--k", "3", "--json"))
    wanted = api.recommend(tiny_run, attributes={"sex": "F", "age": "20"}, users=table, k=3)
    assert [row["item"] for row in found["recommendations"]] == [row.item for row in wanted]
    assert "is no NAME=VALUE" in refused(
        rec_jax("recommend", tiny_run, "--attributes", "F", "--users", table))
    assert "says 'sex' twice; expected one value" in refused(rec_jax(
        "recommend", tiny_run, "--attributes", "sex=F", "--attributes", "sex=M", "--users", table))
    assert "of no use without attributes" in refused(
        rec_jax("recommend", tiny_run, "--users", table, "--user", "u5"))


def test_what_is_not_known_says_so(tiny_run: Path, tiny_dataset: Path, table: Path,
                                   tmp_path: Path) -> None:
    def ask(**given: object) -> None:
        api.recommend(tiny_run, **{"users": table, **given})  # type: ignore[arg-type]

    with pytest.raises(InputError, match="no user has sex = 'X'; expected one of F, M"):
        ask(attributes={"sex": "X"})
    with pytest.raises(InputError, match="'gender'"):
        ask(attributes={"gender": "F"})
    with pytest.raises(InputError, match="and no history, cold"):
        ask(attributes={"sex": "F"}, history=["0001"], cold="both")
    with pytest.raises(InputError, match=r"expected a table of users$"):
        ask(attributes={"sex": "F"}, users=None)
    with pytest.raises(InputError, match="of no use without attributes"):
        ask(history=["0001"])
    with pytest.raises(InputError, match="k is 0"):
        ask(attributes={"sex": "F"}, k=0)
    strangers = tmp_path / "s.csv"
    strangers.write_text("user_id,sex\nnobody,F\n")
    with pytest.raises(InputError, match="has no user of"):
        ask(attributes={"sex": "F"}, users=strangers)
    strangers.write_text('user_id,sex\nu1,F\nu2,"F\nu3,M\n')
    with pytest.raises(InputError, match=r"has 1 rows that cannot be read: .* s.csv:3"):
        ask(attributes={"sex": "F"}, users=strangers)
    with pytest.raises(InputError, match="attribute 'age' is unknown; expected one or more of sex"):
        read_attributes(Dataset.open(tiny_dataset), table, ["sex"]).scores({"age": "10"})
