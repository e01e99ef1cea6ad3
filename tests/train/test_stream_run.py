"""A run of a stream: figures of each period, stops and starts, and what the verbs answer of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
from command import Command, one_object, refused
from test_stream import CONFIG, day, same

from rec_jax import api, config
from rec_jax.errors import InputError, Preempted
from rec_jax.inference.export import load_embeddings
from rec_jax.progress import Silent
from rec_jax.run import Run
from rec_jax.tables import ITEMS, USERS
from rec_jax.train import stream_run
from rec_jax.train.log import read_metrics
from rec_jax.train.stream import Stream
from rec_jax.train.stream_config import StreamRunConfig
from rec_jax.train.stream_names import hashed
from rec_jax.train.stream_run import open_standing, run_stream

DAYS, KS, TESTED = 5, (3, 5), 30


def frame(number: int) -> pl.DataFrame:
    users, items, times = day(number)
    return pl.DataFrame({"user_id": [f"u{one}" for one in users],
                         "item_id": [f"i{one}" for one in items], "timestamp": times})


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    for number in range(DAYS):
        frame(number).write_csv(folder / f"day{number}.csv")
    return folder


def settings(*files: Path, **data: Any) -> StreamRunConfig:
    return config.build(StreamRunConfig, {
        "data": {"files": [str(file) for file in files], **data},
        "stream": config.to_mapping(CONFIG),
        "evaluate": {"ks": list(KS), "metric": "ndcg@5", "interactions": TESTED, "batch": 40}})


@pytest.fixture(scope="module")
def run(days: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("stream") / "run")
    run_stream(run, settings(days), new=True)
    return run


def lines_of(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"}
            for line in read_metrics(run.metrics_path)]


def test_a_run_is_the_stream_of_its_files_and_every_period_is_tested_first(run: Run) -> None:
    stream, lines = Stream(CONFIG), lines_of(run)
    assert len(lines) == DAYS
    for number, line in enumerate(lines):
        users, items = hashed(frame(number)["user_id"]), hashed(frame(number)["item_id"])
        drawn = np.sort(np.random.default_rng((CONFIG.seed, stream.steps)).choice(
            len(users.ids), TESTED, replace=False))
        live = stream.ids[ITEMS].live
        rows = live.live()
        assert ("ndcg@5" in line) == (number > 0)
        if number:
            scores = (stream.rows_of(USERS, users.ids[drawn])
                      @ np.asarray(stream.state.items.rows)[rows].T)
            counts = live.counts[rows]
            found: dict[str, list[float]] = {"ndcg@5": [], "hr@3": [], "popularity_ndcg@5": []}
            for own, item in zip(scores, items.ids[drawn], strict=True):
                here = live.ids[rows] == item
                for name, values in (("ndcg@5", own), ("popularity_ndcg@5", counts)):
                    rank = (values >= values[here]).sum() if here.any() else 1000
                    found[name].append((rank <= 5) / np.log2(1 + rank))
                    if values is own:
                        found["hr@3"].append(float(rank <= 3))
            for name, one in found.items():
                assert line[name] == pytest.approx(np.mean(one), rel=1e-6), (number, name)
            missed = sum(not (live.ids[rows] == item).any() for item in items.ids[drawn])
            assert line["protocol"]["targets_without_a_row"] == missed
            assert line["protocol"]["candidates"] == len(rows)
        checks = {USERS: users.checks, ITEMS: items.checks}
        learnt = stream.learn(users.ids, items.ids, day(number)[2], checks)
        gone = stream.barrier()
        assert line["step"] == stream.steps and line["period"] == f"day{number}.csv"
        assert line["loss"] == pytest.approx(learnt.loss.mean())
        for name, ids in stream.ids.items():
            assert (line[f"{name}_new"], line[f"{name}_gone"], line[f"{name}_live"]) == (
                learnt.new[name], len(gone[name].ids), len(ids.live))
    standing = open_standing(run, settings())
    assert same(standing.stream, stream) and all(line["hr@3"] > 0 for line in lines[2:])
    for name, known in standing.names.items():
        live = stream.ids[name].live
        every = {one for number in range(DAYS) for one in frame(number)[f"{name[:-1]}_id"]}
        texts = known["name"].to_list()
        assert set(texts) <= every and len(texts) == len(live)
        assert (hashed(known["name"]).ids == live.ids[live.live()]).all()


class Stopped(Exception):
    """Thrown out of the loop."""


class StopAfter(Silent):
    """Lets so many steps' reports pass."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


