"""Interactions of many shapes become the dataset that a plain loop would make."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rec_jax import config
from rec_jax.data import prepare as prepare_module
from rec_jax.data.arrays import CHUNK_ROWS
from rec_jax.data.dataset import Dataset
from rec_jax.data.prepare import (
    Columns,
    Filters,
    ItemFile,
    PrepareConfig,
    Report,
    SplitConfig,
    prepare,
)
from rec_jax.errors import InputError

TIMED = Columns("user", "item", "time")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Prepare a text (or bytes) written to `name`; returns the report and the dataset."""

    def go(text: str | bytes, name: str = "log.csv", **settings: Any) -> tuple[Report, Dataset]:
        source = tmp_path / name
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        settings = {"columns": Columns("user", "item"), "out": str(tmp_path / "made"),
                    "overwrite": True, **settings}
        report = prepare(PrepareConfig(source=str(source), **settings))
        return report, Dataset.open(settings["out"])

    return go


def histories(dataset: Dataset) -> dict[str, list[str]]:
    ids = dataset.item_ids().to_list()
    return {user: [ids[item] for item in dataset.history(index)]
            for index, user in enumerate(dataset.user_ids())}


def test_unsorted_times_are_sorted_and_ties_keep_the_order_of_the_file(run: Any) -> None:
    _, dataset = run("user,item,time\na,x,5\nb,y,1\na,y,3\na,z,5\na,w,3\nb,x,1\n", columns=TIMED)
    assert histories(dataset) == {"a": ["y", "w", "x", "z"], "b": ["y", "x"]}
    assert dataset.times is not None
    assert dataset.times.tolist() == [3, 3, 5, 5, 1, 1]


def test_without_times_the_order_of_the_file_counts(run: Any) -> None:
    _, dataset = run("item,user\nx,a\ny,b\ny,a\n")
    assert histories(dataset) == {"a": ["x", "y"], "b": ["y"]}
    assert dataset.times is None


def test_items_are_numbered_by_falling_training_count(run: Any) -> None:
    # t is the most frequent item, but only as last or last but one
    lines = [f"{user} {items}" for user, items in enumerate(
        ["a b b t t", "b a b t t", "b c b t t"])]
    _, dataset = run("\n".join(lines), "log.txt", format="lists", columns=Columns())
    assert dataset.item_ids().to_list() == ["b", "a", "c", "t"]
    assert dataset.popularity().tolist() == [6, 2, 1, 0]
    counts = pl.read_parquet(dataset.folder / "item_vocab.parquet")["count"].to_list()
    assert counts == [6, 2, 1, 6]


def test_ids_stay_text_with_leading_zeros_and_any_script(run: Any) -> None:
    _, dataset = run("user,item\n007,é\n7,物\n007,0\n00,00\n")
    assert histories(dataset) == {"007": ["é", "0"], "7": ["物"], "00": ["00"]}
    assert dataset.item_index(["物", "00"]).dtype == np.int32
    assert dataset.user_index(["7"]).tolist() == [1]


@pytest.mark.parametrize(("rule", "wanted"), [
    ("all", ["x", "y", "x", "x"]), ("first", ["x", "y"]), ("last", ["y", "x"])])
def test_duplicates(run: Any, rule: Any, wanted: list[str]) -> None:
    report, dataset = run("user,item,time\na,x,4\na,x,1\na,y,2\na,x,3\nb,x,1\n", columns=TIMED,
                          filters=Filters(duplicates=rule))
    assert histories(dataset) == {"a": wanted, "b": ["x"]}
    assert report.duplicates == 4 - len(wanted)


def test_min_rating_drops_rows(run: Any) -> None:
    report, dataset = run("user,item,stars\na,x,4\na,y,2.5\na,z,3\n",
                          columns=Columns("user", "item", rating="stars"),
                          filters=Filters(min_rating=3))
    assert histories(dataset) == {"a": ["x", "z"]}
    assert report.below_min_rating == 1


def plain_core(pairs: list[tuple[str, str]], user_core: int, item_core: int,
               ) -> list[tuple[str, str]]:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        left = [(u, i) for u, i in pairs if users[u] >= user_core and items[i] >= item_core]
        if len(left) == len(pairs):
            return left
        pairs = left


