"""The folder of a new run stays where what was asked fits, and is no run where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from rec_jax import config
from rec_jax.checkpoint import Checkpoints
from rec_jax.errors import InputError
from rec_jax.run import Run, RunConfig
from rec_jax.run_sections import DataConfig
from rec_jax.train.growing import Start
from rec_jax.train.loop import run_training
from rec_jax.train.new_run import new_run

Mapping = Callable[..., dict[str, Any]]
SETTINGS = RunConfig(DataConfig("none"))


@pytest.mark.parametrize(("error", "saved", "stays"), [
    (InputError, False, False), (InputError, True, True), (RuntimeError, False, True),
    (KeyboardInterrupt, False, True)])
def test_a_folder_without_a_checkpoint_is_no_run_after_bad_input(
        error: type[BaseException], saved: bool, stays: bool, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(error, match="why"), new_run(run, SETTINGS):
        assert run.config_path.exists()
        with Checkpoints(run.checkpoints) as checkpoints:
            if saved:
                checkpoints.save(1, {"model": {"x": jnp.zeros(2)}}, {})
        raise error("why")
    assert run.config_path.exists() == stays
    if not stays:
        run.check_free()


def test_what_a_run_cannot_start_from_leaves_none_that_starts_from_nothing(
        tiny_mapping: Mapping, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match="nowhere is not a run"):
        run_training(run, config.build(RunConfig, tiny_mapping()), new=True,
                     start=Start(Run(tmp_path / "nowhere")))
    assert not run.config_path.exists()
    run.check_free()
