"""Places in front of histories: attributes as codes, and batches in which they stand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec_jax.data.attributes import (
    BEGIN,
    BeginConfig,
    UserAttributes,
    attributes_to_train,
    check_trained,
    open_attributes,
)
from rec_jax.data.batches import BatchStream
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import Feature, find_features, vocabularies
from rec_jax.errors import InputError

COLUMNS = ("gender", "age")


@pytest.fixture(scope="module")
def folder(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset, and `users.csv` beside it: the last users have no row, some no age."""
    folder = shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("begin") / "d")
    users = Dataset.open(folder).user_ids().to_list()
    lines = [f"{user},{'FM'[number % 2]},{'' if number % 5 == 0 else number % 3}"
             for number, user in enumerate(users[:-4])]
    (folder.parent / "users.csv").write_text("\n".join(["user_id,gender,age", *lines]) + "\n")
    return folder


def config(folder: Path, **changes: Any) -> BeginConfig:
    return BeginConfig(str(folder.parent / "users.csv"), COLUMNS, **changes)


def test_attributes_are_codes_of_sorted_values(folder: Path) -> None:
    found = open_attributes(config(folder, places=2), Dataset.open(folder))
    assert found.values == {"gender": ["F", "M"], "age": ["0", "1", "2"]}
    number = np.arange(len(found.codes))
    known = number < len(number) - 4
    np.testing.assert_array_equal(found.codes[:, 0], np.where(known, 1 + number % 2, 0))
    np.testing.assert_array_equal(found.codes[:, 1],
                                  np.where(known & (number % 5 > 0), 1 + number % 3, 0))
    # Of each place: one code for everybody, two of genders, three of ages.
    assert found.categories == 2 * 6
    np.testing.assert_array_equal(found.in_front(np.array([[2, 3], [0, 1]], np.int32)),
                                  [[[1, 3, 6], [7, 9, 12]], [[1, 0, 4], [7, 0, 10]]])
    np.testing.assert_array_equal(found.coded({"age": "2"}), [[0, 3]])
    np.testing.assert_array_equal(found.coded(None), [[0, 0]])
    with pytest.raises(InputError, match=r"no user has age = '9'; expected one of 0, 1, 2"):
        found.coded({"age": "9"})
    with pytest.raises(InputError, match=r"attribute 'agee' is unknown; did you mean 'age'\?"):
        found.coded({"agee": "1"})
    assert find_features([config(folder)], Dataset.open(folder)) == (
        Feature("begin", BEGIN, 12, 3),)


def test_codes_stay_though_the_table_goes_and_another_table_is_refused(folder: Path,
                                                                       tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "d", ignore=shutil.ignore_patterns("user_attr*"))
    table = shutil.copy(folder.parent / "users.csv", tmp_path / "users.csv")
    dataset = Dataset.open(moved)
    first = open_attributes(config(moved), dataset)
    text = Path(table).read_text()
    Path(table).write_text(text.replace(",F,", ",X,"))
    # What is trained already reads on what lies there; a training says that it is not the table.
    with pytest.raises(InputError, match=r"users\.npy is of another table than begin\.table"):
        attributes_to_train(config(moved), dataset)
    np.testing.assert_array_equal(open_attributes(config(moved), dataset).codes, first.codes)
    other = attributes_to_train(config(moved, name="other"), dataset)
    assert other is not None and other.values["gender"] == ["M", "X"]
    Path(table).unlink()
    again = attributes_to_train(config(moved), dataset)
    assert again is not None and again.hash == first.hash != other.hash
    assert attributes_to_train(None, dataset) is None
    # Columns in another order have other codes.
    turned = BeginConfig(str(folder.parent / "users.csv"), ("age", "gender"), name="turned")
    assert vocabularies([config(moved)], dataset) != vocabularies([turned], dataset)
    with pytest.raises(InputError, match=r"is of other columns than"):
        open_attributes(BeginConfig(table, ("age",)), dataset)
    path = moved / "user_attributes" / "users.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "user_ids": "0"}))
    with pytest.raises(InputError, match=r"is of other users than"):
        open_attributes(config(moved), dataset)
    for wrong, said in (({"places": 0}, r"begin\.places"), ({"name": "../x"}, r"begin\.name")):
        with pytest.raises(InputError, match=said):
            config(moved, **wrong)


