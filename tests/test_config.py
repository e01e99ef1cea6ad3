"""A config is strict TOML: it says what is wrong, and it comes back from disk as it was."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from rec_jax import config
from rec_jax.errors import InputError
from rec_jax.model.encoders.transformer import Config as Transformer
from rec_jax.run import RunConfig
from rec_jax.run_sections import TrainConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()
    limit: int | None = 7


@dataclass(frozen=True)
class Outer:
    path: str
    count: int = 1
    fast: bool = False
    mode: Literal["last", "chunks"] = "last"
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"count is {self.count}; expected 0 or more")


def refusal(mapping: dict[str, object], cls: type = Outer) -> str:
    """The one-line message with which `mapping` is refused."""
    with pytest.raises(InputError) as caught:
        config.build(cls, mapping, "a.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_key_names_the_nearest_one() -> None:
    message = refusal({"path": "x", "cuont": 3})
    assert "a.toml" in message and "'cuont'" in message and "did you mean 'count'" in message


def test_an_unknown_nested_key_names_its_table_and_the_nearest_one() -> None:
    message = refusal({"path": "x", "inner": {"rats": 3.0}})
    assert "inner" in message and "did you mean 'rate'" in message


def test_an_unknown_key_without_a_neighbour_lists_the_known_ones() -> None:
    message = refusal({"path": "x", "zzzz": 3})
    assert "known: count, fast, inner, mode, path" in message


def test_an_unknown_key_of_a_component_names_the_nearest_one() -> None:
    message = refusal({"data": {"path": "x"}, "encoder": {"layer": 3}}, RunConfig)
    assert "encoder" in message and "did you mean 'layers'" in message


@pytest.mark.parametrize(("mapping", "expected"), [
    ({"path": 3}, "path: expected str, got 3"),
    ({"path": "x", "count": "3"}, "count: expected int, got '3'"),
    ({"path": "x", "count": 1.5}, "count: expected int, got 1.5"),
    ({"path": "x", "count": True}, "count: expected int, got True"),
    ({"path": "x", "fast": 1}, "fast: expected bool, got 1"),
    ({"path": "x", "mode": "first"}, "mode: 'first' is not one of 'last', 'chunks'"),
    ({"path": "x", "inner": 3}, "inner: expected a table, got 3"),
    ({"path": "x", "inner": {"rate": True}}, "rate: expected float, got True"),
    ({"path": "x", "inner": {"names": "abc"}}, "names: expected a list, got 'abc'"),
    ({"path": "x", "inner": {"names": ["a", 1]}}, "names: expected str, got 1"),
    ({"path": "x", "inner": {"limit": "many"}}, "limit: expected int, got 'many'"),
])
def test_a_wrong_type_says_where_and_what_was_expected(mapping: dict[str, object],
                                                       expected: str) -> None:
    assert expected in refusal(mapping)


def test_a_missing_key_is_named() -> None:
    assert refusal({"count": 3}) == "a.toml: key 'path' is missing"


def test_a_value_out_of_range_names_the_file() -> None:
    assert refusal({"path": "x", "count": -1}) == "a.toml: count is -1; expected 0 or more"


def test_a_whole_number_is_a_float_where_one_is_expected() -> None:
    built = config.build(Outer, {"path": "x", "inner": {"rate": 2}})
    assert built.inner.rate == 2.0 and isinstance(built.inner.rate, float)


def test_overrides_are_lines_of_toml() -> None:
    base = {"path": "x", "inner": {"rate": 0.1, "names": ["a"]}}
    mapping = config.override(base, ["inner.rate = 1e-3", 'inner.names=["b", "c"]', "fast=true"])
    built = config.build(Outer, mapping)
    assert built.inner == Inner(1e-3, ("b", "c")) and built.fast
    assert base == {"path": "x", "inner": {"rate": 0.1, "names": ["a"]}}  # left alone


def test_a_value_that_is_no_toml_is_a_bare_string() -> None:
    built = config.build(Outer, config.override({}, ["path=runs/x y", "mode=chunks"]))
    assert (built.path, built.mode) == ("runs/x y", "chunks")


def test_the_last_override_wins() -> None:
    assert config.override({"a": {"b": 1}}, ["a.b=2", "a.b=3", "a.c=4"]) == {"a": {"b": 3, "c": 4}}


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"'train\.rows' has no '='"):
        config.override({}, ["train.rows"])
    with pytest.raises(InputError, match=r"'a=\[+' has too many brackets in brackets"):
        config.override({}, ["a=" + "[" * 5000])


def test_an_override_can_replace_a_component(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[data]\npath = "x"\n[encoder]\nlayers = 1\n')
    loaded = config.load(RunConfig, path, ["encoder.heads=4"])
    assert loaded.encoder == Transformer(layers=1, heads=4)


def test_an_unknown_kind_names_the_nearest_one() -> None:
    message = refusal({"data": {"path": "x"}, "encoder": {"kind": "transfomer"}}, RunConfig)
    assert "unknown kind 'transfomer'" in message and "did you mean 'transformer'" in message


def test_a_component_must_be_a_table() -> None:
    message = refusal({"data": {"path": "x"}, "encoder": "transformer"}, RunConfig)
    assert "encoder: expected a table with a 'kind'" in message


def test_a_dotted_kind_loads_a_third_partys_module(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_encoders.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    kind: str = 'x'\n"
        "    depth: int = 1\n")
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "their_encoders.py").rename(package / "encoders.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = "their_package.encoders"
    mapping = {"data": {"path": "x"}, "encoder": {"kind": kind, "depth": 4}}
    with pytest.raises(InputError, match=rf"encoder: kind '{kind}' .*--trust-code") as caught:
        config.build(RunConfig, mapping)
    assert "\n" not in str(caught.value) and "their_package" not in sys.modules
    built = config.build(RunConfig, mapping, trust_code=True)
    assert (built.encoder.kind, built.encoder.depth) == (kind, 4)
    assert type(built.encoder) is sys.modules[kind].Config
    config.save(built, tmp_path / "a.toml")
    with pytest.raises(InputError, match="--trust-code"):
        config.load(RunConfig, tmp_path / "a.toml")
    assert config.load(RunConfig, tmp_path / "a.toml", trust_code=True) == built
    assert config.difference(config.read_mapping(tmp_path / "a.toml"), built) is None


@pytest.mark.parametrize("text", ["raise RuntimeError('two\\nlines')", "x = (", "Config = 3",
                                  "class Config: pass", "import no_such_thing"])
def test_a_module_that_cannot_be_used_is_one_line(tmp_path: Path, text: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "them.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"kind .broken_package.them. cannot be") as caught:
        config.build(RunConfig, {"data": {"path": "x"},
                                 "encoder": {"kind": "broken_package.them"}}, trust_code=True)
    assert "\n" not in str(caught.value)
    sys.modules.pop("broken_package.them", None)
    sys.modules.pop("broken_package", None)


def test_a_dotted_kind_of_this_package_needs_no_trust() -> None:
    built = config.build(RunConfig, {"data": {"path": "x"},
                                     "encoder": {"kind": "rec_jax.model.encoders.hstu"}})
    assert type(built.encoder).__module__ == "rec_jax.model.encoders.hstu"
    for kind in ("rec_jax.cli", ".transformer", "os.path"):
        with pytest.raises(InputError, match="--trust-code"):
            config.build(RunConfig, {"data": {"path": "x"}, "encoder": {"kind": kind}})


def test_a_saved_mapping_is_compared_without_its_code_and_with_the_defaults_of_now() -> None:
    built = config.build(RunConfig, {"data": {"path": "x"}, "train": {"patience": "none"}})
    saved = config.to_mapping(built)
    assert config.difference(saved, built) is None
    del saved["train"]["rows"], saved["checkpoint"], saved["encoder"]["layers"]  # not known then
    assert config.difference(saved, built) is None
    other = config.build(RunConfig, {"data": {"path": "x"}, "train": {"patience": 3, "rows": 7}})
    assert config.difference(saved, other) == "train.patience: 'none' -> 3"
    saved["encoder"] = {"kind": "no.such.module"}
    assert "encoder.kind: 'no.such.module' -> 'transformer'" in str(
        config.difference(saved, built))
    plain = config.build(RunConfig, {"data": {"path": "x"}})
    assert config.difference({}, plain) == "data: None -> {'path': 'x', 'length': 200, " \
        "'pack': True, 'window': 'last', 'targets': []}"


@pytest.mark.parametrize("number", [0, 513, 10**9])
def test_the_chain_of_deltas_is_bounded(number: int) -> None:
    message = refusal({"data": {"path": "x"}, "checkpoint": {"full_every": number}}, RunConfig)
    assert f"checkpoint.full_every is {number}; expected at least 1 and at most 512" in message


def test_a_dotted_kind_that_cannot_be_imported_says_so() -> None:
    message = refusal({"data": {"path": "x"}, "encoder": {"kind": "no.such.module"}}, RunConfig)
    assert "encoder" in message and "'no.such.module' " in message and "--trust-code" in message


@pytest.mark.parametrize(("content", "expected"), [
    (None, "does not exist"), (b"a = = 1", "not readable TOML"), (b"\xff\xfe", "not readable"),
    (b"a = " + b"[" * 5000, "too many brackets in brackets"),
])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None,
                                     expected: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        config.load(Outer, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=8)
inners = st.builds(Inner, st.floats(allow_nan=False), st.lists(texts, max_size=3).map(tuple),
                   st.none() | st.integers(-2**40, 2**40))
outers = st.builds(Outer, texts, st.integers(0, 2**40), st.booleans(),
                   st.sampled_from(["last", "chunks"]), inners)


@given(outers)
def test_what_is_saved_is_what_is_loaded(outer: Outer) -> None:
    import tomllib

    text = tomli_w.dumps(config.to_mapping(outer))
    assert config.build(Outer, tomllib.loads(text)) == outer


def test_a_saved_run_config_is_complete_and_comes_back(tmp_path: Path) -> None:
    original = config.build(RunConfig, {"data": {"path": "x"}, "train": {"ema": 0.9}})
    path = tmp_path / "config.toml"
    config.save(original, path)
    assert config.load(RunConfig, path) == original
    assert "warmup = 100" in path.read_text()  # defaults are written out
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_none_survives_where_it_is_not_the_default(tmp_path: Path) -> None:
    original = dataclasses.replace(config.build(RunConfig, {"data": {"path": "x"}}),
                                   train=TrainConfig(patience=None))
    config.save(original, tmp_path / "config.toml")
    assert config.load(RunConfig, tmp_path / "config.toml").train.patience is None
    assert config.difference(original, config.load(RunConfig, tmp_path / "config.toml")) is None


def test_none_can_be_asked_for_on_the_command_line() -> None:
    mapping = config.override({"data": {"path": "x"}}, ["train.patience=none"])
    assert config.build(RunConfig, mapping).train.patience is None


@given(outers, outers)
def test_difference_is_none_exactly_for_equal_configs(first: Outer, second: Outer) -> None:
    assert config.difference(first, first) is None
    assert (config.difference(first, second) is None) == (first == second)


def test_difference_names_the_first_key_and_both_values() -> None:
    old, new = Outer("x"), Outer("x", inner=Inner(rate=0.25))
    assert config.difference(old, new) == "inner.rate: 0.5 -> 0.25"
