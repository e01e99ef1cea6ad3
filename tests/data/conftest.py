"""Small datasets made by the real `prepare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import Columns, PrepareConfig, prepare


@pytest.fixture
def write_histories(tmp_path: Path) -> Callable[..., Dataset]:
    """Histories (one list of items a user) -> an opened dataset with ids as given."""

    def write(histories: Sequence[Sequence[object]], name: str = "made") -> Dataset:
        source = tmp_path / f"{name}.txt"
        source.write_text("".join(
            " ".join(map(str, [user, *items])) + "\n" for user, items in enumerate(histories)))
        out = tmp_path / name
        prepare(PrepareConfig(source=str(source), out=str(out), format="lists"))
        return Dataset.open(out)

    return write


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """200 users with 1 to 40 items each out of 50, with times; lengths are skewed."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(7)
    lines = ["user,item,time"]
    for user in range(200):
        count = int(min(40, 1 + random.exponential(8)))
        when = np.sort(random.integers(0, 10_000, count))
        lines += [f"u{user},i{item},{time}"
                  for item, time in zip(random.integers(0, 50, count), when, strict=True)]
    (folder / "log.csv").write_text("\n".join(lines))
    prepare(PrepareConfig(source=str(folder / "log.csv"), out=str(folder / "made"),
                          columns=Columns("user", "item", "time")))
    return Dataset.open(folder / "made")