@pytest.mark.parametrize(("user_core", "item_core"), [(3, 4), (5, 1), (1, 6)])
def test_k_core_is_iterated_to_the_end(run: Any, user_core: int, item_core: int) -> None:
    random = np.random.default_rng(5)
    pairs = [(f"u{user}", f"i{item}") for user, item in zip(
        random.integers(0, 60, 260), random.zipf(1.5, 260) % 40, strict=True)]
    text = "user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs)
    report, dataset = run(text, filters=Filters(user_core=user_core, item_core=item_core))
    kept = plain_core(pairs, user_core, item_core)
    assert 0 < len(kept) < len(pairs)
    wanted = defaultdict(list)
    for user, item in kept:
        wanted[user].append(item)
    assert histories(dataset) == wanted
    in_source = list(dict.fromkeys(user for user, _ in pairs if user in wanted))
    assert list(histories(dataset)) == in_source
    assert report.outside_core == len(pairs) - len(kept)


FORMS: dict[str, tuple[str, str | bytes, dict[str, Any]]] = {
    "csv": ("a.csv", 'user,item\n"1","p"\n1,q\n2,"p"\n', {}),
    "csv with a BOM, CRLF and another column": (
        "a.csv", "\ufeffuser,price,item\r\n1,9,p\r\n1,9,q\r\n2,,p\r\n", {}),
    "csv without header": ("a.csv", "1,p\n1,q\n2,p", {"names": ("user", "item")}),
    "tsv": ("a.tsv", "user\titem\n1\tp\n1\tq\n2\tp\n", {}),
    "inter": ("a.inter", "user:token\titem:token\n1\tp\n1\tq\n2\tp\n", {}),
    "gz": ("a.csv.gz", gzip.compress(b"user,item\n1,p\n1,q\n2,p\n"), {}),
    "two-byte separator": ("a.dat", "1::p::5\n1::q::3\n2::p::1\n", {
        "format": "csv", "separator": "::", "names": ("user", "item", "stars")}),
    "pairs": ("a.txt", "1 p\n1\tq\n\n  2   p \n", {"format": "pairs"}),
    "lists": ("a.txt", "1 p q\n2 p\n", {"format": "lists"}),
    "compressed lists": ("a.txt.gz", gzip.compress(b"1 p  q\n2 p"), {"format": "lists"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_format_gives_the_same(run: Any, form: str) -> None:
    name, content, settings = FORMS[form]
    report, dataset = run(content, name, **settings)
    assert histories(dataset) == {"1": ["p", "q"], "2": ["p"]}
    assert (report.interactions, report.bad) == (3, 0)


def write_parquet(path: Path, columns: dict[str, Any]) -> str:
    pl.DataFrame(columns).write_parquet(path)
    return str(path)


@pytest.mark.parametrize("users", [[1, 1, 2], [1.0, 1.0, 2.0], ["1", "1", "2"],
                                   pl.Series(["1", "1", "2"], dtype=pl.Categorical),
                                   pl.Series([1, 1, 2], dtype=pl.UInt8)])
def test_parquet_ids_may_be_numbers_or_text(tmp_path: Path, users: Any) -> None:
    source = write_parquet(tmp_path / "a.parquet", {"user": users, "item": ["p", "q", "p"]})
    prepare(PrepareConfig(source=source, out=str(tmp_path / "made"),
                          columns=Columns("user", "item")))
    assert histories(Dataset.open(tmp_path / "made")) == {"1": ["p", "q"], "2": ["p"]}


def test_large_and_negative_numbers_are_ids_too(tmp_path: Path) -> None:
    ids = [3, 2**40, 3, -5, 2**40, 7]
    source = write_parquet(tmp_path / "a.parquet", {"user": ids, "item": ids[::-1]})
    prepare(PrepareConfig(source=source, out=str(tmp_path / "made"),
                          columns=Columns("user", "item")))
    assert histories(Dataset.open(tmp_path / "made")) == {
        "3": ["7", "-5"], str(2**40): [str(2**40)] * 2,
        "-5": ["3"], "7": ["3"]}


def test_several_sources_are_read_one_after_the_other(tmp_path: Path) -> None:
    sources = []
    for index, text in enumerate(["user,item\na,x\nb,y\n", "item,user\nz,a\n"]):
        sources.append(str(tmp_path / f"{index}.csv"))
        Path(sources[-1]).write_text(text)
    report = prepare(PrepareConfig(source=tuple(sources), out=str(tmp_path / "made"),
                                   columns=Columns("user", "item")))
    dataset = Dataset.open(report.out)
    assert histories(dataset) == {"a": ["x", "z"], "b": ["y"]}
    assert [source["name"] for source in dataset.meta["sources"]] == ["0.csv", "1.csv"]


@pytest.mark.parametrize(("written", "settings"), [
    ("86401", {}), ("86401.9", {}), ("86401900", {"time_unit": "ms"}),
    ("1970-01-02T00:00:01Z", {}), ("1970-01-02 00:00:01", {}),
    ("02/01/1970 00:00:01", {"time_format": "%d/%m/%Y %H:%M:%S"})])
def test_times_in_many_notations(run: Any, written: str, settings: Any) -> None:
    _, dataset = run(f"user,item,time\na,x,{written}\n",
                     columns=Columns("user", "item", "time", **settings))
    assert dataset.times.tolist() == [86_401]


def test_bad_rows_are_counted_with_their_lines(run: Any) -> None:
    report, dataset = run("user,item,time\na,x,1\n,y,2\na,,3\n\na,z,soon\na,z,4,5\nb,y,5\n",
                          columns=TIMED, max_bad_share=0.9)
    assert histories(dataset) == {"a": ["x"], "b": ["y"]}
    assert (report.rows, report.blank, report.bad, report.interactions) == (7, 1, 4, 2)
    assert report.bad_lines == ("log.csv:3: no user", "log.csv:4: no item",
                                "log.csv:6: time is not a time", "log.csv:7: too many fields")
    assert report.bad_reasons == {"no user": 1, "no item": 1, "time is not a time": 1,
                                  "too many fields": 1}
    assert dataset.meta["bad_rows"]["count"] == 4


@pytest.mark.parametrize("wide", ["a,x,1,2,3,4", "a,x,1"])
def test_a_wide_row_is_bad_wherever_it_stands(run: Any, wide: str) -> None:
    for rows in ([wide, "b,y", "c,z"], ["b,y", wide, "c,z"], ["b,y", "c,z", wide]):
        report, dataset = run("\n".join(["user,item", *rows]), max_bad_share=0.5)
        assert histories(dataset) == {"b": ["y"], "c": ["z"]}
        assert report.bad_reasons == {"too many fields": 1}


def test_line_numbers_count_on_over_blocks(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", 64)
    lines = [f"user{number},item{number % 7}" for number in range(300)]
    lines[250] = "nobody"
    report, dataset = run("user,item\n" + "\n".join(lines))
    assert report.bad_lines == ("log.csv:252: no item",)
    assert dataset.num_users == 299


def test_quoted_line_ends_do_not_split_a_row(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", 50)
    rows = [f'u{number},"a\nb,{number}"\n' for number in range(40)]
    report, dataset = run("user,item\n" + "".join(rows))
    assert (report.bad, dataset.num_items) == (0, 40)
    assert dataset.item_ids()[3] == "a\nb,3"


def test_a_quote_that_never_ends_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", 50)
    text = 'user,item\na,"5 disk\n' + "b,y\n" * 20
    with pytest.raises(InputError, match=r"log.csv:2: a quote is not closed.*set quote = false"):
        run(text)
    report, dataset = run(text, max_bad_share=0.1)
    assert (report.bad, report.interactions) == (1, 20)
    _, dataset = run(text, quote=False)
    assert histories(dataset)["a"] == ['"5 disk']


def test_a_quote_inside_an_unquoted_field_is_a_character(run: Any) -> None:
    report, dataset = run('user,item\na,5" disk\nb,y\n"c","z"\n')
    assert histories(dataset) == {"a": ['5" disk'], "b": ["y"], "c": ["z"]}
    assert report.bad == 0


def test_too_many_bad_rows_stop_the_job(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 3 rows are bad \(33.3%.*log.csv:3: no item"):
        run("user,item\na,x\na,\nb,y\n")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("text", "message"), [
    ("", "no interactions"), ("user,item\n", "no interactions"), ("user,item\n\n\n", "0 bad"),
    ("user,item\n,\na,\n", "are bad"),
    ("users,item\na,x\n", "no column 'user'; it has 'users', 'item'; did you mean 'users'?"),
    ("user,item\n\xff\n".encode("latin-1"), "cannot be read as csv: .*utf-8")])
def test_unusable_sources_are_named(run: Any, tmp_path: Path, text: str | bytes,
                                    message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(text)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_truncated_gzip_file_is_named(run: Any) -> None:
    whole = gzip.compress(b"user,item\n" + b"".join(b"a,x%d\n" % n for n in range(5_000)))
    with pytest.raises(InputError, match=r"log.csv.gz cannot be read as csv"):
        run(whole[:-100], "log.csv.gz")


def test_a_missing_source_and_an_unknown_suffix_are_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.csv does not exist"):
        prepare(PrepareConfig(source=str(tmp_path / "nothing.csv"), out=str(tmp_path / "made")))
    with pytest.raises(InputError, match="suffix does not name a format"):
        run("1 2\n", "log.txt")


def test_filters_that_leave_nothing_are_named(run: Any) -> None:
    with pytest.raises(InputError, match=r"the \(9, 1\)-core of 2 interactions is empty"):
        run("user,item\na,x\na,y\n", filters=Filters(user_core=9))


def test_a_foreign_folder_is_never_overwritten(run: Any, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no dataset folder"):
        run("user,item\na,x\n")
    with pytest.raises(InputError, match=r"made exists; give another output folder"):
        run("user,item\na,x\n", overwrite=False)
    assert (tmp_path / "made" / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_the_old_dataset_and_nothing_else(
        run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("user,item\na,x\na,y\n")
    before = (tmp_path / "made" / "meta.json").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(prepare_module, "_write_vocab", fail)
    with pytest.raises(OSError, match="disk full"):
        run("user,item\nb,z\n")
    assert (tmp_path / "made" / "meta.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "made"]


def random_log(rows: int, seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    fields = zip(random.integers(0, 150, rows), random.zipf(1.4, rows) % 90,
                 random.integers(0, 500, rows), strict=True)
    return "user,item,time\n" + "".join(f"u{u},i{i},{t}\n" for u, i, t in fields)


def content(dataset: Dataset) -> dict[str, Any]:
    return {"hashes": dataset.meta["hashes"], "split": dataset.split_hash,
            "items": dataset.item_ids().to_list(), "users": dataset.user_ids().to_list()}


def test_the_result_does_not_depend_on_how_the_work_is_cut(
        run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_log(4_000)
    settings = {"columns": TIMED, "split": SplitConfig("time"),
                "filters": Filters(duplicates="last", user_core=3, item_core=3)}
    _, whole = run(text, **settings)
    first = content(whole)
    _, again = run(text, **settings)
    assert content(again) == first
    assert CHUNK_ROWS > 4_000
    monkeypatch.setattr("rec_jax.data.arrays.CHUNK_ROWS", 301)
    monkeypatch.setattr("rec_jax.data.delimited.BLOCK_BYTES", 777)
    _, cut = run(text, memory_rows=100, **settings)
    assert content(cut) == first


def test_sorting_equals_a_plain_stable_sort(run: Any) -> None:
    text = random_log(3_000, seed=2)
    _, dataset = run(text, columns=TIMED, memory_rows=64)
    rows = [line.split(",") for line in text.splitlines()[1:]]
    wanted = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: int(row[2])):
        wanted[user].append(item)
    assert histories(dataset) == wanted


def test_leave_one_out(run: Any) -> None:
    _, dataset = run("1 a\n2 a b\n3 a b c\n4 a b c d\n", "log.txt", format="lists",
                     columns=Columns())
    start = dataset.offsets[:-1]
    train, valid, end = (bound - start for bound in dataset.split_bounds())
    assert train.tolist() == [1, 2, 1, 2]  # fewer than three items: all for training
    assert valid.tolist() == [1, 2, 2, 3]
    assert end.tolist() == [1, 2, 3, 4]
    ids = dataset.item_ids()
    for which, wanted in (("valid", ["b", "c"]), ("test", ["c", "d"])):
        users, items, history_end = dataset.targets(which)
        assert users.tolist() == [2, 3]
        assert ids.gather(items).to_list() == wanted
        assert (dataset.items[history_end] == items).all()
    assert [part.tolist() for part in dataset.split_bounds([3])] == [
        [int(start[3] + 2)], [int(start[3] + 3)], [int(start[3] + 4)]]


def test_global_time_split_at_given_instants(run: Any) -> None:
    text = "user,item,time\n" + "".join(
        f"{user},i{time},{time}\n" for user, times in
        {"a": [1, 5, 9], "b": [1, 2], "c": [7, 8, 9], "d": [5]}.items() for time in times)
    report, dataset = run(text, columns=TIMED, split=SplitConfig("time", valid_time=5, test_time=8))
    start = dataset.offsets[:-1]
    train, valid, _ = (bound - start for bound in dataset.split_bounds())
    assert train.tolist() == [1, 2, 0, 0]
    assert valid.tolist() == [2, 2, 1, 1]
    users, items, _ = dataset.targets("valid")  # c and d have nothing before their first item
    assert users.tolist() == [0]
    users, items, history_end = dataset.targets("test")
    assert users.tolist() == [0, 2]
    assert dataset.item_ids().gather(items).to_list() == ["i9", "i8"]
    assert (history_end - start[users]).tolist() == [2, 1]
    assert (report.valid_users, report.test_users) == (1, 2)


def test_global_time_split_at_quantiles(run: Any) -> None:
    text = random_log(2_000, seed=4)
    _, dataset = run(text, columns=TIMED, split=SplitConfig("time", 0.7, 0.85))
    times = sorted(int(line.rpartition(",")[2]) for line in text.splitlines()[1:])
    split = dataset.meta["split"]
    assert (split["valid_time"], split["test_time"]) == (times[1_400], times[1_700])
    train, valid, end = dataset.split_bounds()
    for user in range(dataset.num_users):
        own = dataset.times[dataset.offsets[user]:end[user]]
        assert train[user] - dataset.offsets[user] == (own < split["valid_time"]).sum()
        assert valid[user] - dataset.offsets[user] == (own < split["test_time"]).sum()


def test_a_time_split_needs_times(run: Any) -> None:
    with pytest.raises(InputError, match=r"needs columns\.time"):
        run("user,item\na,x\n", split=SplitConfig("time"))


def test_the_split_hash_tells_protocols_apart(run: Any) -> None:
    text = random_log(500)
    hashes = [run(text, columns=TIMED, split=split)[1].split_hash
              for split in (SplitConfig(), SplitConfig("time"), SplitConfig("time", 0.5, 0.6))]
    hashes.append(run(text.replace("i1,", "i9999,"), columns=TIMED)[1].split_hash)
    assert len(set(hashes)) == 4


def test_titles_and_text_are_joined_by_id(run: Any, tmp_path: Path) -> None:
    (tmp_path / "names.dat").write_bytes("x|Amélie|comedy\ny||\nx|again|\n".encode("latin-1"))
    described = ItemFile(str(tmp_path / "names.dat"), id="id", title="name", text=("kind", "name"),
                         names=("id", "name", "kind"), separator="|", encoding="latin-1")
    _, dataset = run("user,item\na,z\na,y\na,x\nb,x\n", item_file=described)
    titles = dict(zip(dataset.item_ids(), dataset.titles(), strict=True))
    assert titles == {"x": "Amélie", "y": None, "z": None}
    text = pl.read_parquet(dataset.folder / "item_vocab.parquet")["text"].to_list()
    assert dict(zip(dataset.item_ids(), text, strict=True)) == {
        "x": "comedy Amélie", "y": None, "z": None}


def test_a_job_can_be_written_as_toml(tmp_path: Path) -> None:
    job = PrepareConfig(source=("a.csv", "b.csv"), out="made", columns=TIMED,
                        item_file=ItemFile("names.csv", text=("kind",)),
                        filters=Filters(min_rating=None, user_core=5), split=SplitConfig("time"))
    config.save(job, tmp_path / "job.toml")
    assert config.load(PrepareConfig, tmp_path / "job.toml") == job


def test_pairs_have_no_times(run: Any) -> None:
    with pytest.raises(InputError, match="has neither times nor ratings"):
        run("1 2\n", "log.txt", format="pairs", columns=TIMED)


def test_meta_holds_no_paths(run: Any, tmp_path: Path) -> None:
    _, dataset = run("user,item\na,x\n")
    assert str(tmp_path) not in (dataset.folder / "meta.json").read_text()
    assert json.loads((dataset.folder / "meta.json").read_text())["sources"][0]["sha256"]


def test_published_counts_of_real_data(shared_data: Path, tmp_path: Path) -> None:
    wanted = {"ml-1m/ml-1m.txt": ("pairs", 6_040, 3_416, 999_611),
              "s3rec-beauty/Beauty.txt": ("lists", 22_363, 12_101, 198_502)}
    for name, (form, *counts) in wanted.items():
        report = prepare(PrepareConfig(source=str(shared_data / name), format=form,
                                       out=str(tmp_path / form)))
        assert [report.users, report.items, report.interactions] == counts
