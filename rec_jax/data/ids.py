"""Ids of users and items, as a file has them -> whole numbers or text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.errors import InputError

_EXACT_BITS: dict[type[pl.DataType], int] = {pl.Float64: 53, pl.Float32: 24}
"""Floats are exact for whole numbers of up to so many bits."""
_MISSING = ("NA", "N/A", "#N/A", "<NA>", "NULL", "null", "Null", "(null)", "None", "none", "NaN",
            "nan", "\\N")


def parse_ids(values: pl.Series, role: str, file: str) -> pl.Series:
    """Int64, Int128 (where the column can hold more than int64) or text; null where empty."""
    kind = values.dtype
    if isinstance(kind, pl.Decimal):
        whole = values.cast(pl.Int128, strict=False)
        if (whole.cast(pl.String) != values.cast(pl.String).str.replace(r"\.0*$", "")).any():
            raise InputError(f"{file}: {role} ids are fractions; expected whole numbers "
                             "or text")
        return _smallest_int(whole, role, file)
    if kind.is_integer():
        return _smallest_int(values, role, file)
    if kind.is_float():  # integers with gaps, as pandas writes them
        bits = _EXACT_BITS.get(type(kind), 11)
        values = values.cast(pl.Float64).fill_nan(None)
        if (values.abs() >= 2.0**bits).any():
            raise InputError(f"{file}: {role} ids are floats of 2^{bits} or more, which are not "
                             "told apart; expected integers or text")
        whole = values.cast(pl.Int64, strict=False)
        if (whole.cast(pl.Float64) != values).any():
            raise InputError(f"{file}: {role} ids are fractions; expected integers or text")
        return whole
    if isinstance(kind, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        empty = values == ""
        return values.set(empty, None) if empty.any() else values
    if kind == pl.Null:
        return values.cast(pl.String)
    raise InputError(f"{file}: {role} ids have type {kind}; expected integers or text")


def id_text(values: pl.Series, file: str) -> pl.Series:
    """Ids of items in another file, as text: equal where those of the interactions are.

    Raises:
      InputError: ids of a type that none have.
    """
    return parse_ids(values, "item", file).cast(pl.String)


def missing_ids(ids: pl.Series, role: str, counts: npt.NDArray[np.int64]) -> list[str]:
    """Lines of ids that look like a missing value as R, pandas or a database writes it: all such
    rows are those of one user or item.

    ids: text `[n]`; counts: interactions of each, `[n]`.
    """
    places = ids.is_in(list(_MISSING)).arg_true().to_list()
    return [f"{role} {ids[place]!r} has {counts[place]} interactions: where that stands for a "
            "missing id, they are not those of one " + role for place in places]


def _smallest_int(whole: pl.Series, role: str, file: str) -> pl.Series:
    if whole.dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return whole.cast(pl.Int64)
    narrow = whole.cast(pl.Int64, strict=False)
    if narrow.null_count() == whole.null_count():
        return narrow
    wide = whole.cast(pl.Int128, strict=False)
    if wide.null_count() > whole.null_count():
        raise InputError(f"{file}: {role} ids are numbers above 2^127; expected smaller ones, "
                         "or text")
    return wide
