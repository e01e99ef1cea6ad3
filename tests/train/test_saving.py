"""What a save may take while the training goes on."""

from __future__ import annotations

import math

import pytest

from rec_jax.errors import InputError
from rec_jax.run_sections import CheckpointConfig
from rec_jax.train.saving import growth_bytes, moving_share


def test_a_frozen_state_may_grow_as_the_config_says() -> None:
    assert growth_bytes(CheckpointConfig()) == math.inf
    assert growth_bytes(CheckpointConfig(growth_mib=0)) == 0
    assert growth_bytes(CheckpointConfig(growth_mib=3)) == 3 * 2**20
    with pytest.raises(InputError, match=r"checkpoint\.growth_mib is -1; expected at least 0"):
        CheckpointConfig(growth_mib=-1)


def test_all_of_a_state_moves_but_where_updates_are_sparse() -> None:
    assert moving_share("dense") == moving_share("streamed") == 1
    assert 0 < moving_share("sparse") < 1
