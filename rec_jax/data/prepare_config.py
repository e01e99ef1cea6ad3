"""What `prepare` can be told: where the interactions are, what their columns mean, what to keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rec_jax.errors import InputError
from rec_jax.ranges import Range, at_least, between, check

Format = Literal["auto", "csv", "tsv", "parquet", "pairs", "lists"]
SECONDS = Range(-(2**38), 2**38)
"""Instants: some 8,000 years to both sides of 1970."""


def check_escape(escape: str | None) -> None:
    """Raises InputError unless it is a backslash, nothing, or none."""
    if escape not in (None, "", '"', "\\"):
        raise InputError(f"escape is {escape!r}; expected a backslash, or \"\" for quotes that "
                         "are doubled")


@dataclass(frozen=True)
class Columns:
    """Names of the source's columns; `name:type` headers go by the part before the colon.

    user, item: of the ids.
    time: orders a user's interactions; none: the order of the file does.
    rating: a number of each interaction, such as stars; none: there is none.
    time_unit: of numeric times. auto: found where the numbers are of the years 1990 to 2100 in
      one unit only, and asked for where they are not; small numbers, such as 0, 1, 2, are
      seconds. YYYYMMDD: days, such as 20240131.
    event: its type, such as view, cart or purchase, kept where it is given (docs/events.md).
    query: the text of a search; a row that has one, and no item, is a query (docs/events.md).
    time_format: of dates as text (`strptime`); none: ISO 8601, with or without an offset, and
      without one in UTC.

    Ids are taken as they stand: text with its spaces and zeros, whole numbers as their digits. An
    empty one is none.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None
    event: str | None = None
    query: str | None = None
    time_unit: Literal["auto", "s", "ms", "us", "ns", "YYYYMMDD"] = "auto"
    time_format: str | None = None

    def __post_init__(self) -> None:
        check(self, "columns.")
        if self.user == self.item:
            raise InputError(f"columns.user and columns.item are both {self.user!r}; expected two "
                             "columns")
        if self.query in (self.user, self.item):
            raise InputError(f"columns.query is {self.query!r}, which is the column of the user or "
                             "of the item; expected a column of texts")


@dataclass(frozen=True)
class ItemFile:
    """A file that describes items, joined to the vocabulary by id.

    path: CSV, TSV or Parquet with a header (see `names` for files without one).
    id: its column of item ids.
    title, text: its columns of the title, and of further text; without them none is kept.
    names: column names in order, for a file without a header; empty: the first line is one.
    separator: between fields; none: by the file's suffix.
    encoding, quote, escape: as in `PrepareConfig`.
    """

    path: str
    id: str = "item_id"
    title: str | None = None
    text: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    separator: str | None = None
    encoding: str = "utf-8"
    quote: bool | None = None
    escape: str | None = None

    def __post_init__(self) -> None:
        check_escape(self.escape)