def bytes_of(run: Run) -> dict[str, bytes]:
    """What the newest checkpoint and the files beside it say."""
    standing = open_standing(run, settings())
    steps = standing.stream.steps
    found = {str(path.name): path.read_bytes() for part in ("ids", "names")
             for path in (run.folder / part).iterdir() if f"-{steps}" in path.name}
    assert len(found) == 4
    return found | {str(number): np.asarray(leaf).tobytes() for number, leaf in enumerate(
        jax.tree.leaves(standing.stream.state))}


def test_a_run_that_was_stopped_within_periods_has_the_bits_of_one_that_was_not(
        run: Run, days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Run(tmp_path / "run")
    monkeypatch.setattr(stream_run, "STEPS_AT_ONCE", 2)  # three parts a period
    with pytest.raises(Stopped):
        run_stream(other, settings(days), StopAfter(1), new=True)
    assert not other.checkpoints.exists()
    with pytest.raises(Stopped):
        run_stream(other, settings(days / "day0.csv", days / "day1.csv"), StopAfter(5))
    saved = stream_run.save_standing

    def killed(*_: Any) -> None:
        raise Stopped  # behind the line, before the checkpoint

    monkeypatch.setattr(stream_run, "save_standing", killed)
    with pytest.raises(Stopped):
        run_stream(other, settings(days / "day1.csv"))
    monkeypatch.setattr(stream_run, "save_standing", saved)
    assert [line["period"] for line in lines_of(other)] == ["day0.csv", "day1.csv"]
    found = run_stream(other, settings(*sorted(days.iterdir())[:3]))
    assert [one["period"] for one in found["periods"]] == ["day1.csv", "day2.csv"]
    assert run_stream(other, settings(days))["learnt_periods"] == DAYS
    assert run_stream(other, settings(days))["periods"] == []
    assert bytes_of(other) == bytes_of(run) and lines_of(other) == lines_of(run)


def test_a_signal_stops_it_between_steps_and_between_periods(
        days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_run, "STEPS_AT_ONCE", 4)
    for asks, message in ((6, "SIGTERM: stopped after day0.csv, which is saved"),
                          (10, "SIGTERM: stopped within day1.csv, which is learnt again .* 1 per")):
        monkeypatch.setattr(stream_run.Preemption, "asked",
                            lambda _, step, asks=asks: "SIGTERM" if step >= asks else None)
        with pytest.raises(Preempted, match=message):
            run_stream(Run(tmp_path / "run"), settings(days))


def test_a_log_that_is_cut_by_time_gives_the_bits_of_a_file_a_day(
        run: Run, tmp_path: Path) -> None:
    """Rows that are not in order, fractions of seconds, and a row that is none among them."""
    random, parts = np.random.default_rng(0), []
    for number in range(DAYS):
        rows = frame(number)
        late = rows.with_columns(timestamp=pl.Series(number + np.arange(len(rows)) / 64))
        parts.append(late)
    whole = pl.concat(parts).with_columns(pl.col("timestamp").cast(pl.String))
    whole = whole.sample(fraction=1, shuffle=True, seed=int(random.integers(9)))
    whole = pl.concat([whole, pl.DataFrame({"user_id": ["u1"], "item_id": ["i1"],
                                            "timestamp": ["soon"]})])
    whole.write_csv(tmp_path / "log.csv")
    other = Run(tmp_path / "run")
    run_stream(other, settings(tmp_path / "log.csv", seconds=1))
    assert bytes_of(other) == bytes_of(run)
    assert [{**line, "period": ""} for line in lines_of(other)] == [
        {**line, "period": ""} for line in lines_of(run)]
    assert lines_of(other)[3]["period"] == "log.csv 1970-01-01T00:00:03Z"


def test_the_verbs_answer_of_a_run_of_a_stream(run: Run, days: Path, tmp_path: Path,
                                               rec_jax: Command) -> None:
    standing = open_standing(run, settings())
    stream, items = standing.stream, standing.names[ITEMS]["name"]
    live = stream.ids[ITEMS].live.live()
    rows = np.asarray(stream.state.items.rows)[live]
    user = standing.names[USERS]["name"][3]

    found = one_object(rec_jax("recommend", run.folder, "--user", user, "-k", 99, "--json"))
    scores = rows @ stream.rows_of(USERS, hashed(pl.Series([user])).ids)[0]
    best = np.argsort(-scores, kind="stable")
    assert [one["item"] for one in found["recommendations"]] == items.gather(best).to_list()
    np.testing.assert_allclose([one["score"] for one in found["recommendations"]], scores[best],
                               rtol=1e-5)
    unknown = rec_jax("recommend", run.folder, "--user", "nobody", "-k", 99)
    assert unknown.err == "user 'nobody' has no row: these are for everybody without one\n"
    assert len(api.recommend(run.folder, user="nobody", k=99)) == len(live)

    for what, names in standing.names.items():
        out = api.export(run.folder, out=tmp_path / what, what=what, format="parquet")
        vectors = load_embeddings(out)
        assert vectors.ids.to_list() == names["name"].to_list()
        assert vectors.about["step"] == stream.steps and vectors.about["run"] == "run"
        assert np.array_equal(vectors.vectors, stream.rows_of(what, hashed(names["name"]).ids))

    asked = frame(7)
    asked.write_parquet(tmp_path / "next.parquet")
    tested = one_object(rec_jax("evaluate", run.folder, "--data", tmp_path / "next.parquet",
                                "--json"))
    assert tested["protocol"]["of_interactions"] == len(asked)
    assert tested["metrics"].keys() == tested["popularity_baseline"].keys()
    known = api.evaluate(run.folder, data=str(days / "day4.csv"))
    assert known["protocol"]["weights"] == "step 30, which has learnt some of it"
    shown = rec_jax("evaluate", run.folder, "--data", tmp_path / "next.parquet")
    assert "all 18 items ranked, seen items kept" in shown.out

    copy = tmp_path / "copy"
    earlier = Run(tmp_path / "earlier")
    run_stream(earlier, settings(*sorted(days.iterdir())[:4]))
    api.export(earlier.folder, out=copy)
    wrote = one_object(rec_jax("deltas", "write", run.folder, "--base", copy, "--out", "d",
                               "--json"))
    assert wrote["gone"] > 0 and wrote["added"] > 0
    assert rec_jax("deltas", "apply", "d", "--to", copy).code == 0
    served = load_embeddings(copy)
    assert set(served.ids) == set(items)
    assert np.array_equal(served.vectors, stream.rows_of(ITEMS, hashed(served.ids).ids))
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".export")]

    for arguments, message in (
            (("evaluate", run.folder), "expected files of interactions that it has not learnt"),
            (("evaluate", run.folder, "--data", days, "--filter-seen"), "filter_seen is not of a"),
            (("export", run.folder, "--out", "x", "--what", "inputs"), "a stream has no inputs"),
            (("recommend", run.folder, "--history", "i1"), "history is not of a run of a stream"),
            (("recommend", run.folder), "a stream knows users by their rows; expected a user"),
            (("recommend", run.folder, "--user", "u1", "--step", 6), "step is not of a run of a"),
            (("deltas", "write", run.folder, "--base", copy, "--out", "e", "--step", 6),
             "step is not of a run of a stream"),
            (("train", "--continue", run.folder, "--data", "x"), "--continue is not of a stream"),
            (("evaluate", run.folder, "--popularity-bias", 1), "is a run of a stream; expected")):
        assert message in refused(rec_jax(*arguments))
    with pytest.raises(TypeError, match="kk"):
        api.recommend(run.folder, user="u1", kk=3)  # type: ignore[call-arg]


