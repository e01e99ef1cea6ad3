"""How a table is updated: chosen from sizes, with the reason in words."""

from __future__ import annotations

from typing import Literal, NamedTuple

from rec_jax.errors import InputError
from rec_jax.tables.table import TableConfig, padded_size

Mode = Literal["dense", "sparse", "streamed"]

DENSE_VALUES = 2**24
"""Most values of the table, or of both, whose gradient is made as an array: 64 MiB in f32, and
twice that in moments."""


class Choice(NamedTuple):
    """mode, and reason: one clause for the log."""

    mode: Mode
    reason: str


def choose_update(config: TableConfig, *, num_items: int, touched: int | None,
                  clips_global_norm: bool = False) -> Choice:
    """The update mode of a table, or of both where they are untied.

    Args:
      touched: most rows that a step can touch (inputs, targets and negatives of the whole
        batch), or None where the objective gives every row a gradient (full softmax).
      clips_global_norm: the optimizer clips by the norm of the whole gradient.

    Raises:
      InputError: the mode that is asked for cannot do what the objective or the clipping needs.
    """
    rows = padded_size(num_items) * (1 if config.tied else 2)
    values = rows * config.dim
    if config.update == "auto":
        choice = _by_size(rows, values, touched)
    else:
        choice = Choice(config.update, "table.update asks for it")
    if choice.mode == "sparse" and touched is None:
        raise InputError("table.update = 'sparse' cannot train the full softmax, which gives "
                         "every row a gradient; expected 'dense' or 'streamed'")
    if choice.mode == "streamed" and touched is not None:
        raise InputError("table.update = 'streamed' needs the full softmax; a sampled objective "
                         "touches few rows: expected 'sparse' or 'dense'")
    if choice.mode != "dense" and clips_global_norm:
        raise InputError(
            f"optimizer.clip needs the norm of the whole gradient, which a table updated in one "
            f"pass ({choice.mode}: {choice.reason}) never has; expected table.optimizer.clip (norm "
            f"of one row) or table.update = 'dense'")
    return choice


def _by_size(rows: int, values: int, touched: int | None) -> Choice:
    if values <= DENSE_VALUES:
        return Choice("dense", f"{rows} rows make a gradient of {values * 4 / 2**20:.3g} MiB, "
                               f"at most {DENSE_VALUES * 4 / 2**20:.3g} MiB is held")
    if touched is None:
        return Choice("streamed", f"every row has a gradient, and all of them would take "
                                  f"{values * 4 / 2**20:.3g} MiB")
    return Choice("sparse", f"a step touches at most {min(touched, rows)} of {rows} rows")


def optimizer_of(config: TableConfig, mode: Mode) -> str:
    """Section and kind of the optimizer that moves the rows in `mode`."""
    return "optimizer (adam)" if mode == "dense" else f"table.optimizer ({config.optimizer.kind})"


def trained_by(config: TableConfig, mode: Mode) -> str:
    """One clause for the log: past `DENSE_VALUES` the rows have another optimizer than those of a
    smaller catalogue, though nobody asked for it."""
    clause = f"its rows train by {optimizer_of(config, mode)}"
    if mode == "dense" or config.update != "auto":
        return clause
    return f"{clause}, not by the optimizer of tables up to {DENSE_VALUES:,} values"
