"""What a run trains on that goes on when its dataset has grown (`rec_jax.data.appended`).

Of every user the interactions count as targets that were not in the training part before the
append: those of the new period, and those that had been held out and are no longer. Older ones are
read as their history. Of some users, drawn by the seed, all interactions are targets again, so that
what was learned of them is not forgotten (replay).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class ContinualConfig:
    """Where a run goes on, when its dataset was appended to.

    run: folder of the run that it goes on from.
    step: of its checkpoint.
    replay: share of the users of before whose whole histories are trained on again, each by its own
      coin; 0: new interactions alone; 1: everything.
    """

    run: str
    step: int
    replay: float = 0.1

    def __post_init__(self) -> None:
        check(self, "continual.", step=at_least(0), replay=at_least(0, 1))


def first_targets(dataset: Dataset, config: ContinualConfig, seed: int) -> npt.NDArray[np.int64]:
    """Absolute position of the first interaction of each user that counts as a target, int64 `[U]`.

    Raises:
      InputError: nothing was appended to another dataset.
    """
    if dataset.old_train_end is None:
        raise InputError(f"{dataset.folder} was not appended to a dataset; expected one made by "
                         "`rec-jax prepare --append` for a run that goes on")
    replayed = np.random.default_rng(seed).random(dataset.num_users) < config.replay
    return np.where(replayed, dataset.offsets[:-1], dataset.old_train_end)