def files_of(run: Path) -> list[str]:
    found: list[str] = Run(run).saved_config()["data"]["files"]
    return found


def test_train_of_the_command_line_learns_folders_and_goes_on_with_more(
        run: Run, days: Path, tmp_path: Path, rec_jax: Command) -> None:
    own = settings()
    config.save(own, tmp_path / "stream.toml")
    first = rec_jax("train", "stream.toml", "--stream", days / "day0.csv", "--stream",
                    days / "day[12].csv", "--run", "r")
    assert first.code == 0 and first.err.count("interactions; before learning it ndcg@5") == 2
    assert "day2.csv" in first.out and "periods learnt" in first.out
    more = one_object(rec_jax("train", "--resume", "r", "--stream", days, "--json"))
    assert [one["period"] for one in more["periods"]] == ["day3.csv", "day4.csv"]
    assert bytes_of(Run(tmp_path / "r")) == bytes_of(run)
    # What a start is given is its own; the run keeps the files of its config, or of its first one.
    assert files_of(tmp_path / "r") == [str(days / "day0.csv"), str(days / "day[12].csv")]
    again = one_object(rec_jax("train", "stream.toml", "--resume", "r", "--stream", days, "--json"))
    assert again["periods"] == [] and len(files_of(tmp_path / "r")) == 2
    own = dataclasses.replace(own, data=settings(days / "day0.csv").data)
    config.save(own, tmp_path / "own.toml")
    assert rec_jax("train", "own.toml", "--run", "o", "--stream", days / "day1.csv").code == 0
    assert files_of(tmp_path / "o") == [str(days / "day0.csv")]
    rest = one_object(rec_jax("train", "--resume", "o", "--json"))
    assert [one["period"] for one in rest["periods"]] == ["day0.csv"]

    shutil.copy(days / "day0.csv", tmp_path / "day0.csv")
    for line, message in (
            ("train stream.toml --run new", "data.files is empty; expected files of interactions"),
            ("train stream.toml --run r --stream day0.csv", "holds a run already; resume it"),
            ("train stream.toml --run new --stream none.csv", "none.csv does not exist; expected"),
            ("train ml100k --run new --stream day0.csv", "expected a config with [stream]"),
            ("train stream.toml --run new --stream day0.csv --set data.columns.time=when",
             "when"),
            ("train stream.toml --run new --stream day0.csv --set stream.items.capacity=0",
             "ids.capacity is 0; expected at least 1"),
            ("train stream.toml --run new --stream day0.csv --set stream.item.capacity=5",
             "unknown key 'item'; did you mean 'items'?"),
            ("train stream.toml --run new --stream day0.csv --set stream.table.update=dense",
             "stream.table.update is 'dense'"),
            ("train stream.toml --resume r --set stream.rate=1", "stream.rate: 0.1 -> 1.0"),
            ("train stream.toml --run new --start-from r", "--start-from is not of a stream")):
        assert message in refused(rec_jax(*line.split())), line
        assert not (tmp_path / "new").exists()


