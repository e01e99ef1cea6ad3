"""The recipe of a dataset folder for the machine that this runs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from rec_jax.data.dataset import Dataset
from rec_jax.devices import CHIPS, this_machine
from rec_jax.errors import InputError
from rec_jax.plan.recipe import Machine, Recipe, recipe_of, to_toml
from rec_jax.plan.statistics import statistics_of
from rec_jax.progress import reporter_of
from rec_jax.run import RunConfig


def suggest_config(data: Path | str) -> str:
    """A whole config for the dataset in folder `data`, as TOML with the reason of each setting,
    from its statistics and this machine (docs/recipe.md). `train(data=...)` has the same.

    Raises:
      InputError: there is no dataset in the folder, or it is too small to learn from.
    """
    return to_toml(suggest(data))


def suggested(data: str, overrides: Sequence[str], alone: bool, progress: bool) -> RunConfig:
    """That config for a training, which says so, with lines such as `train.rows=8` laid over it.

    alone: no config is given, and no run to resume.

    Raises:
      InputError: as `suggest_config`, or `data` is not alone.
    """
    if not alone:
        raise InputError("data is the dataset of a run without a config, or of one that goes on "
                         "from another; expected continue_from, or data.path in the config")
    found = suggest(data).config(overrides)
    with reporter_of("train", progress) as reporter:
        reporter.say(f"no CONFIG: the run has that of `rec-jax config suggest {data}`"
                     + (" and --set" if overrides else ""))
    return found


def suggest(dataset: Path | str) -> Recipe:
    """The recipe for a prepared dataset.

    Raises:
      InputError: there is no dataset in the folder, or it is too small.
    """
    return recipe_of(statistics_of(Dataset.open(dataset)), machine_here(), str(dataset))


def machine_here() -> Machine:
    """The first device: an accelerator that is not known by name has the rate of the slowest, and
    one that does not say its memory has that of the smallest."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        chip = this_machine()
        return Machine(chip.memory, chip.f32)
    kind = device.device_kind.lower()
    known = [chip for name, chip in CHIPS.items() if name in kind]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    least = min(chip.memory for chip in known or CHIPS.values())
    return Machine(float(limit or least), min(chip.f32 for chip in known or CHIPS.values()))
