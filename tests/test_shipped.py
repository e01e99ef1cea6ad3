"""The configs that ship: found by name where no file is, listed, shown, and explained."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from command import Command, one_object, refused

from rec_jax import shipped
from rec_jax.cli.config import JOBS, keys_of
from rec_jax.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_a_name_stands_for_the_shipped_file(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = (CONFIGS / "ml100k.toml").read_text()
    for given in ("ml100k", "ml100k.toml", "configs/ml100k.toml"):
        assert shipped.locate(given).read_text() == expected


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ml100k").write_text("seed = 1\n")
    assert shipped.locate("ml100k") == Path("ml100k")
    Path("ml100k").unlink()
    Path("ml100k").mkdir()  # a folder is no config
    assert shipped.locate("ml100k").parent != Path()


def test_another_folder_s_file_is_not_taken_for_a_shipped_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        shipped.locate(tmp_path / "ml100k.toml")


def test_a_plan_takes_a_name(rec_jax: Command) -> None:
    plan = one_object(rec_jax("plan", "ml100k", "--items", "1000", "--json"))
    assert plan["rows"] >= 1000
    for wrong in ("nan", "inf", "0"):
        assert "expected at least 1" in refused(rec_jax("plan", "ml100k", "--items", wrong))
    assert "--dim is 0" in refused(rec_jax("plan", "ml100k", "--items", "9", "--dim", "0"))


def test_the_list_has_a_line_for_each_file(rec_jax: Command) -> None:
    ended = rec_jax("config", "list")
    names = sorted(path.stem for path in CONFIGS.glob("*.toml"))
    assert [line.split()[0] for line in ended.out.splitlines()] == names
    listed = one_object(rec_jax("config", "list", "--json"))["configs"]
    assert [entry["name"] for entry in listed] == names
    assert all(0 < len(entry["about"]) < 170 for entry in listed)


def test_a_config_is_shown_as_it_is(rec_jax: Command) -> None:
    text = (CONFIGS / "ml1m.toml").read_text()
    assert rec_jax("config", "show", "ml1m").out == text
    assert one_object(rec_jax("config", "show", "ml1m", "--json"))["text"] == text


def test_every_key_is_explained(rec_jax: Command) -> None:
    from rec_jax.data.prepare_config import PrepareConfig
    from rec_jax.run import RunConfig
    from rec_jax.train.stream_config import StreamRunConfig

    found = {(key.key, key.kind): key for key in keys_of(RunConfig)}
    rows = found["train.rows", ""]
    assert (rows.type, rows.default) == ("int", "64") and rows.about.startswith("rows of")
    assert found["data.path", ""].default == "(must be given)"
    assert found["train.patience", ""].type == "int or none"
    assert found["evaluate.ks", ""].default == "[5, 10, 20]"
    assert found["encoder.kind", ""].type == (
        '"bag" or "graphsage" or "hstu" or "lightgcn" or "svdpp" or "transformer" or "user"')
    assert ("features[].name", "") in found
    assert {"columns.time", "filters.user_core", "item_file.path"} <= {
        key.key for key in keys_of(PrepareConfig)}
    # A default of the config that holds another one is the default there.
    assert {key.key: key.default for key in keys_of(StreamRunConfig)}["data.columns.time"] == \
        '"timestamp"'
    for module, name in JOBS.values():
        config = getattr(importlib.import_module(module), name)
        assert [key.key for key in keys_of(config) if not key.about] == []
    lines = rec_jax("config", "keys", "synth").out.splitlines()
    assert lines[0] == "users: int = 5000" and lines[1].startswith("    ")
    assert one_object(rec_jax("config", "keys", "--json"))["keys"][0]["key"] == "data.path"
