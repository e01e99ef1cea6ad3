"""Attributes of items and ratings are kept as a plain loop would keep them, or refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax.data import delimited
from rec_jax.data.dataset import Dataset
from rec_jax.data.item_features import MOST_VALUES
from rec_jax.data.prepare import Columns, Filters, ItemFeature, ItemFile, PrepareConfig, prepare
from rec_jax.data.public_datasets import PUBLIC_DATASETS
from rec_jax.errors import InputError

LOG = "user,item,stars,kind\na,x,4,red\na,y,2.5,\nb,y,4,blue\nb,z,1,red\nb,w,5,red\n"
FILMS = "item,genres,year\nx,Drama|Comedy|Drama,1990\ny,,1991\nz, Comedy ,\nq,War,1990\n"


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Prepare `LOG` with `FILMS` beside it."""
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "films.csv").write_text(FILMS)

    def go(*features: ItemFeature, films: bool = True, **settings: Any) -> Dataset:
        given = {"columns": Columns("user", "item", rating="stars"), **settings}
        prepare(PrepareConfig(
            source=str(tmp_path / "log.csv"), out=str(tmp_path / "made"), overwrite=True,
            item_file=ItemFile(str(tmp_path / "films.csv"), id="item") if films else None,
            item_features=features, **given))
        return Dataset.open(tmp_path / "made")

    return go


def categories(dataset: Dataset, name: str) -> dict[str, list[str]]:
    """The values of each item, as text."""
    vocab = pl.read_parquet(dataset.folder / "item_features" / f"{name}.parquet")
    assert vocab["code"].to_list() == list(range(1, dataset.categories(name) + 1))
    names = ["", *vocab["value"]]
    assert vocab["items"].to_list() == sorted(vocab["items"], reverse=True)
    return {item: [names[code] for code in codes if code] for item, codes in
            zip(dataset.item_ids(), dataset.item_features[name].tolist(), strict=True)}


def test_a_column_of_the_item_file_is_one_value_or_several(make: Any) -> None:
    dataset = make(ItemFeature("genres", separator="|"), ItemFeature("year", name="when"))
    assert categories(dataset, "genres") == {
        "x": ["Drama", "Comedy"], "y": [], "z": ["Comedy"], "w": []}
    assert categories(dataset, "when") == {"x": ["1990"], "y": ["1991"], "z": [], "w": []}
    assert dataset.item_features["genres"].shape == (4, 2)
    assert dataset.item_features["when"].shape == (4, 1)
    assert dataset.item_features["genres"].dtype == np.int32
    whole = make(ItemFeature("genres"))
    assert categories(whole, "genres")["x"] == ["Drama|Comedy|Drama"]


def test_a_column_of_the_interactions_gives_an_items_first_value(
        make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"x": ["red"], "y": ["blue"], "z": ["red"], "w": ["red"]}
    assert categories(make(ItemFeature("kind"), films=False), "kind") == expected
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 16)  # as one that does not fit in memory
    assert categories(make(ItemFeature("kind"), films=False), "kind") == expected


