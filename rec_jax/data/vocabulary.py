"""Ids of any kind -> dense codes in order of first appearance, built while reading."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from rec_jax.errors import InputError

TABLE_LIMIT = 1 << 27  # integer ids below it are looked up in an array, others by a hash join


class Vocabulary:
    """Codes 0, 1, ... for ids, in the order in which `encode` first meets them.

    Integer ids of moderate size take an array look-up; any others a hash join per block, whose
    cost is the size of the vocabulary, so that blocks should be large.
    """

    def __init__(self, kind: str, known: pl.Series | None = None) -> None:
        """kind: "user" or "item", for messages. known: ids as text, which have the first codes;
        all ids are taken as text then."""
        self.kind = kind
        self._as_text = known is not None
        self.size = 0
        self._dtype: pl.DataType | None = None
        self._parts: list[pl.Series] = []
        self._table: npt.NDArray[np.int32] | None = np.zeros(1 << 16, np.int32)  # code + 1
        self._known: pl.DataFrame | None = None
        if known is not None:
            self.encode(known)

    def encode(self, ids: pl.Series, source: str = "another") -> npt.NDArray[np.int32]:
        """Codes of `ids` (Int64, Int128 or String, no nulls): int32 [n]. source: their file.

        Raises:
          InputError: ids are numbers in one file and text in another, or there are 2^31 of them.
        """
        if not len(ids):
            return np.zeros(0, np.int32)
        if self._as_text:
            ids = ids.cast(pl.String)
        if self._dtype is None:
            self._dtype = ids.dtype
        if ids.dtype != self._dtype and {ids.dtype, self._dtype} == {pl.Int64, pl.Int128}:
            ids = self._widened(ids)
        if ids.dtype != self._dtype:
            raise InputError(f"{self.kind} ids are {self._dtype} in one file and {ids.dtype} in "
                             f"{source}; expected one type")
        if self._table is not None and not self._fits_table(ids):
            self._table = None
            self._known = self._frame(self._parts, 0) if self._parts else None
        return self._by_table(ids) if self._table is not None else self._by_join(ids)

    def ids(self) -> pl.Series:
        """All ids as text, by code."""
        return self.typed_ids().cast(pl.String)

    def typed_ids(self) -> pl.Series:
        """All ids in their own type, by code."""
        if not self._parts:
            return pl.Series("id", [], pl.String)
        return pl.concat(self._parts).alias("id")

    def _widened(self, ids: pl.Series) -> pl.Series:
        """`ids` as Int128, and all known ones too."""
        if self._dtype == pl.Int64:
            self._dtype = pl.Int128()
            self._parts = [part.cast(pl.Int128) for part in self._parts]
            self._table = None
            self._known = self._frame(self._parts, 0) if self._parts else None
        return ids.cast(pl.Int128)

    def _fits_table(self, ids: pl.Series) -> bool:
        if ids.dtype != pl.Int64:
            return False
        low, high = ids.min(), ids.max()
        return isinstance(low, int) and isinstance(high, int) and low >= 0 and high < TABLE_LIMIT

    def _by_table(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        table = self._table
        assert table is not None
        values = ids.to_numpy()
        top = int(values.max())
        if top >= len(table):
            # zeros cost no memory until touched
            grown = np.zeros(min(TABLE_LIMIT, max(2 * len(table), top + 1)), np.int32)
            grown[:len(table)] = table
            self._table = table = grown
        codes = table[values]
        if not codes.all():
            fresh = pl.Series(values[codes == 0]).unique(maintain_order=True)
            first = self._append(fresh)
            table[fresh.to_numpy()] = np.arange(first + 1, self.size + 1, dtype=np.int32)
            codes = table[values]
        return codes - np.int32(1)

    def _by_join(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        if self._known is None:
            self._known = self._frame([ids.clear()], 0)
        frame = ids.to_frame("id")
        codes = frame.join(self._known, on="id", how="left", maintain_order="left")["code"]
        missing = codes.is_null()
        if not missing.any():
            return codes.to_numpy()
        unknown = ids.filter(missing)
        fresh = unknown.unique(maintain_order=True)
        added = self._frame([fresh], self._append(fresh))
        self._known = pl.concat([self._known, added])
        new = unknown.to_frame("id").join(added, on="id", how="left", maintain_order="left")
        result = codes.fill_null(0).to_numpy(writable=True)
        result[missing.to_numpy()] = new["code"].to_numpy()
        return result

    def _append(self, fresh: pl.Series) -> int:
        first = self.size
        if first + len(fresh) >= 1 << 31:
            raise InputError(f"more than 2^31 - 1 different {self.kind} ids")
        self._parts.append(fresh.alias("id"))
        self.size += len(fresh)
        return first

    @staticmethod
    def _frame(parts: list[pl.Series], first: int) -> pl.DataFrame:
        ids = pl.concat([part.alias("id") for part in parts])
        codes = pl.int_range(first, first + len(ids), dtype=pl.Int32, eager=True)
        return pl.DataFrame({"id": ids, "code": codes})