@dataclass(frozen=True)
class ItemFeature:
    """A categorical attribute of the items, kept for models that read it.

    It is read from the item file if there is one, and otherwise from the interactions, where the
    first row of an item that has a value counts.

    column: whose text is the category; empty: `flags` are given instead.
    name: what it is called from here on; none: as the column.
    separator: between the values of a field that has several, of which the first eight are kept;
      none: the field is one value.
    flags: columns that hold 1 (or true) where an item is of the category that they are named by.
    """

    column: str = ""
    name: str | None = None
    separator: str | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.column) == bool(self.flags):
            raise InputError("an item feature needs a column, or flags, and not both")
        if self.separator == "" or (self.separator and self.flags):
            raise InputError(f"item feature {self.label!r}: expected a separator of at least one "
                             "character, and none where there are flags")
        if not re.fullmatch(r"\w[\w-]*", self.label):
            raise InputError(f"item feature {self.label!r} needs a `name` of letters, digits, "
                             "'_' and '-'")

    @property
    def label(self) -> str:
        """Its name."""
        return self.column if self.name is None else self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read for it."""
        return self.flags or (self.column,)


@dataclass(frozen=True)
class Filters:
    """What is kept. Order: rating, duplicates, cores.

    min_rating: interactions below it are dropped.
    duplicates: of a (user, item) pair that occurs more than once, keep all, the first or the
      last in time order.
    user_core, item_core: users with fewer interactions and items with fewer interactions are
      dropped, again and again until nothing changes (k-core).
    """

    min_rating: float | None = None
    duplicates: Literal["all", "first", "last"] = "all"
    user_core: int = 1
    item_core: int = 1

    def __post_init__(self) -> None:
        check(self, "filters.", user_core=at_least(1), item_core=at_least(1))


@dataclass(frozen=True)
class SplitConfig:
    """How each user's history is cut into train, validation and test.

    kind: `leave_one_out`: the last item is the test target, the one before it the validation
      target; users with fewer than three items only train, as in SASRec (Kang and McAuley, 2018).
      `time`: two instants for everybody: train < valid_time <= validation < test_time <= test.
      `random`: every interaction is of a part by chance, whatever its time, and times are not kept:
      for models that know no order.
    valid_time, test_time: of a split by time, seconds; none: the quantiles.
    valid_quantile, test_quantile: of all interactions' times, where no instants are given.
    valid_share, test_share: of a random split, about, of all interactions.
    seed: of a random split.
    event: of leave_one_out: the last two events of this type are the targets, after all that came
      before them, and what a user did after the last one is of the test part; users with fewer than
      two only train.
    """

    kind: Literal["leave_one_out", "time", "random"] = "leave_one_out"
    valid_quantile: float = 0.8
    test_quantile: float = 0.9
    valid_time: int | None = None
    test_time: int | None = None
    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    event: str | None = None

    def __post_init__(self) -> None:
        if self.event is not None and self.kind != "leave_one_out":
            raise InputError(f"split.event is of a split that leaves one out, and split.kind is "
                             f"{self.kind!r}; expected leave_one_out")
        check(self, "split.", valid_quantile=between(0, 1), test_quantile=between(0, 1),
              valid_time=SECONDS, test_time=SECONDS, valid_share=between(0, 1),
              test_share=between(0, 1), seed=at_least(0, 2**32 - 1))
        if not self.valid_share + self.test_share < 1.0:
            raise InputError(f"split shares are {self.valid_share}, {self.test_share}; expected "
                             "a sum below 1, so that something is left to train on")
        if not 0.0 < self.valid_quantile <= self.test_quantile < 1.0:
            raise InputError(f"split quantiles are {self.valid_quantile}, {self.test_quantile}; "
                             "expected 0 < valid_quantile <= test_quantile < 1")
        if (self.valid_time is None) != (self.test_time is None):
            raise InputError("split.valid_time and split.test_time must be given together")
        if (self.valid_time is not None and self.test_time is not None
                and self.valid_time > self.test_time):
            raise InputError(f"split.valid_time = {self.valid_time} comes after "
                             f"split.test_time = {self.test_time}")


@dataclass(frozen=True)
class Withheld:
    """Items that training never sees, to measure what is recommended of new ones.

    share: of the items, whose interactions leave every part of the split and are kept beside it.
    seed: which ones.
    """

    share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "withheld.", share=Range(0, 1, high_open=True), seed=at_least(0, 2**32 - 1))


@dataclass(frozen=True)
class PrepareConfig:
    """A whole `prepare` job.

    source: a file, a folder of files (as Spark and pandas write them, with their `key=value`
      folders as columns) or a glob, or several of these that are read one after the other.
    out: dataset folder to make; it must not exist, unless `overwrite`.
    format: `pairs` is one "user item" pair a line, `lists` a user a line ("user item item
      ..."), both without header; csv, tsv and parquet have named columns. Text files may be
      compressed (.gz, .bz2, .xz, .zst). auto: by the suffix.
    separator, quote, encoding: of text files; none: by the format.
    escape: what stands before a quote inside quotes, such as a backslash (Spark); "": quotes are
      doubled there; none: a backslash, if the file cannot be read otherwise. Without quotes, it
      stands before separators and line ends that are part of a field.
    names: column names in order, for a text file without a header.
    item_features: categorical attributes of the items that are kept, see `ItemFeature`. Times and
      (at most 255 different) ratings are kept wherever their columns are given.
    max_bad_share: rows that cannot be read (a field missing, a number unparsable) are counted
      and skipped; more than this share of them stops the job.
    memory_rows: rows sorted in memory at once; it bounds memory, not the result.
    overwrite: whether a dataset in `out` is replaced.
    append: a dataset to which the interactions are added in a new one: ids of users and items keep
      their numbers there, and new ones come behind them; see `rec_jax.data.appended`.
    """

    source: str | tuple[str, ...]
    out: str
    format: Format = "auto"
    columns: Columns = field(default_factory=Columns)
    separator: str | None = None
    quote: bool | None = None
    encoding: str = "utf-8"
    escape: str | None = None
    names: tuple[str, ...] = ()
    item_file: ItemFile | None = None
    item_features: tuple[ItemFeature, ...] = ()
    filters: Filters = field(default_factory=Filters)
    split: SplitConfig = field(default_factory=SplitConfig)
    withheld: Withheld = field(default_factory=Withheld)
    max_bad_share: float = 0.01
    memory_rows: int = 8_000_000
    overwrite: bool = False
    append: str | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("source is empty; expected at least one file")
        check_escape(self.escape)
        check(self, "", max_bad_share=at_least(0, 1), memory_rows=at_least(1, 2**40))
        if self.columns.query is not None and self.split.kind == "random":
            raise InputError("columns.query: a split by chance knows no order, in which a query "
                             "would stand; expected split.kind leave_one_out or time")
        if self.split.event is not None and self.columns.event is None:
            raise InputError("split.event needs columns.event")
        if self.filters.min_rating is not None and self.columns.rating is None:
            raise InputError("filters.min_rating needs columns.rating")
        labels = [feature.label for feature in self.item_features]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"item feature {label!r} is given twice; expected different names")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)
