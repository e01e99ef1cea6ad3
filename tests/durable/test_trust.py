"""Code that a run, a checkpoint or a config names runs only where that is asked for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from rec_jax import api, config
from rec_jax.cli.app import app
from rec_jax.errors import InputError
from rec_jax.run import Run, RunConfig
from rec_jax.train.opening import open_run
from rec_jax.train.resume import changes

Mapping = Callable[..., dict[str, Any]]
NAME = "their_module.encoder"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Whether the third party's module ran; it is an encoder like our own."""
    package = tmp_path / "theirs" / "their_module"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "encoder.py").write_text(
        "from rec_jax.model.encoders.transformer import Config as Ours\n"
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        f"class Config(Ours):\n    kind: str = '{NAME}'\n")
    monkeypatch.syspath_prepend(str(package.parent))

    def forget() -> bool:
        found = [name for name in sys.modules if name.startswith("their_module")]
        for name in found:
            del sys.modules[name]
        return bool(found)

    yield forget
    forget()


@pytest.fixture
def theirs(tiny_run: Path, tmp_path: Path) -> Run:
    """A trained run whose config names the module; so do its checkpoints."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    path = folder / "config.toml"
    text = path.read_text()
    assert 'kind = "transformer"' in text
    path.write_text(text.replace('kind = "transformer"', f'kind = "{NAME}"'))
    return Run(folder)


def said(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_every_verb_refuses_it_in_one_line_that_names_the_module_and_the_option(
        theirs: Run, tiny_mapping: Mapping, tmp_path: Path, ran: Callable[[], bool]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(tomli_w.dumps(tiny_mapping(f"encoder.kind='{NAME}'")))
    run = theirs.folder
    for arguments in (("evaluate", run), ("recommend", run, "--user", "u3"),
                      ("export", run, "--out", tmp_path / "out"),
                      ("export", run, "--what", "users", "--out", tmp_path / "out"),
                      ("train", "--resume", run), ("train", path, "--run", tmp_path / "new"),
                      ("train", path, "--resume", "auto"),
                      ("plan", path, "--items", "1e5"), ("bench", "train", path),
                      ("train", path, "--run", tmp_path / "new",
                       "--set", "encoder.kind='os.path'")):
        line = said(*arguments)
        assert ("os.path" if "--set" in arguments else NAME) in line and "--trust-code" in line
        assert "\n" not in line and not ran(), arguments
    assert not (tmp_path / "new").exists() and not (tmp_path / "out").exists()


def test_a_run_that_starts_from_it_refuses_it_too(
        theirs: Run, tiny_mapping: Mapping, tmp_path: Path, ran: Callable[[], bool]) -> None:
    with pytest.raises(InputError, match=f"'{NAME}'.*--trust-code"):
        api.train(config.build(RunConfig, tiny_mapping()), run=tmp_path / "new",
                  start_from=theirs.folder)
    assert not ran()


def test_with_trust_it_is_the_encoder(theirs: Run, ran: Callable[[], bool]) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(theirs.folder), "--split", "valid",
                                      "--trust-code", "--json"])
    assert result.exit_code == 0, result.output
    expected = max((json.loads(line) for line in theirs.metrics_path.read_text().splitlines()
                    if '"valid"' in line), key=lambda line: line["ndcg@10"])
    assert json.loads(result.stdout)["metrics"]["ndcg@10"] == pytest.approx(expected["ndcg@10"])
    assert ran()
    _, own = open_run(None, None, (), theirs.folder, trust_code=True)
    assert type(own.encoder).__module__ == NAME


def test_configs_of_other_runs_and_of_checkpoints_are_compared_without_their_code(
        theirs: Run, tiny_mapping: Mapping, tmp_path: Path, ran: Callable[[], bool],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    theirs.folder.rename(tmp_path / "runs" / "theirs")
    ours = config.build(RunConfig, tiny_mapping())
    for trust in (False, True):
        fresh, _ = open_run(ours, None, (), "auto", trust_code=trust)
        assert not fresh.folder.exists() and not ran()
    saved = config.to_mapping(ours)
    assert changes(saved, ours) is None
    saved["encoder"]["kind"] = NAME
    assert changes(saved, ours) == f"encoder.kind: '{NAME}' -> 'transformer'"
    assert not ran()


def test_a_checkpoint_that_names_it_is_refused_as_of_another_config(
        tiny_run: Path, tmp_path: Path, ran: Callable[[], bool]) -> None:
    from rec_jax.checkpoint.layout import find_steps
    from rec_jax.checkpoint.manifest import write_manifest

    run = Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    for path in find_steps(run.checkpoints).values():  # with a seal that fits
        text = (path / "info.json").read_text()
        assert '"kind": "transformer"' in text
        (path / "info.json").write_text(
            text.replace('"kind": "transformer"', f'"kind": "{NAME}"'))
        write_manifest(path)
    with pytest.raises(InputError, match=rf"another config \(encoder.kind: '{NAME}' -> 'tra"):
        api.train(resume=run.folder)
    assert not ran()
