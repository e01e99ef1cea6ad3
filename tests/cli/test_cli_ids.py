"""Ids, titles and names with brackets, colons and letters of any script pass every verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command, one_object

ITEMS = ["[sku1] shoe", "[/x] hat", "plain", "b:key:c", "Amélie <b>", "[bold]f"]
CONFIG = """
[data]
path = "d[1]"
length = 8
[table]
dim = 8
[encoder]
kind = "transformer"
layers = 1
heads = 1
backend = "xla"
[objective]
backend = "xla"
[train]
rows = 4
steps = 12
evaluate_every = 0.5
patience = 1
[optimizer]
rate = 1e-9
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset `d[1]` and a finished run `r[b]<i>` on it."""
    from rec_jax import api
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import Columns, ItemFile, PrepareConfig

    folder = tmp_path_factory.mktemp("odd")
    lines = [f"u{user},{ITEMS[(user + when) % 6]},{when}\n" for user in range(12)
             for when in range(5)]
    (folder / "log.csv").write_text("user_id,item_id,time\n" + "".join(lines))
    titles = [f"{item},Film [remastered] {item}\n" for item in ITEMS]
    (folder / "items.csv").write_text("item_id,title\n" + "".join(titles))
    (folder / "c.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(PrepareConfig(source="log.csv", out="d[1]", columns=Columns(time="time"),
                              item_file=ItemFile("items.csv", title="title")))
        api.train("c.toml", run="r[b]<i>")
    return folder


@pytest.fixture
def there(rec_jax: Command, workplace: Path,
          monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "100")
    return rec_jax


def test_recommendations_show_ids_and_titles_as_they_are(there: Command) -> None:
    ended = there("recommend", "r[b]<i>", "--history", "plain", "--k", 6, "--keep-seen")
    assert ended.code == 0
    for item in ITEMS:
        assert f" {item} " in ended.out and f"Film [remastered] {item} " in ended.out
    found = one_object(there("recommend", "r[b]<i>", "--history", "plain", "--k", 6, "--keep-seen",
                             "--json"))["recommendations"]
    assert {entry["item"] for entry in found} == set(ITEMS)


@pytest.mark.parametrize("verb", [
    ("evaluate", "r[b]<i>", "--baseline"), ("checkpoint", "list", "r[b]<i>"),
    ("checkpoint", "inspect", "r[b]<i>"), ("checkpoint", "verify", "r[b]<i>")])
def test_every_look_at_a_run_gives_tables_and_one_object(there: Command,
                                                         verb: tuple[str, ...]) -> None:
    ended = there(*verb)
    assert ended.code == 0 and (ended.out or ended.err)
    assert one_object(there(*verb, "--json"))


def test_prepare_and_export_name_their_folders_as_they_are(there: Command,
                                                           tmp_path: Path) -> None:
    out = str(tmp_path / "[/new] d")
    ended = there("prepare", "log.csv", "--out", out, "--time", "time")
    assert ended.code == 0 and f"Dataset {out}\n" in ended.out and "()" not in ended.out
    out = str(tmp_path / "[/new] e")
    ended = there("export", "r[b]<i>", "--out", out)
    assert ended.code == 0 and f"Embeddings in {out}\n" in ended.out


def test_a_resumed_run_says_that_it_stopped_early(there: Command) -> None:
    ended = there("train", "--resume", "r[b]<i>")
    assert ended.code == 0
    assert "training ended after step" in ended.err and "no better ndcg@10" in ended.err
    assert "train.patience" in ended.err
    summary = one_object(there("train", "--resume", "r[b]<i>", "--json"))
    assert summary["steps"] < 12 and "no better ndcg@10 in 1 validations" in summary["stopped"]


def test_the_report_escapes_names(workplace: Path) -> None:
    page = (workplace / "r[b]<i>" / "report.html").read_text()
    assert "<title>r[b]&lt;i&gt;</title>" in page and "<i>" not in page
    assert json.dumps("d[1]") in page.replace("&quot;", '"')