def test_flags_name_the_categories(make: Any, tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("item,new,old\nx,1,0\ny,1,1\nz,0,0\n")
    dataset = make(ItemFeature(name="age", flags=("old", "new")))
    assert categories(dataset, "age") == {"x": ["new"], "y": ["old", "new"], "z": [], "w": []}


def test_only_the_first_values_are_kept(make: Any, tmp_path: Path) -> None:
    values = [f"v{number}" for number in range(12)]
    (tmp_path / "films.csv").write_text(f"item,all\nx,{'|'.join(values)}\ny,v11\n")
    found = categories(make(ItemFeature("all", separator="|")), "all")
    assert found["x"] == values[:MOST_VALUES] and found["y"] == ["v11"]


@pytest.mark.parametrize("seed", [0, 1])
def test_many_items_are_coded_as_by_a_loop(make: Any, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    tags = {f"i{item}": [f"t{tag}" for tag in random.integers(0, 9, random.integers(0, 4))]
            for item in range(60)}
    lines = [f"u,i{item},1,k" for item in random.permutation(80)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,stars,kind", *lines]))
    (tmp_path / "films.csv").write_text("\n".join(
        ["item,tags", *(f"{item},{' '.join(own)}" for item, own in tags.items())]))
    dataset = make(ItemFeature("tags", separator=" "))
    expected = {f"i{item}": list(dict.fromkeys(tags.get(f"i{item}", ()))) for item in range(80)}
    assert categories(dataset, "tags") == expected
    count = Counter(tag for own in expected.values() for tag in own)
    order = sorted(count, key=lambda tag: (-count[tag], tag))
    found = pl.read_parquet(dataset.folder / "item_features" / "tags.parquet")
    assert found["value"].to_list() == order


def test_ratings_stand_beside_the_items_in_time_order(make: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,stars,t\na,x,4,9\nb,x,1,3\na,y,2.5,4\na,x,5,1\nb,z,4,2\nb,w,x,2\n")
    columns = Columns("user", "item", "t", "stars")
    dataset = make(columns=columns, max_bad_share=0.5, memory_rows=2)
    assert dataset.rating_values == [1.0, 2.5, 4.0, 5.0]
    assert dataset.ratings is not None and dataset.ratings.dtype == np.uint8
    ids = dataset.item_ids().to_list()
    assert [(ids[item], dataset.rating_values[code - 1]) for item, code in
            zip(dataset.items, dataset.ratings.tolist(), strict=True)] == [
                ("x", 5), ("y", 2.5), ("x", 4), ("z", 4), ("x", 1)]
    last = make(columns=columns, max_bad_share=0.5, filters=Filters(duplicates="last"))
    assert last.ratings is not None and last.ratings.tolist() == [2, 3, 3, 1]


def test_too_many_ratings_are_not_kept(make: Any, tmp_path: Path) -> None:
    for count, kept in ((255, True), (256, False)):
        (tmp_path / "log.csv").write_text("user,item,stars\n" + "".join(
            f"u,i{n},{n / 7}\n" for n in range(count)))
        dataset = make()
        assert (dataset.ratings is not None) == kept == bool(dataset.rating_values)


def test_the_split_hash_covers_what_is_kept(make: Any, tmp_path: Path) -> None:
    plain = Columns("user", "item")
    kind, genres = ItemFeature("kind"), ItemFeature("genres", separator="|")
    hashes = [make(columns=plain).split_hash, make().split_hash, make(genres).split_hash,
              make(kind, films=False).split_hash, make(genres, columns=plain).split_hash]
    (tmp_path / "films.csv").write_text(FILMS.replace("Comedy", "Farce"))
    hashes.append(make(genres).split_hash)  # the same codes with another meaning
    (tmp_path / "log.csv").write_text(LOG.replace("x,4,red", "x,5,red"))
    hashes.append(make().split_hash)
    assert len(set(hashes)) == len(hashes)
    assert make(columns=plain).split_hash == hashes[0]


def test_a_folder_of_before_there_were_any_opens(make: Any) -> None:
    dataset = make()
    path = dataset.folder / "meta.json"
    meta = json.loads(path.read_text())
    del meta["ratings"], meta["item_features"], meta["files"], meta["checksum"]
    path.write_text(json.dumps(meta))
    old = Dataset.open(dataset.folder)
    assert old.ratings is None and not old.item_features and not old.rating_values


def test_codes_that_are_cut_short_are_refused(make: Any) -> None:
    dataset = make(ItemFeature("year"))
    np.save(dataset.folder / "item_features" / "year.npy", np.zeros((3, 1), np.int32))
    with pytest.raises(InputError, match=r"year.npy holds int32 \[3, 1\], expected int32 \[4, 1\]"):
        Dataset.open(dataset.folder)


@pytest.mark.parametrize(("feature", "films", "message"), [
    (ItemFeature("genre"), True, "films.csv has no column 'genre'; it has 'item', 'genres'"),
    (ItemFeature("color"), False, "log.csv has no column 'color'"),
    (ItemFeature(name="age", flags=("old", "year")), True, "has no column 'old'"),
    (ItemFeature(name="none", flags=("year",)), True, "'none': no item of the data set has"),
])
def test_a_bad_column_is_named(make: Any, feature: ItemFeature, films: bool,
                               message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(feature, films=films)


def test_too_many_categories_are_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.item_features.MOST_CATEGORIES", 1)
    with pytest.raises(InputError, match="'year' has 2 categories; expected at most 1"):
        make(ItemFeature("year"))


def test_a_format_without_columns_needs_an_item_file(make: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("u x y\n")
    with pytest.raises(InputError, match="format 'lists' has no columns of items"):
        make(ItemFeature("year"), films=False, format="lists", columns=Columns())
    assert categories(make(ItemFeature("year"), format="lists", columns=Columns()), "year") == {
        "x": ["1990"], "y": ["1991"]}


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "needs a column, or flags"),
    ({"column": "a", "flags": ("b",)}, "needs a column, or flags"),
    ({"column": "a", "separator": ""}, "'a': expected a separator"),
    ({"column": "../a"}, "'../a' needs a `name` of letters"),
    ({"column": "release date"}, "'release date' needs a `name`"),
])
def test_settings_that_make_no_sense_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ItemFeature(**settings)


def test_one_name_stands_for_one_attribute(make: Any) -> None:
    with pytest.raises(InputError, match="item feature 'year' is given twice"):
        make(ItemFeature("year"), ItemFeature("genres", name="year"))


@pytest.mark.parametrize("origin", [0, 1])
def test_both_origins_of_a_film_tell_its_genres(origin: int, tmp_path: Path) -> None:
    """The publisher's flags, and the list of words of the package that carries the data."""
    if origin == 0:
        (tmp_path / "u.data").write_text("1\t7\t5\t9\n1\t8\t3\t10\n")
        flags = ["|".join("1" if place in on else "0" for place in range(19))
                 for on in ((5, 16), ())]
        (tmp_path / "u.item").write_text("".join(
            f"{7 + number}|Film {number}|01-Jan-1995||http|{line}\n"
            for number, line in enumerate(flags)))
    else:
        (tmp_path / "ml-100k.inter").write_text(
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t5\t9\n1\t8\t3\t10\n")
        (tmp_path / "ml-100k.item").write_text(
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            "7\tFilm 0\t1995\tComedy Thriller\n8\tFilm 1\t1995\t\n")
    reading = PUBLIC_DATASETS["ml-100k"].origins[origin].reading
    prepare(reading.config(tmp_path, tmp_path / "made"))
    dataset = Dataset.open(tmp_path / "made")
    assert categories(dataset, "genre") == {"7": ["Comedy", "Thriller"], "8": []}
    assert dataset.rating_values == [3.0, 5.0]
