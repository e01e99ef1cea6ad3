"""A bias for each item that is given when a model is asked, beside the one that it has.

    score of item j = query . row j + what the model adds + what is given here

Ranks and lists see the same sum, so that metrics are those of the lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError
from rec_jax.inference.served import Served, counts_of
from rec_jax.tables.bias import PRIORS, STRENGTHS, log_popularity, place_bias


@dataclass(frozen=True)
class ItemBias:
    """What is added to the scores of all users.

    values: f32 `[V]` by item number, finite, or -inf for an item that is not to be shown.
    about: what the protocol of numbers says of it.
    """

    values: npt.NDArray[np.float32]
    about: dict[str, Any]


Given = ItemBias | npt.NDArray[Any] | Sequence[float]
"""An `ItemBias`, or its values."""


def given_bias(served: Served, bias: Given | None) -> ItemBias | None:
    """What a caller gave, checked.

    Raises:
      InputError: not one number for each item of the catalogue, or one that is NaN or inf.
    """
    if bias is None:
        return None
    given = bias if isinstance(bias, ItemBias) else None
    count = served.dataset.num_items
    try:
        values = np.asarray(bias.values if isinstance(bias, ItemBias) else bias)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"bias is no array: {error}") from None
    if values.shape != (count,) or values.dtype.kind not in "iuf":
        raise InputError(f"bias is {values.dtype} {list(values.shape)}; expected one number for "
                         f"each of the {count} items, in the order of the dataset")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    wrong = np.flatnonzero(np.isnan(values) | (values == np.inf))
    if wrong.size:
        raise InputError(f"bias of item {wrong[0]} is {values[wrong[0]]:g}; expected a number, or "
                         "-inf for an item that is not to be shown")
    if given is not None:
        return ItemBias(values, given.about)
    content = hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()
    return ItemBias(values, {"kind": "given", "content": content})


def popularity_bias(served: Served, strength: float, prior: float = 1.0) -> ItemBias:
    """`strength` times the log of each item's share of the training labels: popular items come
    first if it is above 0, and rare ones if it is below.

    It is in the units of the loss, as the shares are: the scores that are ranked lack the
    objective's `scale`, and so does what is added to them.

    prior: labels that each item is given beyond its own, so that no share is 0.

    Raises:
      InputError: strength or prior are out of range.
    """
    for name, value, allowed in (("strength", strength, STRENGTHS), ("prior", prior, PRIORS)):
        if not allowed.holds(value):
            raise InputError(f"popularity bias: {name} is {value:g}; expected {allowed}")
    counts = counts_of(served.config, served.dataset)
    scale = getattr(served.config.objective, "scale", 1.0)
    return ItemBias(np.float32(strength / scale) * log_popularity(counts, prior),
                    {"kind": "popularity", "strength": strength, "prior": prior})


def bias_of_rows(served: Served, added: ItemBias | None,
                 barred: npt.NDArray[np.bool_] | None = None) -> jax.Array | None:
    """All that is added to scores: f32 `[V_padded]`, cut as the model's rows; None: nothing.

    barred: bool `[V]`, items that do not compete.
    """
    if added is None and barred is None:
        return served.bias
    placed = place_bias(served.rows.shape[0], served.mesh, barred=barred, over=served.over,
                        values=None if added is None else added.values)
    return placed if served.bias is None else served.bias + placed