def test_a_run_is_not_asked_with_attributes_that_mean_others(folder: Path, tmp_path: Path) -> None:
    """Codes that were made again of another table, with as many values, would name other rows."""
    moved = shutil.copytree(folder, tmp_path / "d", ignore=shutil.ignore_patterns("user_attr*"))
    table = Path(shutil.copy(folder.parent / "users.csv", tmp_path / "users.csv"))
    dataset, own = Dataset.open(moved), BeginConfig(str(table), ("gender", "age"))
    said = BatchStream(dataset, length=9, rows=4, features=[own]).state()
    check_trained(own, dataset, said)
    for nothing in (None, {}, {"step": 3}):
        check_trained(own, dataset, nothing)
    check_trained(None, dataset, said)
    shutil.rmtree(moved / "user_attributes")
    table.write_text(table.read_text().replace(",F,", ",X,"))
    with pytest.raises(InputError, match="are not those that the run was trained with"):
        check_trained(own, dataset, said)


def rows_of(stream: BatchStream) -> list[dict[str, np.ndarray]]:
    """Each row of the first epoch."""
    found = []
    for step in range(stream.steps_per_epoch):
        batch = stream.batch(step)
        found += [{name: values[row] for name, values in batch.items()}
                  for row in range(stream.rows)]
    return found[:stream.rows_per_epoch]


@pytest.mark.parametrize("window", ["last", "chunks"])
@pytest.mark.parametrize(("pack", "places"), [(True, 2), (False, 3), (True, 1)])
def test_every_target_has_its_place_behind_those_of_its_user(
        window: Any, pack: bool, places: int, folder: Path) -> None:
    dataset, length = Dataset.open(folder), 9
    begin = config(folder, places=places)
    known = open_attributes(begin, dataset)
    stream = BatchStream(dataset, length=length, rows=4, pack=pack, window=window, users=True,
                         features=[begin])
    wanted: Counter[tuple[int, ...]] = Counter()
    most = length - places + 1
    for user in range(dataset.num_users):
        items = dataset.items[dataset.offsets[user]:dataset.train_end[user]].tolist()
        while items:
            wanted[user, *items[-most:]] += 1
            items = items[:-most] if window == "chunks" else []
    found: Counter[tuple[int, ...]] = Counter()
    for row in rows_of(stream):
        for number in range(1, row["segments"].max() + 1):
            part = {name: values[row["segments"] == number] for name, values in row.items()}
            user, count = int(part["users"][0]), len(part["items"])
            assert part["positions"].tolist() == list(range(count))
            assert (part["targets"][:places - 1] == -1).all() and not part["items"][:places].any()
            assert part["items"][places:].tolist() == part["targets"][places - 1:-1].tolist()
            np.testing.assert_array_equal(part[BEGIN][:places],
                                          known.in_front(known.codes[[user]])[0])
            assert not part[BEGIN][places:].any()
            found[user, *part["targets"][places - 1:].tolist()] += 1
        assert not row[BEGIN][row["segments"] == 0].any()
    assert found == wanted
    assert stream.targets_per_epoch == sum(len(key) - 1 for key in wanted.elements())
    if not pack:
        assert stream.rows_per_epoch == sum(wanted.values())


def test_a_data_position_knows_its_attributes(folder: Path) -> None:
    dataset = Dataset.open(folder)
    state = BatchStream(dataset, length=9, rows=4, features=[config(folder)]).state(3)
    other = BatchStream(dataset, length=9, rows=4, features=[config(folder)])
    other.restore(state)
    assert other.step == 3
    for features in ([], [config(folder, places=1)]):
        with pytest.raises(InputError, match="data position was saved with begin"):
            BatchStream(dataset, length=9, rows=4, features=features).restore(state)
    plain = BatchStream(dataset, length=9, rows=4)
    assert "begin" not in plain.state()
    for wrong in ({"targets": "self"}, {"length": 1}):
        with pytest.raises(InputError, match="2 begin places stand in front of items"):
            BatchStream(dataset, **{"length": 9, "rows": 4, "features": [config(folder)], **wrong})


def test_codes_of_nobody_are_those_that_all_share() -> None:
    known = UserAttributes(np.zeros((1, 2), np.int32), {"a": ["x"], "b": ["y", "z"]}, 2)
    np.testing.assert_array_equal(known.in_front(known.coded({})), [[[1, 0, 0], [5, 0, 0]]])