def test_a_file_that_changed_since_it_was_learnt_is_refused(
        days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, run, gone = Path("day.csv"), Run(tmp_path / "run"), Path("gone.csv")
    for path in (file, gone):
        shutil.copy(days / "day0.csv", path)

    class Removes(Silent):
        def begin(self, *_: Any, **__: Any) -> None:
            gone.unlink(missing_ok=True)

    # What cannot be read in its turn is no fault of writing.
    with pytest.raises(InputError, match=r"gone\.csv cannot be read: No such file"):
        run_stream(run, settings(file, gone), Removes())
    run_stream(run, settings(file))
    (tmp_path / "x").mkdir()
    with file.open("a") as more:
        more.write("u1,i1,9\n")
    for path in (file, tmp_path / "x" / ".." / "day.csv"):  # by whichever path
        with pytest.raises(InputError, match="has changed since it was learnt, and a stream does"):
            run_stream(run, settings(path))
    # Another file of the same name, from another folder to work in.
    monkeypatch.chdir(tmp_path / "x")
    shutil.copy(days / "day1.csv", "day.csv")
    found = run_stream(run, settings(Path("day.csv")))
    assert [one["period"] for one in found["periods"]] == ["day.csv"]
    with pytest.raises(InputError, match="another config"):
        run_stream(run, dataclasses.replace(settings(days), stream=dataclasses.replace(
            CONFIG, rate=0.2)))


def test_names_that_are_damaged_are_found(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    path = next((tmp_path / "run" / "names").glob("items-30*"))
    pl.read_parquet(path).with_columns(pl.col("name").reverse()).write_parquet(path)
    with pytest.raises(InputError, match="is damaged: a text is not that of its id"):
        open_standing(Run(tmp_path / "run"), settings())
    assert json.loads(run.metrics_path.read_text().splitlines()[0])["kind"] == "period"
