"""The checkpoint of a run that is asked, and the order of its rows."""

from __future__ import annotations

from rec_jax.checkpoint import CheckpointReader, Checkpoints, Damaged, Missing
from rec_jax.checkpoint.older import with_named_tables
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.run import Run
from rec_jax.tables import RowMap
from rec_jax.tables.row_map import read_row_map


def open_checkpoint(folder: Run, step: int | None) -> CheckpointReader:
    """The best checkpoint, or that of `step`, which no process removes while it is read.

    Raises:
      InputError: there is none, or no such step.
    """
    if not folder.checkpoints.is_dir():
        raise InputError(f"run {folder.folder} has no checkpoint yet")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        while True:
            chosen = checkpoints.best() if step is None else step
            if chosen is None:
                raise InputError(f"run {folder.folder} has no checkpoint yet")
            try:
                return with_named_tables(checkpoints.open(chosen))
            except Missing:  # there is no such step, or it was removed since it was chosen
                if step is not None:
                    raise InputError(f"run {folder.folder} has no checkpoint of step {step}; it "
                                     f"has {', '.join(map(str, checkpoints.steps()))}") from None


def row_map_in(opened: CheckpointReader, num_items: int) -> RowMap:
    """From ids of items to rows of a checkpoint; the identity where it is older than row maps.

    num_items: that were trained; the others have rows of their own numbers.

    Raises:
      Damaged: it says nothing usable.
    """
    try:
        return read_row_map(opened.info.extra.get("row_map"), num_items)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"checkpoint {opened.name} says nothing usable of the order of its rows: "
                      f"{type(error).__name__} {error}") from None


def check_dataset(dataset: Dataset, expected: str) -> None:
    """Refuse a dataset whose content is not the one that was trained on."""
    found = dataset.split_hash
    if found != expected:
        raise InputError(f"dataset {dataset.folder} has content hash {found[:12]}, but the run was "
                         f"trained on {expected[:12]}; prepare it as it was, or start a new run")
