"""How long a run is, and when it validates."""

from __future__ import annotations

import pytest

from rec_jax.run import DataConfig, RunConfig, TrainConfig
from rec_jax.train.build import steps_of


def horizon(rows_per_epoch: int, **train: float):
    return steps_of(RunConfig(data=DataConfig(path="none"), train=TrainConfig(**train)),  # type: ignore[arg-type]
                    rows_per_epoch)


def test_a_run_has_the_steps_of_its_epochs_unless_steps_are_given() -> None:
    assert horizon(640, rows=8, epochs=1.5).total == 120
    assert horizon(640, rows=8, epochs=1.5, steps=7).total == 7
    assert horizon(1, rows=8, epochs=0.01).total == 1


@pytest.mark.parametrize(("rows", "every"), [(641, 3.0), (669, 3.0), (8000, 2.0), (77, 0.9)])
def test_validations_are_regular_and_the_last_is_at_the_end(rows: int, every: float) -> None:
    found = horizon(rows, rows=8, epochs=30, evaluate_every=every)
    steps = [done for done in range(1, found.total + 1) if found.validates(done)]
    assert steps[-1] == found.total
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert set(gaps[:-1]) == {round(every * rows / 8)}
    assert gaps[0] / 2 <= gaps[-1] < 1.5 * gaps[0]


def test_a_run_shorter_than_an_interval_validates_once() -> None:
    found = horizon(800, rows=8, epochs=1, steps=3, evaluate_every=5)
    assert [done for done in (1, 2, 3) if found.validates(done)] == [3]
